"""The types and ranges of what a run folder's files hold, checked once on reading: somebody else may have written them."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

_Step = Annotated[int, Field(ge=0, le=10**9)]


class Dataset(TypedDict):
    dataset: str
    fingerprint: str


class Best(TypedDict):
    folder: Annotated[str, Field(pattern=r"^step-[0-9]{1,12}(-again)?$")]


class Result(TypedDict):
    steps: _Step
    best_step: _Step
    weights_sha256: str
    test: dict[str, Any]


class Mlflow(TypedDict):
    uri: str
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    model: NotRequired[str]


class Failure(TypedDict):
    message: str


class SweepTable(TypedDict):
    trials: list[dict[str, Any]]
    best: Any


class Seeds(TypedDict):
    seeds: list[Any]
