"""A stored score of a model on fixed episodes: name, unit, direction, values and intervals. Readers need to import nothing else."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from distmeta.errors import RunError
from distmeta.files import of_kind

KEY = "measurement"
"""Its key in every dictionary that describes an evaluation."""
BASELINE_KEY = f"random_init_{KEY}"
"""The key of the untrained network's measurement in a test."""


@dataclass(frozen=True)
class Measurement:
    """Means over `episodes` episodes, one for each of `columns`, with the half-widths of their 95% intervals.

    A value that is not finite is None and the worst of all; an interval is None if there are too few episodes. Printed numbers are the
    values times `scale`, with `digits` decimals, in `unit`. `axis` names what the columns count ("inner steps"); without it they are kinds
    of score ("inductive"), explained by `notes`. The column `selected` decides which step and trial is best; `headline` is the column to
    quote, as papers do. `chance` is the score of guessing.
    """

    name: str
    unit: str
    scale: float
    digits: int
    more_is_better: bool
    axis: str | None
    columns: list[str]
    selected: int
    headline: int
    values: list[float | None]
    ci95: list[float | None]
    episodes: int
    chance: float | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return asdict(self) | {"notes": list(self.notes)}

    @property
    def score(self) -> float:
        """The score by which runs, steps and trials are ranked: higher is better, -inf if the value is not finite."""
        return score_of(self.values[self.selected], self.more_is_better)

    def text(self, column: int, interval: bool = True) -> str:
        """The column's value as text: "97.0 ± 0.3 %"."""
        return quantity(self.values[column], self.ci95[column] if interval else None, self.scale, self.digits, self.unit)

    def text_of(self, score: float | None) -> str:
        """A `score` converted back to its value, as text: "94.4 %"."""
        value = None if score is None or not math.isfinite(score) else score if self.more_is_better else -score
        return quantity(value, None, self.scale, self.digits, self.unit)

    def drawn(self, score: float) -> float:
        """A `score` as a point on an axis with `label`."""
        return self.scale * score if self.more_is_better else -self.scale * score

    @property
    def summary(self) -> str:
        """The headline value and the deciding one: "accuracy 97.0 ± 0.3 %, inductive 96.1 ± 0.4 %"."""
        quoted = f"{self.name} {self.text(self.headline)}"
        return quoted if self.selected == self.headline else f"{quoted}, {self.columns[self.selected]} {self.text(self.selected)}"

    @property
    def label(self) -> str:
        """The label of an axis: "accuracy (%)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def shown(self, column: int) -> tuple[float, float]:
        """The column's value and half-width times `scale`, for plots; NaN if missing."""
        value, half = (math.nan if number is None else self.scale * number for number in (self.values[column], self.ci95[column]))
        return value, half

    def difference(self, difference: float | None, ci95: float | None) -> str:
        """A difference of two such values as text: "+1.2 ± 0.5 points"."""
        unit = "points" if self.unit == "%" else self.unit
        return quantity(difference, ci95, self.scale, self.digits, unit, sign="+")


class _Stored(TypedDict):
    """The types and ranges of a Measurement's fields."""

    name: str
    unit: str
    scale: float
    digits: Annotated[int, Field(ge=0, le=12)]
    more_is_better: bool
    axis: str | None
    columns: Annotated[list[str], Field(min_length=1)]
    selected: Annotated[int, Field(ge=0)]
    headline: Annotated[int, Field(ge=0)]
    values: list[float | None]
    ci95: list[float | None]
    episodes: Annotated[int, Field(ge=0)]
    chance: float | None
    notes: list[str]


def score_of(value: float | None, more_is_better: bool) -> float:
    """`value` as a score (higher is better); -inf if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if more_is_better else -value


def quantity(value: float | None, ci95: float | None, scale: float, digits: int, unit: str, sign: str = "") -> str:
    """A number with its interval, if any, and its unit."""
    if value is None:
        return "not finite"
    interval = "" if ci95 is None else f" ± {scale * ci95:.{digits}f}"
    return f"{scale * value:{sign}.{digits}f}{interval} {unit}".rstrip()


_FORMER_ACCURACY = {"name": "accuracy", "unit": "%", "scale": 100.0, "digits": 1, "more_is_better": True, "axis": None}
_FORMER_ERROR = {"name": "squared error", "unit": "", "scale": 1.0, "digits": 3, "more_is_better": False, "axis": "inner steps"}


def measurement_of(evaluation: dict[str, Any]) -> Measurement:
    """The measurement in a result, a validation or a model's row in the registry. Raises RunError if there is none. Plain keys, as earlier
    versions stored them, are read too.
    """
    try:
        if KEY in evaluation:
            return _stored(evaluation[KEY])
        if "mse_by_step" in evaluation:
            return _former_error(evaluation["mse_by_step"], evaluation.get("ci95_by_step", {}), evaluation["episodes"])
        both = ("accuracy", "accuracy_inductive"), ("ci95", "ci95_inductive")
        values, ci95 = ([evaluation[key] for key in keys] for keys in both)
        return _former_accuracy(values, ci95, evaluation)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise RunError(f"a stored evaluation cannot be read: {error!r}", "evaluate the model again") from None


def baseline_name(test: dict[str, Any]) -> str:
    """Words for the baseline network in a test."""
    return test.get("baseline", "random initialisation")


def baseline_of(test: dict[str, Any]) -> Measurement:
    """The measurement of a test's untrained network. Raises RunError."""
    try:
        if BASELINE_KEY in test:
            return _stored(test[BASELINE_KEY])
        value, ci95 = test["random_init"], test["random_init_ci95"]
        return _former_error(value, ci95, test["episodes"]) if isinstance(value, dict) else _former_accuracy([value], [ci95], test)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise RunError(f"a stored evaluation cannot be read: {error!r}", "evaluate the model again") from None


def _stored(content: dict[str, Any]) -> Measurement:
    """Extra keys are allowed, because a later version may store more. Raises ValueError if the fields contradict each other."""
    known = {field.name: content[field.name] for field in fields(Measurement) if field.name in content}
    return _checked(Measurement(**known | {"notes": tuple(known.get("notes", ()))}))


def _checked(measurement: Measurement) -> Measurement:
    """Raises ValueError unless every column has a value and an interval, and `selected` and `headline` exist."""
    of_kind(_Stored, measurement.as_dict())
    lengths = {len(measurement.columns), len(measurement.values), len(measurement.ci95)}
    if len(lengths) != 1 or not max(measurement.selected, measurement.headline) < len(measurement.columns):
        raise ValueError(f"{len(measurement.columns)} columns, {len(measurement.values)} values and {len(measurement.ci95)} intervals")
    return measurement


def _former_accuracy(values: list[float], ci95: list[float], evaluation: dict[str, Any]) -> Measurement:
    columns = ["transductive", "inductive"][: len(values)]
    last, chance = len(columns) - 1, 1 / evaluation["way"] if "way" in evaluation else None
    return _checked(
        Measurement(
            **_FORMER_ACCURACY,  # type: ignore[arg-type]
            columns=columns,
            selected=last,
            headline=0,
            values=list(values),
            ci95=list(ci95),
            episodes=evaluation["episodes"],
            chance=chance,
        )
    )


def _former_error(by_step: dict[str, float], ci95: dict[str, float], episodes: int) -> Measurement:
    columns = sorted(by_step, key=int)
    last = len(columns) - 1
    return _checked(
        Measurement(
            **_FORMER_ERROR,  # type: ignore[arg-type]
            columns=columns,
            selected=last,
            headline=last,
            values=[by_step[column] for column in columns],
            ci95=[ci95.get(column) for column in columns],
            episodes=episodes,
        )
    )
