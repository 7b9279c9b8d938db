"""What runs that differ in their seed alone come to together, with the two uncertainties of it kept apart."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distmeta.training.intervals import FEWEST, FEWEST_SEEDS, mean_and_ci95
from distmeta.training.measurement import Measurement
from distmeta.training.model_folder import Rows


class OverSeeds(NamedTuple):
    """Two measurements with the same values, the means over seeds and episodes, and different intervals.

    `over_seeds` says how far another training run may come out from here: its interval is over the seeds' means. `over_episodes` says how
    well these very networks are known: its interval is over episodes, each scored by the mean of the networks.
    """

    over_seeds: Measurement
    over_episodes: Measurement


def scores_of(by_episode: Rows) -> NDArray[np.float64]:
    """(episodes, columns); NaN where a figure was not finite."""
    return np.array([[np.nan if value is None else value for value in row] for row in by_episode], np.float64)


def over_seeds(measurement: Measurement, tests: Sequence[Rows]) -> OverSeeds:
    """`tests` holds each seed's scores of the same episodes; `measurement` is that of any of them."""
    scores = np.stack([scores_of(rows) for rows in tests])  # (seeds, episodes, columns)

    def measured(values: NDArray[np.float64], fewest: int) -> Measurement:
        intervals = [mean_and_ci95(column, fewest) for column in values.T]
        return replace(measurement, values=[mean for mean, _ in intervals], ci95=[ci95 for _, ci95 in intervals], episodes=scores.shape[1])

    return OverSeeds(measured(scores.mean(1), FEWEST_SEEDS), measured(scores.mean(0), FEWEST))
