"""Scores a learner on fixed episodes, spread over the workers. The result does not depend on their number."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distmeta.data.episodes import Batch, Task
from distmeta.errors import DistmetaError
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, floating
from distmeta.training.intervals import mean_and_ci95
from distmeta.training.measurement import BASELINE_KEY, KEY, Measurement
from distmeta.training.metric import Metric
from distmeta.training.reduce import agree, sum_over_workers


class Stream(Protocol):
    """A source of evaluation episodes."""

    task: Task
    seed: int

    def evaluation(self, indices: list[int]) -> Iterator[Batch]:
        """The episodes with these indices, in batches of any size and order; each batch's `slots` are its indices."""


@dataclass(frozen=True)
class Setting:
    """The conditions of an evaluation: number of episodes, task, seed and inner steps."""

    episodes: int
    way: int
    shot: int
    queries: int
    seed: int
    inner_steps: int
    norm: str


@dataclass(frozen=True)
class Evaluation:
    """A learner's result on fixed episodes. `by_episode` (episodes, columns) holds every episode's scores, `keys` the plain keys stored
    beside the measurement, and `beside` (episodes, beside) what the metric keeps of every episode beyond its scores.
    """

    measurement: Measurement
    keys: dict[str, Any]
    setting: Setting
    by_episode: Tensor
    beside: Tensor | None = None

    @property
    def score(self) -> float:
        """The score by which the best step is chosen: higher is better, -inf if it is not finite."""
        return self.measurement.score

    @property
    def headline(self) -> Tensor:
        """The scores to quote, (episodes,)."""
        return self.by_episode[:, self.measurement.headline]

    @property
    def selected(self) -> Tensor:
        """The scores that decide, (episodes,)."""
        return self.by_episode[:, self.measurement.selected]

    @property
    def stored_score(self) -> float | None:
        """The score for JSON, which has no infinity: None if it is not finite."""
        return self.score if math.isfinite(self.score) else None

    def as_dict(self) -> dict[str, Any]:
        return self.keys | asdict(self.setting) | {KEY: self.measurement.as_dict()}

    def as_baseline(self) -> dict[str, Any]:
        """The keys of a run's result for this evaluation of the untrained network."""
        value, ci95 = list(self.keys.values())[:2]
        return {"random_init": value, "random_init_ci95": ci95, BASELINE_KEY: self.measurement.as_dict()}

    def rows(self) -> list[list[float | None]]:
        """Every episode's scores for JSON, which has no NaN."""
        return [[value if math.isfinite(value) else None for value in row] for row in self.by_episode.tolist()]


def block(count: int, rank: int, workers: int) -> list[int]:
    """The contiguous share of 0..count-1 that `rank` evaluates; sizes of shares differ by at most one."""
    return list(range(rank * count // workers, (rank + 1) * count // workers))


def evaluate(
    metric: Metric, learner: Learner, meta_params: Params, stream: Stream, episodes: int, norm: str, rank: int = 0, workers: int = 1
) -> Evaluation:
    """Score `episodes` fixed episodes of `stream`; this worker scores its share. Raises this worker's own failure, or PeerFailure if
    another worker failed.
    """
    device = next(iter(meta_params.values())).device
    everything = torch.zeros(episodes, width(metric, learner), dtype=torch.float64, device=device)
    share, failure = block(episodes, rank, workers), None
    try:
        everything[share] = scores(metric, learner, meta_params, stream, share)
    except DistmetaError as error:
        failure = error
    agree(failure, device, workers)
    # For each episode all workers but one contribute zeros, so the sum is exact.
    return evaluation_of(metric, sum_over_workers(everything, workers).cpu(), learner, stream, norm)


def width(metric: Metric, learner: Learner) -> int:
    """How many numbers `metric` gives of an episode: its columns, and what it keeps beside them."""
    return len(metric.columns(learner)) + metric.beside


def scores(metric: Metric, learner: Learner, meta_params: Params, stream: Stream, indices: list[int]) -> Tensor:
    """The scores of these evaluation episodes, (len(indices), width), in float64."""
    parameter = floating(meta_params)
    rows = torch.zeros(len(indices), width(metric, learner), dtype=torch.float64, device=parameter.device)
    place = {index: row for row, index in enumerate(indices)}
    with learner.keeping_features(meta_params):
        for batch in stream.evaluation(indices) if indices else ():  # with more workers than episodes, some have none
            rows[[place[index] for index in batch.slots]] = metric.scores(learner, meta_params, batch.like(parameter))
    return rows


def evaluation_of(metric: Metric, by_episode: Tensor, learner: Learner, stream: Stream, norm: str) -> Evaluation:
    """What the scores (episodes, width) of `scores` come to."""
    task = stream.task
    by_episode, beside = by_episode.tensor_split([len(metric.columns(learner))], dim=1)
    measurement = metric.measure(learner, task, by_episode)
    setting = Setting(
        episodes=len(by_episode),
        way=task.way,
        shot=task.shot,
        queries=task.queries,
        seed=stream.seed,
        inner_steps=learner.inner_steps_eval,
        norm=norm,
    )
    return Evaluation(measurement, metric.keys(measurement), setting, by_episode=by_episode, beside=beside)


def paired_difference(ours: Tensor, theirs: Tensor) -> dict[str, float | None]:
    """Mean of `ours` - `theirs`, scores (episodes,) of the same episodes, with the half-width of its 95% interval."""
    difference, ci95 = mean_and_ci95((ours - theirs).numpy())
    return {"difference": difference, "difference_ci95": ci95}
