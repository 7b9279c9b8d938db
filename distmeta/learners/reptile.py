"""Reptile: move θ towards where plain training on a task ends (Nichol, Achiam & Schulman 2018, arXiv:1803.02999)."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from distmeta.data.episodes import Batch
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward, Network
from distmeta.learners.inner import MetaGradients, gradients_of
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

    def task_gradients(self, params: Params, forward: Forward, batch: Batch) -> MetaGradients:
        start = {name: params[name] for name in self.adapted}
        *_, fast_weights = self.descent(forward, params, start, self.objective.pooled(batch), self.inner_steps)
        with torch.no_grad():
            losses, scores = self.objective.query(Network(forward, params | fast_weights, 2 * self.inner_steps), batch, self.inner_steps)
        gradients = {name: (params[name] - fast_weights[name]).detach() for name in self.adapted}
        return MetaGradients(gradients, losses, scores)

    def descent(self, forward: Forward, params: Params, fast_weights: Params, batch: Batch, steps: int) -> Iterator[Params]:
        squares = {name: torch.zeros_like(value) for name, value in fast_weights.items()}
        for step in range(steps):
            fast_weights = leaves(fast_weights)
            part = self.objective.part(batch, step, self.inner_batch)
            losses = self.objective.support(Network(forward, params | fast_weights, 2 * step), part, step).losses
            gradients = gradients_of(losses, fast_weights)
            if self.inner_optimizer == "adam":
                squares = {name: _DECAY * squares[name] + (1 - _DECAY) * gradients[name].square() for name in squares}
                unbiased = 1 - _DECAY ** (step + 1)
                gradients = {name: gradients[name] / ((squares[name] / unbiased).sqrt() + _EPSILON) for name in squares}
            fast_weights = detached({name: value - self.inner_lr * gradients[name] for name, value in fast_weights.items()})
            yield fast_weights
