"""Reptile: move θ towards where plain training on a task ends (Nichol, Achiam & Schulman 2018, arXiv:1803.02999)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from distmeta.bounds import Positive
from distmeta.data.episodes import Batch
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward, Network
from distmeta.learners.inner import InnerLoop, MetaGradients
from distmeta.learners.params import Params, detached, leaves


class Reptile(FineTuning):
    """A task's meta-gradient is θ - φ_k, after inner_steps on all its images (algorithm 2, batched).

    With outer.optimizer sgd, outer.lr is the paper's ε; anneal it with outer.schedule linear. An inner step uses `inner_batch` images,
    chosen in turn so that classes alternate (default: all images). A smaller support set is used whole at each step. `inner_batch_eval` is
    the same for evaluation and prediction (default: inner_batch). Reptile's authors use Adam without its first moment (β1 = 0). With
    inner_optimizer adam this learner does the same, for any inner_momentum.
    """

    def __init__(
        self, model: nn.Module, inner_batch: Positive | None = None, inner_batch_eval: Positive | None = None, **fine_tuning: Any
    ) -> None:
        super().__init__(model, **fine_tuning)
        self.inner_batch = inner_batch
        self.inner_batch_eval = inner_batch if inner_batch_eval is None else inner_batch_eval
        if self.optimizer.name == "adam":
            self.optimizer = self.optimizer._replace(momentum=0.0)

    def task_gradients(self, params: Params, forward: Forward, batch: Batch) -> MetaGradients:
        *_, fast_weights = self._in_batches(forward, params, self.objective.pooled(batch), self.inner_steps, self.inner_batch)
        with torch.no_grad():
            losses, scores = self.objective.query(Network(forward, params | fast_weights, 2 * self.inner_steps), batch, self.inner_steps)
        gradients = {name: torch.zeros_like(value) for name, value in self.trained(params).items()}
        gradients |= {name: (params[name] - value).detach() for name, value in fast_weights.items()}
        return MetaGradients(gradients, losses, scores)

    def descent(self, forward: Forward, params: Params, batch: Batch, steps: int) -> Iterator[Params]:
        yield from self._in_batches(forward, params, batch, steps, self.inner_batch_eval)

    def _in_batches(self, forward: Forward, params: Params, batch: Batch, steps: int, size: int | None) -> Iterator[Params]:
        loop = InnerLoop(
            forward=forward, objective=self.objective, rate=self.rate, adapted=self.adapted, loss_weights=[1.0], optimizer=self.optimizer
        )
        fast = detached(loop.start(params))
        for step in range(steps):
            part = self.objective.part(batch, step, size)
            fast = detached(loop.step(params, leaves(fast), part, step, create_graph=False))
            yield {name: fast[name] for name in loop.adapted}
