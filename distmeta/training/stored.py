"""The types and ranges of what a run folder's files hold, checked once on reading: somebody else may have written them."""

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
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


class Member(TypedDict):
    """A worker of a run: its rank, and where its process is."""

    rank: Annotated[int, Field(ge=0, le=10**6)]
    pid: int
    node: str


@with_config(ConfigDict(extra="allow"))
class Event(TypedDict):
    """A later version may have stored more."""

    time: float
    kind: str
    step: NotRequired[_Step]
    checkpoint: NotRequired[str | None]
    workers: NotRequired[list[Member]]
    rank: NotRequired[Annotated[int, Field(ge=0, le=10**6)]]
    pid: NotRequired[int | None]
    node: NotRequired[str | None]
    log: NotRequired[str | None]
    signal: NotRequired[str | None]
    reason: NotRequired[str]


class Status(TypedDict):
    time: float
    phase: str
    step: _Step
    steps: _Step
    steps_per_s: NotRequired[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    figures: NotRequired[dict[str, str]]
    workers: NotRequired[list[Member]]
