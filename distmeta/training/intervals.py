"""The one place where means get their uncertainty."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

FEWEST = 5
"""Values below which no interval is given: it would be a guess."""


def mean_and_ci95(values: Sequence[float] | NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The mean of independent values, and the half-width of its 95% interval by Student's t (Student 1908, Biometrika 6).

    The mean is None if a value is not finite or there is none; the half-width also for fewer than `FEWEST` values.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return None, None
    mean = float(numbers.mean())
    if len(numbers) < FEWEST:
        return mean, None
    return mean, float(stdtrit(len(numbers) - 1, 0.975) * numbers.std(ddof=1) / len(numbers) ** 0.5)
