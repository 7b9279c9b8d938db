"""Types and ranges of a model's description, which somebody else may have written."""

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from distmeta.data.images import Preprocessing

_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_Size = Annotated[int, Field(ge=1, le=10**6)]


@with_config(ConfigDict(extra="allow"))
class Built(TypedDict):
    """A network or a learner: its name and the arguments of its constructor."""

    name: _Name


class TaskSize(TypedDict):
    way: _Size
    shot: _Size


_Share = Annotated[float, Field(ge=0, le=1)]


class Temperature(TypedDict):
    """A divisor of logits before the softmax, fitted on `episodes` validation episodes of this way and shot.

    `coverage[p]` is the fraction of their queries whose probability is then at least p %. `accuracy[p]` is the fraction of these that is
    right (None without any).
    """

    way: _Size
    shot: _Size
    inner_steps: Annotated[int, Field(ge=0, le=10**6)]
    temperature: Annotated[float, Field(gt=0, le=1e9)]
    episodes: _Size
    coverage: Annotated[list[_Share], Field(min_length=101, max_length=101)]
    accuracy: Annotated[list[_Share | None], Field(min_length=101, max_length=101)]


@with_config(ConfigDict(extra="allow"))
class Description(TypedDict):
    """The fields from which a network and its learner can be rebuilt, and the data they were trained on. Extra fields are allowed, because
    a later version may store more.
    """

    model: Built
    learner: Built
    norm: str
    preprocessing: NotRequired[Annotated[Preprocessing, Field(strict=False)] | None]
    task: NotRequired[TaskSize]
    frozen: NotRequired[list[str]]
    adapted: NotRequired[list[str]]
    notes: NotRequired[list[str]]
    dataset: NotRequired[_Name]
    metric: NotRequired[_Name]
    fingerprint: NotRequired[Annotated[str, Field(max_length=200)]]
    step: NotRequired[Annotated[int, Field(ge=0, le=10**9)]]
    validation: NotRequired[dict[str, Any]]
    test: NotRequired[dict[str, Any]]
    calibration: NotRequired[list[Temperature]]


def default_name(description: dict[str, Any]) -> str:
    """The model's default name in the registry."""
    task = description["task"]
    way = f"-{task['way']}way" if task["way"] > 1 else ""
    return f"{description['dataset']}{way}-{task['shot']}shot"
