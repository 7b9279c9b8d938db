"""The loss of a task's support and query data. A domain gives it to its learner."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import DataError
from distmeta.learners.forward import Network

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SHOWN = 8  # maximum class numbers in a message


class Cost(NamedTuple):
    """Losses (T,) of T tasks, and their scores (T,) if the objective names one. Scores are shown while a run trains."""

    losses: Tensor
    scores: Tensor | None = None


class Objective(ABC):
    """The loss of tasks. A learner requests the support loss at each φ, so support data may depend on φ: a policy acts, then learns.

    `network` maps inputs (T, M, …) to outputs (T, M, N), with one set of parameters for each of the T tasks of `batch`. Anything random
    must be a function of the batch and of `step` alone, because the same call may be repeated.
    """

    score: ClassVar[str | None] = None
    """Key of the mean training score in a run's metrics, in the metric's unit. If it is the metric's name, both curves share a plot. None:
    training is not scored.
    """

    @abstractmethod
    def support(self, network: Network, batch: Any, step: int) -> Cost:
        """The cost of the support data after `step` inner steps, which adapting minimises. It is differentiable by network.params."""

    @abstractmethod
    def query(self, network: Network, batch: Any, step: int) -> Cost:
        """The cost of the query data after `step` inner steps, which the outer loop minimises."""

    def pooled(self, batch: Any) -> Any:
        """`batch` with all data of a task as its support data, for learners without queries. Default: `batch`."""
        return batch

    def part(self, batch: Any, step: int, size: int | None) -> Any:
        """`batch` with the `size` support examples of inner step `step` (None: all). Default: `batch`."""
        return batch

    def check_targets(self, targets: Tensor, outputs: int | None) -> None:
        """Check users' targets (M, …) for a network with `outputs` outputs (None: any number of classes). Raises DataError if they are not
        valid. Default: no check.
        """
        return None

    def network(self, network: nn.Module) -> nn.Module:
        """The module to train: the `network` of config.model, or a wrapper of it (a policy adds its noise). Default: `network`."""
        return network


class Supervised(Objective):
    """Examples with targets, which exist before anything adapts: an `EpisodeBatch`."""

    def support(self, network: Network, batch: EpisodeBatch, step: int) -> Cost:
        return self.cost(network(batch.support_images), batch.support_labels)

    def query(self, network: Network, batch: EpisodeBatch, step: int) -> Cost:
        return self.cost(network(batch.query_images), batch.query_labels)

    def pooled(self, batch: EpisodeBatch) -> EpisodeBatch:
        images = torch.cat([batch.support_images, batch.query_images], 1)
        return replace(batch, support_images=images, support_labels=torch.cat([batch.support_labels, batch.query_labels], 1))

    def part(self, batch: EpisodeBatch, step: int, size: int | None) -> EpisodeBatch:
        order = self.order(batch.support_labels)
        count = min(size or len(order), len(order))
        chosen = order[torch.arange(step * count, (step + 1) * count) % len(order)]
        return replace(batch, support_images=batch.support_images[:, chosen], support_labels=batch.support_labels[:, chosen])

    @abstractmethod
    def cost(self, outputs: Tensor, targets: Tensor) -> Cost:
        """From outputs (T, M, N) and targets (T, M, …), means over the M examples, so that inner_lr does not depend on M."""

    def order(self, targets: Tensor) -> Tensor:
        """The order (M,) in which examples are used by inner steps on parts of the support set."""
        return torch.arange(targets.shape[1])


class CrossEntropy(Supervised):
    """Classification: mean cross-entropy in nats; targets (T, M) are class numbers. Scored by accuracy."""

    score = "accuracy"

    def cost(self, outputs: Tensor, targets: Tensor) -> Cost:
        losses = cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)
        return Cost(losses, (outputs.detach().argmax(-1) == targets).double().mean(1))

    def check_targets(self, targets: Tensor, outputs: int | None) -> None:
        if targets.dim() != 1 or targets.dtype not in _INTEGERS:
            raise DataError(f"targets are {kind_of(targets)}; class numbers (M,) are needed", "give one whole number for each input")
        classes = targets.unique().tolist()
        if classes != list(range(outputs or max(2, len(classes)))):
            wanted = f"0..{outputs - 1}" if outputs else "0, 1, … without gaps, at least two"
            shown = ", ".join(str(number) for number in classes[:_SHOWN]) + (", …" if len(classes) > _SHOWN else "")
            raise DataError(f"the class numbers are {shown}; {wanted} are needed", "give examples of exactly these classes")

    def order(self, targets: Tensor) -> Tensor:
        """Classes alternate; the labels of all tasks are in the same places."""
        labels = targets[0]
        turns = (labels[:, None] == labels).tril(-1).sum(1)  # the number of earlier examples of the same class
        return (turns * len(labels) + labels).argsort(stable=True)


class SquaredError(Supervised):
    """Regression: mean squared error over the M examples and N values; targets (T, M, N)."""

    def cost(self, outputs: Tensor, targets: Tensor) -> Cost:
        return Cost((outputs - targets).square().flatten(1).mean(1))

    def check_targets(self, targets: Tensor, outputs: int | None) -> None:
        wanted = (len(targets), outputs)
        if tuple(targets.shape) != wanted or not targets.is_floating_point():
            raise DataError(f"targets are {kind_of(targets)}; real numbers {wanted} are needed", "give a row of numbers for each input")
        check_finite(targets, "target")


def check_finite(values: Tensor, what: str) -> None:
    """Raises DataError unless all of `values` (M, …) are finite; `what` names one of the M."""
    finite = values.isfinite().unsqueeze(-1).flatten(1).all(1)
    if not finite.all():
        number = int(finite.int().argmin())
        raise DataError(f"{what} {number} holds values that are not finite (NaN or infinity)", "check how it was computed")


def kind_of(tensor: Tensor) -> str:
    """Type and shape as text: "float32 (5, 1)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
