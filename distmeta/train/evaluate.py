"""Accuracy on fixed episodes, spread over the workers: the answer does not depend on how many there are."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from distmeta.data.stream import EpisodeStream
from distmeta.errors import DistmetaError
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params
from distmeta.train.reduce import agree, sum_over_workers


@dataclass(frozen=True)
class Evaluation:
    """Mean accuracies in 0..1 over `episodes` fixed episodes, each with the half-width of its 95% interval (1.96 standard errors).

    `accuracy` normalises an episode's queries together (transductive, as published); `accuracy_inductive` each by the support set alone.
    """

    accuracy: float
    ci95: float
    accuracy_inductive: float
    ci95_inductive: float
    episodes: int
    way: int
    shot: int
    queries: int
    seed: int
    inner_steps: int
    norm: str = "batch"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def block(count: int, rank: int, workers: int) -> list[int]:
    """The contiguous share of 0..count-1 that falls to `rank`; shares differ by at most one."""
    return list(range(rank * count // workers, (rank + 1) * count // workers))


def evaluate(learner: MAML, meta_params: Params, stream: EpisodeStream, episodes: int, rank: int, workers: int) -> Evaluation:
    """Adapt to the support set of each of `episodes` fixed episodes of `stream` and count correct queries.

    Raises the worker's own failure, or PeerFailure where another worker failed.
    """
    parameter = next(iter(meta_params.values()))
    correct = torch.zeros(episodes, 2, dtype=torch.int64, device=parameter.device)
    failure = None
    try:
        for batch in stream.evaluation(block(episodes, rank, workers)):
            for index, support, support_labels, queries, query_labels in zip(*batch.like(parameter)[1:], strict=True):
                logits = learner.predict(learner.adapt(meta_params, support, support_labels), queries)
                correct[index] = torch.stack([(kind.argmax(1) == query_labels).sum() for kind in logits])
    except DistmetaError as error:
        failure = error
    agree(failure, parameter.device)
    task = stream.task
    (accuracy, ci95), (inductive, ci95_inductive) = (
        _mean_and_ci95(counts / (task.way * task.queries)) for counts in sum_over_workers(correct).double().cpu().unbind(1)
    )
    return Evaluation(
        accuracy, ci95, inductive, ci95_inductive, episodes, task.way, task.shot, task.queries, stream.seed, learner.inner_steps_eval
    )


def _mean_and_ci95(accuracies: Tensor) -> tuple[float, float]:
    spread = accuracies.std().item() if len(accuracies) > 1 else float("nan")
    return accuracies.mean().item(), 1.96 * spread / len(accuracies) ** 0.5
