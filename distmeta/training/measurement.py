"""What a model came to on fixed episodes, as it is stored: name, unit, direction, values and intervals, so that readers import nothing."""

import math
from dataclasses import asdict, dataclass
from typing import Any

KEY = "measurement"  # in every dictionary that holds an evaluation


@dataclass(frozen=True)
class Measurement:
    """Means over `episodes` episodes, one for each of `columns`, with the half-widths of their 95% intervals.

    A value that was not finite is None, and worse than any other; an interval is None if there are too few episodes. Shown are
    `scale` times the values, with `digits` decimals, in `unit`. `axis` names what the columns count ("inner steps"); without one they
    are kinds ("inductive"). The column `selected` decides which step and trial is best; `headline` is the one to quote, as papers do.
    `chance` is what guessing would score.
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def score(self) -> float:
        """What runs, steps and trials are ranked by: higher is better, -inf if the value was not finite."""
        return score_of(self.values[self.selected], self.more_is_better)

    def text(self, column: int) -> str:
        """The column's value for people: "97.0 ± 0.3 %"."""
        return quantity(self.values[column], self.ci95[column], self.scale, self.digits, self.unit)

    def difference(self, difference: float | None, ci95: float | None) -> str:
        """A difference of two such values for people: "+1.2 ± 0.5 points"."""
        unit = "points" if self.unit == "%" else self.unit
        return quantity(difference, ci95, self.scale, self.digits, unit, sign="+")


def score_of(value: float | None, more_is_better: bool) -> float:
    """`value` as a score, of which higher is better; -inf if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if more_is_better else -value


def quantity(value: float | None, ci95: float | None, scale: float, digits: int, unit: str, sign: str = "") -> str:
    """A number with its interval, if there is one, and its unit."""
    if value is None:
        return "not finite"
    interval = "" if ci95 is None else f" ± {scale * ci95:.{digits}f}"
    return f"{scale * value:{sign}.{digits}f}{interval} {unit}".rstrip()
