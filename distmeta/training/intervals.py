"""Confidence intervals and tests of means and differences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # not scipy.stats, because importing it takes each worker half a second

FEWEST = 5
"""Minimum number of values for an interval. With fewer it would be a guess."""
FEWEST_SEEDS = 2
"""The same for means over whole tests. Such means are close to normally distributed."""

Values = Sequence[float] | NDArray[np.float64]


def mean_and_ci95(values: Values, fewest: int = FEWEST) -> tuple[float | None, float | None]:
    """The mean of independent values, and the half-width of its 95% interval by Student's t (Student 1908, Biometrika 6).

    The mean is None if there are no values or one is not finite. The half-width is None also for fewer than `fewest` values.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return None, None
    mean = float(numbers.mean())
    if len(numbers) < fewest:
        return mean, None
    return mean, float(stdtrit(len(numbers) - 1, 0.975) * numbers.std(ddof=1) / len(numbers) ** 0.5)


class Paired(NamedTuple):
    """The mean of a - b, the half-width of its 95% interval, and the p-value. None is unknown."""

    difference: float | None
    ci95: float | None
    p: float | None


def paired(a: Values, b: Values, fewest: int = FEWEST) -> Paired:
    """Student's paired test, two-sided. If the differences do not vary, p = 1."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference, ci95 = mean_and_ci95(first - second, fewest)
    if difference is None:
        return Paired(None, None, None)
    differences = first - second
    if len(differences) < 2 or not np.ptp(differences):
        return Paired(difference, ci95, 1.0)
    t = difference / (differences.std(ddof=1) / len(differences) ** 0.5)
    return Paired(difference, ci95, float(2 * stdtr(len(differences) - 1, -abs(t))))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979, Scandinavian Journal of Statistics 6).

    If all hypotheses with an adjusted p below 5% are rejected, the probability of any wrong rejection is at most 5%, under any dependence.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted
