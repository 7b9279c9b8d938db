"""The interface of metrics: how an episode is scored, and what the numbers mean."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from distmeta.data.episodes import Batch, Task
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.training.intervals import mean_and_ci95
from distmeta.training.measurement import Measurement


class Metric(ABC):
    """Scores an episode in one or more columns, and names unit and direction. By default the columns are the scores after 0, 1, … inner
    steps, and the last one decides.
    """

    name: ClassVar[str]
    """Such as "accuracy"; printed with every number."""
    unit: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    """Factor between stored and printed numbers, such as 100 for fractions printed in %."""
    digits: ClassVar[int] = 3
    """Decimals printed."""
    more_is_better: ClassVar[bool] = True
    axis: ClassVar[str | None] = "inner steps"
    """What the columns count. None if they are kinds of score, such as "inductive"."""
    selected: ClassVar[int] = -1
    """The column by which the best step, trial and model are chosen."""
    headline: ClassVar[int] = -1
    """The column to quote."""
    notes: ClassVar[tuple[str, ...]] = ()
    """An explanation of each column; may be empty."""
    beside: int = 0
    """How many further numbers `score` returns behind those of the columns; they are kept for each episode and not averaged."""

    @abstractmethod
    def score(self, learner: Learner, meta_params: Params, episode: Any) -> Tensor:
        """One number for each column (columns + beside,), of a batch that holds one episode. A number that is not finite counts as the
        worst."""

    def scores(self, learner: Learner, meta_params: Params, batch: Batch) -> Tensor:
        """The same for every episode of a batch, (B, columns + beside). Their bits must not depend on which others the batch holds."""
        return torch.stack([self.score(learner, meta_params, episode).double() for episode in batch.each()])

    def columns(self, learner: Learner) -> list[str]:
        """Names of the values that `score` returns for an episode, in order (default: 0, 1, … inner steps)."""
        return [str(step) for step in range(learner.inner_steps_eval + 1)]

    def chance(self, task: Task) -> float | None:
        """The score of guessing, or None if guessing is not defined."""
        return None

    def keys(self, measurement: Measurement) -> dict[str, Any]:
        """The plain keys of results, metrics and MLflow, beside the measurement: numbers, or {column: number}.

        The first key holds the value to quote, or all values by column; the second holds the interval.
        """
        name, suffix = self.name.replace(" ", "_"), "_by_step" if self.axis else ""
        values, ci95 = (dict(zip(measurement.columns, numbers, strict=True)) for numbers in (measurement.values, measurement.ci95))
        return {f"{name}{suffix}": values, f"{name}_ci95{suffix}": ci95}

    def measure(self, learner: Learner, task: Task, by_episode: Tensor) -> Measurement:
        """Means and intervals of scores (episodes, columns)."""
        columns = self.columns(learner)
        means = [mean_and_ci95(column.numpy()) for column in by_episode.double().unbind(1)]
        return Measurement(
            name=self.name,
            unit=self.unit,
            scale=self.scale,
            digits=self.digits,
            more_is_better=self.more_is_better,
            axis=self.axis,
            columns=columns,
            selected=self.selected % len(columns),
            headline=self.headline % len(columns),
            values=[mean for mean, _ in means],
            ci95=[ci95 for _, ci95 in means],
            episodes=len(by_episode),
            chance=self.chance(task),
            notes=self.notes,
        )
