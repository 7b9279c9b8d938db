"""What a task's parameters cost: the loss of its support and query data, which a domain gives to its learner."""

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
_SHOWN = 8  # class numbers in a message


class Cost(NamedTuple):
    """Losses (T,) of T tasks and, where the objective names one, their scores (T,): what people watch while a run trains."""

    losses: Tensor
    scores: Tensor | None = None


class Objective(ABC):
    """How tasks become losses. A learner asks for the support loss at each φ, so support data may depend on φ: a policy acts, then learns.

    `network` maps inputs (T, M, …) to outputs (T, M, N), with one set of parameters for each of the T tasks of `batch`. Anything random
    must be a function of the batch and of `step` alone, because the same call may be repeated.
    """

    score: ClassVar[str | None] = None
    """Key of the mean training score in a run's metrics, in the metric's unit. Named as the metric is, its curve joins the validations'.

    None: nothing is scored in training.
    """

    @abstractmethod
    def support(self, network: Network, batch: Any, step: int) -> Cost:
        """The cost of the support data after `step` inner steps, which adapting descends; differentiable by network.params."""

    @abstractmethod
    def query(self, network: Network, batch: Any, step: int) -> Cost:
        """The cost of the query data after `step` inner steps, which the outer loop descends."""

    def pooled(self, batch: Any) -> Any:
        """`batch` with all data of a task as its support data, for learners that use no queries. Default: `batch`."""
        return batch

    def part(self, batch: Any, step: int, size: int | None) -> Any:
        """`batch` with the `size` support examples of inner step `step` (None: all). Default: `batch`."""
        return batch

    def check_targets(self, targets: Tensor, outputs: int | None) -> None:
        """Raises DataError unless a task may have the targets (M, …) of M examples, where the network has so many `outputs` (None: any
        number of classes is learned). For targets that people give. Default: nothing is checked."""
        return None

    def network(self, network: nn.Module) -> nn.Module:
        """The module to train: `network`, which config.model names, or one around it (a policy adds its noise). Default: `network`."""
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
        """The order (M,) in which examples make inner steps of fewer than all."""
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
            wanted = f"0..{outputs - 1}" if outputs else "0, 1, … without a gap, two at least"
            shown = ", ".join(str(number) for number in classes[:_SHOWN]) + (", …" if len(classes) > _SHOWN else "")
            raise DataError(f"the class numbers are {shown}; {wanted} are needed", "give examples of each class, and of no other")

    def order(self, targets: Tensor) -> Tensor:
        """Classes take turns; all tasks have their labels in the same places."""
        labels = targets[0]
        turns = (labels[:, None] == labels).tril(-1).sum(1)  # how many of its class stand before an example
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
        raise DataError(f"{what} {number} holds values that are not finite (NaN or infinity)", "look at what made it")


def kind_of(tensor: Tensor) -> str:
    """Type and shape for people: "float32 (5, 1)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
