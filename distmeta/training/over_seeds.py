"""Means of runs that differ only in their seed, with separate intervals over seeds and over episodes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distmeta.training.intervals import FEWEST, FEWEST_SEEDS, mean_and_ci95
from distmeta.training.measurement import Measurement
from distmeta.training.model_folder import Rows


class OverSeeds(NamedTuple):
    """Two measurements with the same values (means over seeds and episodes) and different intervals.

    The interval of `over_seeds` is over the seeds' means: it shows how far another training run may differ. The interval of `over_episodes`
    is over episodes, each scored by the mean of the networks: it shows how precisely these networks were measured.
    """

    over_seeds: Measurement
    over_episodes: Measurement


def scores_of(by_episode: Rows) -> NDArray[np.float64]:
    """(episodes, columns); NaN if a score is not finite."""
    return np.array([[np.nan if value is None else value for value in row] for row in by_episode], np.float64)


def over_seeds(measurement: Measurement, tests: Sequence[Rows]) -> OverSeeds:
    """`tests` holds each seed's scores of the same episodes; `measurement` is the measurement of any of them."""
    scores = np.stack([scores_of(rows) for rows in tests])  # (seeds, episodes, columns)

    def measured(values: NDArray[np.float64], fewest: int) -> Measurement:
        intervals = [mean_and_ci95(column, fewest) for column in values.T]
        return replace(measurement, values=[mean for mean, _ in intervals], ci95=[ci95 for _, ci95 in intervals], episodes=scores.shape[1])

    return OverSeeds(measured(scores.mean(1), FEWEST_SEEDS), measured(scores.mean(0), FEWEST))
