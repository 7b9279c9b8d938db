"""How good a learner is on fixed episodes, spread over the workers: the answer does not depend on how many there are."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.errors import DistmetaError
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.training.reduce import agree, sum_over_workers

RESULT = "result.json"  # in the run folder, once the final test was made
BY_EPISODE = "test_episodes.json"  # the test's figures of every episode, for paired comparisons

_UNIT = 2.0**-32  # of squared errors, which travel as integers


class Stream(Protocol):
    """Where evaluation episodes come from."""

    task: Task
    seed: int

    def evaluation(self, indices: list[int]) -> Iterator[EpisodeBatch]: ...


@dataclass(frozen=True)
class Setting:
    """On what an evaluation was made: so many episodes of this task, from this seed; adapted by so many inner steps."""

    episodes: int
    way: int
    shot: int
    queries: int
    seed: int
    inner_steps: int
    norm: str


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracies in 0..1 over fixed episodes, each with the half-width of its 95% interval (1.96 standard errors).

    `accuracy` normalises an episode's queries together (transductive, as published); `accuracy_inductive` each by the support set alone.
    `by_episode` (episodes, 2) holds both for each episode.
    """

    accuracy: float
    ci95: float
    accuracy_inductive: float
    ci95_inductive: float
    setting: Setting
    by_episode: Tensor

    @property
    def score(self) -> float:
        """What the best step is chosen by: higher is better."""
        return self.accuracy_inductive

    def as_dict(self) -> dict[str, Any]:
        named = ("accuracy", "ci95", "accuracy_inductive", "ci95_inductive")
        return {name: getattr(self, name) for name in named} | asdict(self.setting)

    def as_baseline(self) -> dict[str, Any]:
        """How a run's result names it when it is of the network that was not trained."""
        return {"random_init": self.accuracy, "random_init_ci95": self.ci95}

    def headline(self) -> dict[str, float]:
        """The figure to show while a run goes on."""
        return {"validation": self.score}


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error over fixed episodes after 0, 1, … inner steps, and the half-widths of the 95% intervals.

    `by_episode` (episodes, steps + 1) holds every episode's.
    """

    mse_by_step: dict[str, float]
    ci95_by_step: dict[str, float]
    setting: Setting
    by_episode: Tensor

    @property
    def score(self) -> float:
        return -self.mse_by_step[str(self.setting.inner_steps)]

    def as_dict(self) -> dict[str, Any]:
        return {"mse_by_step": self.mse_by_step, "ci95_by_step": self.ci95_by_step} | asdict(self.setting)

    def as_baseline(self) -> dict[str, Any]:
        return {"random_init": self.mse_by_step, "random_init_ci95": self.ci95_by_step}

    def headline(self) -> dict[str, float]:
        return {"validation_error": -self.score}


Evaluation = Accuracy | SquaredError


def block(count: int, rank: int, workers: int) -> list[int]:
    """The contiguous share of 0..count-1 that falls to `rank`; shares differ by at most one."""
    return list(range(rank * count // workers, (rank + 1) * count // workers))


def accuracy(learner: Learner, meta_params: Params, stream: Stream, episodes: int, norm: str, rank: int, workers: int) -> Accuracy:
    """Adapt to the support set of each of `episodes` fixed episodes of `stream` and count correct queries.

    Raises the worker's own failure, or PeerFailure where another worker failed.
    """

    counts = _on_all_workers(lambda indices: count_correct(learner, meta_params, stream, indices), 2, meta_params, episodes, rank, workers)
    return accuracy_of(counts, learner, stream, norm)


def count_correct(learner: Learner, meta_params: Params, stream: Stream, indices: list[int]) -> Tensor:
    """Correctly classified queries of these evaluation episodes, (len(indices), 2): normalised together, and each alone."""

    def count(support: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor) -> Tensor:
        logits = learner.predict(learner.adapt(meta_params, support, labels), queries)
        return torch.stack([(kind.argmax(1) == query_labels).sum() for kind in logits])

    return _each(count, 2, meta_params, stream, indices)


def accuracy_of(counts: Tensor, learner: Learner, stream: Stream, norm: str) -> Accuracy:
    """What the counts (episodes, 2) of `count_correct` come to."""
    by_episode = counts.double() / (stream.task.way * stream.task.queries)
    (transductive, ci95), (inductive, ci95_inductive) = (_mean_and_ci95(values) for values in by_episode.unbind(1))
    return Accuracy(transductive, ci95, inductive, ci95_inductive, _setting(learner, stream, len(counts), norm), by_episode)


def squared_error(learner: Learner, meta_params: Params, stream: Stream, episodes: int, norm: str, rank: int, workers: int) -> SquaredError:
    """The same in regression: the queries' mean squared error after 0, 1, … inner steps; a diverged one counts as 2^30."""

    def errors(support: Tensor, targets: Tensor, queries: Tensor, query_targets: Tensor) -> Tensor:
        outputs = [learner.predict(adapted, queries).inductive for adapted in learner.adaptation(meta_params, support, targets)]
        found = torch.stack([(output - query_targets).square().mean() for output in outputs]).double()
        return (found.nan_to_num(2.0**30, 2.0**30).clamp(max=2.0**30) / _UNIT).round().long()

    steps = learner.inner_steps_eval
    found = _on_all_workers(
        lambda indices: _each(errors, steps + 1, meta_params, stream, indices), steps + 1, meta_params, episodes, rank, workers
    )
    by_episode = found.double() * _UNIT
    figures = {str(step): _mean_and_ci95(by_episode[:, step]) for step in range(steps + 1)}
    mse, ci95 = ({step: figure[part] for step, figure in figures.items()} for part in (0, 1))
    return SquaredError(mse, ci95, _setting(learner, stream, episodes, norm), by_episode)


def paired_difference(ours: Evaluation, theirs: Evaluation, inductive: bool = False) -> dict[str, float]:
    """Mean over episodes of (ours - theirs), each on the same episode, with the half-width of its 95% interval.

    Of the transductive accuracy, or the `inductive` one; in regression, of the squared error after the last inner step.
    """
    column = 0 if isinstance(ours, Accuracy) and not inductive else -1
    difference, ci95 = _mean_and_ci95(ours.by_episode[:, column] - theirs.by_episode[:, column])
    return {"difference": difference, "difference_ci95": ci95}


def _each(score: Callable[..., Tensor], columns: int, meta_params: Params, stream: Stream, indices: list[int]) -> Tensor:
    """(len(indices), columns) integers: `score` of each episode's support, labels, queries and query labels."""
    parameter = next(iter(meta_params.values()))
    rows = torch.zeros(len(indices), columns, dtype=torch.int64, device=parameter.device)
    place = {index: row for row, index in enumerate(indices)}
    for batch in stream.evaluation(indices):
        _, found, *tensors = batch.like(parameter)
        for index, *episode in zip(found, *tensors, strict=True):
            rows[place[index]] = score(*episode)
    return rows


def _on_all_workers(
    scores: Callable[[list[int]], Tensor], columns: int, meta_params: Params, episodes: int, rank: int, workers: int
) -> Tensor:
    """(episodes, columns) integers on every worker, each of which finds those of its share."""
    device = next(iter(meta_params.values())).device
    everything = torch.zeros(episodes, columns, dtype=torch.int64, device=device)
    share, failure = block(episodes, rank, workers), None
    try:
        everything[share] = scores(share)
    except DistmetaError as error:
        failure = error
    agree(failure, device, workers)
    return sum_over_workers(everything, workers).cpu()


def _setting(learner: Learner, stream: Stream, episodes: int, norm: str) -> Setting:
    task = stream.task
    return Setting(episodes, task.way, task.shot, task.queries, stream.seed, learner.inner_steps_eval, norm)


def _mean_and_ci95(values: Tensor) -> tuple[float, float]:
    spread = values.std().item() if len(values) > 1 else float("nan")
    return values.mean().item(), 1.96 * spread / len(values) ** 0.5
