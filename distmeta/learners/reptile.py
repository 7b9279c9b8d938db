"""Reptile: move θ towards where plain training on a task ends (Nichol, Achiam & Schulman 2018, arXiv:1803.02999)."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward
from distmeta.learners.inner import gradients_of
from distmeta.learners.learner import TaskGradients
from distmeta.learners.loss import task_losses
from distmeta.learners.params import Params, detached, leaves

_DECAY, _EPSILON = 0.999, 1e-8  # Adam's; its first moment is left out, as Reptile's authors do (β1 = 0)


class Reptile(FineTuning):
    """A task's meta-gradient is θ - φ_k, after inner_steps of SGD or Adam on all its images (algorithm 2, batched).

    With outer.optimizer sgd, outer.lr is the paper's ε; anneal it with outer.schedule linear. `inner_batch` images make an inner step,
    taken in turn so that classes alternate (all images if None); a support set smaller than that is used whole at each step.
    """

    def __init__(
        self, model: nn.Module, inner_optimizer: Literal["sgd", "adam"] = "sgd", inner_batch: int | None = None, **fine_tuning: Any
    ) -> None:
        super().__init__(model, **fine_tuning)
        self.inner_optimizer = inner_optimizer
        self.inner_batch = inner_batch

    def task_gradients(self, params: Params, forward: Forward, batch: EpisodeBatch) -> TaskGradients:
        inputs = torch.cat([batch.support_images, batch.query_images], 1)
        targets = torch.cat([batch.support_labels, batch.query_labels], 1)
        start = {name: params[name] for name in self.adapted}
        *_, fast_weights = self.descent(forward, params, start, inputs, targets, self.inner_steps)
        with torch.no_grad():
            outputs = forward(params | fast_weights, batch.query_images, 2 * self.inner_steps)
        losses = task_losses(outputs, batch.query_labels)
        gradients = {name: (params[name] - fast_weights[name]).detach() for name in self.adapted}
        return TaskGradients(gradients, losses, outputs, batch.query_labels)

    def descent(
        self, forward: Forward, params: Params, fast_weights: Params, inputs: Tensor, targets: Tensor, steps: int
    ) -> Iterator[Params]:
        order = _alternating(targets)
        size = min(self.inner_batch or len(order), len(order))
        squares = {name: torch.zeros_like(value) for name, value in fast_weights.items()}
        for step in range(steps):
            chosen = order[torch.arange(step * size, (step + 1) * size) % len(order)]
            fast_weights = leaves(fast_weights)
            losses = task_losses(forward(params | fast_weights, inputs[:, chosen], 2 * step), targets[:, chosen])
            gradients = gradients_of(losses, fast_weights)
            if self.inner_optimizer == "adam":
                squares = {name: _DECAY * squares[name] + (1 - _DECAY) * gradients[name].square() for name in squares}
                unbiased = 1 - _DECAY ** (step + 1)
                gradients = {name: gradients[name] / ((squares[name] / unbiased).sqrt() + _EPSILON) for name in squares}
            fast_weights = detached({name: value - self.inner_lr * gradients[name] for name, value in fast_weights.items()})
            yield fast_weights


def _alternating(targets: Tensor) -> Tensor:
    """An order of a task's examples (M,) in which classes take turns; all tasks have their labels in the same places."""
    if targets.is_floating_point():
        return torch.arange(targets.shape[1])
    labels = targets[0]
    turns = (labels[:, None] == labels).tril(-1).sum(1)  # how many of its class stand before an example
    return (turns * len(labels) + labels).argsort(stable=True)
