"""Types and ranges of values in a run folder's files. They are checked once on reading, because somebody else may have written them."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from distmeta.learners.description import Temperature
from distmeta.training.storage import read_json, unknown_content

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
    calibration: NotRequired[list[Temperature]]


class Mlflow(TypedDict):
    uri: str
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    model: NotRequired[str]


class Failure(TypedDict):
    message: str


_Time = Annotated[float, Field(ge=0, le=1e10)]  # seconds since 1970
_TrialNumber = Annotated[int, Field(ge=0, le=10**6)]  # the numbers and seeds here are parts of paths


class Trial(TypedDict):
    number: _TrialNumber
    params: dict[str, Any]
    state: Literal["running", "finished", "stopped", "failed"]
    reason: str
    began: NotRequired[_Time | None]
    ended: NotRequired[_Time | None]
    since: NotRequired[_Step]
    until: NotRequired[_Step | None]
    history: NotRequired[list[dict[str, Any]]]
    unplaced: NotRequired[bool]


def read_trial(path: Path) -> dict[str, Any]:
    """The record of a trial. Raises RunError also if it is that of another trial than its folder is named after."""
    record: dict[str, Any] = read_json(path, Trial)
    if path.parent.name.removeprefix("trial-") != f"{record['number']:03d}":
        raise unknown_content(path, f"it is the record of trial {record['number']}")
    return record


class Winner(TypedDict):
    number: _TrialNumber
    retrained_steps: NotRequired[_Step]


class SweepTable(TypedDict):
    trials: list[dict[str, Any]]
    best: Winner


class Seeds(TypedDict):
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]]
    models: NotRequired[dict[str, Annotated[str, Field(pattern=r"^models:/[^/@]+/[0-9]{1,9}$")]]]


class Member(TypedDict):
    """A worker of a run: its rank, and its process and node."""

    rank: Annotated[int, Field(ge=0, le=10**6)]
    pid: int
    node: str


class _Event(TypedDict):
    time: _Time
    kind: str
    step: NotRequired[_Step]


class _Other(_Event):
    reason: NotRequired[str]


class _Started(_Event):
    checkpoint: str | None
    workers: list[Member]


class _Lost(_Event):
    rank: Annotated[int, Field(ge=0, le=10**6)]
    reason: str
    checkpoint: NotRequired[str | None]
    pid: NotRequired[int | None]
    node: NotRequired[str | None]
    log: NotRequired[str | None]
    signal: NotRequired[str | None]


LOST = ("died", "out of memory", "hung", "failed", "node lost")
"""The kinds of event in which a run loses a worker."""


def _sort_of_event(event: Any) -> str:
    kind = event.get("kind") if isinstance(event, dict) else None
    return "start" if kind == "start" else "lost" if kind in LOST else "other"


# Extra kinds and keys are allowed, because a later version may store more.
Event = Annotated[
    Annotated[_Started, Tag("start")] | Annotated[_Lost, Tag("lost")] | Annotated[_Other, Tag("other")], Discriminator(_sort_of_event)
]


class Status(TypedDict):
    time: _Time
    phase: str
    step: _Step
    steps: _Step
    steps_per_s: NotRequired[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    figures: NotRequired[dict[str, str]]
    workers: NotRequired[list[Member]]
