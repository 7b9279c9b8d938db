"""Learners that adapt by gradient descent on the support set, and the simplest of them, the transfer baseline."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, TypeGuard

import torch
from pydantic import Field
from torch import Tensor, nn

from distmeta.bounds import Positive, PositiveFloat
from distmeta.data.episodes import Batch, EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Head, Network, frozen
from distmeta.learners.inner import InnerLoop, InnerOptimizer, InnerOptimizerName, MetaGradients, gradients_of
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Supervised
from distmeta.learners.params import Params, detached, leaves
from distmeta.models.call import places
from distmeta.models.head import ends_in_head, is_head

INNER_STEPS = 5  # default of learner.inner_steps


class FineTuning(Learner):
    """Adapts the network by `inner_steps_eval` (default: inner_steps) inner steps on the support set.

    inner_lr: α, for a loss that is a mean over the support set (see `distmeta.learners.objective`). After the first inner step it is
    multiplied by inner_lr_decay, as MAML's authors do with 0.5 when policies adapt by several steps.
    adapt: shell patterns over the names of the parameters that the inner loop changes (default: all that are not frozen).
    inner_optimizer: sgd, momentum or adam (`distmeta.learners.inner.InnerOptimizer` has the formulas); inner_momentum is its μ, and
    inner_epsilon Adam's ε.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: PositiveFloat = 0.05,
        inner_steps: Positive = INNER_STEPS,
        inner_steps_eval: Positive | None = None,
        inner_lr_decay: PositiveFloat = 1.0,
        adapt: Annotated[list[str], Field(min_length=1)] | None = None,
        inner_optimizer: InnerOptimizerName = "sgd",
        inner_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        inner_epsilon: PositiveFloat = 1e-8,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        if inner_steps < 1 or (inner_steps_eval is not None and inner_steps_eval < 1):
            raise ConfigError(f"{inner_steps} inner steps: at least one is needed to adapt", "raise learner.inner_steps")
        self.inner_lr = inner_lr
        self.inner_lr_decay = inner_lr_decay
        self.inner_steps = inner_steps
        self.inner_steps_eval = inner_steps if inner_steps_eval is None else inner_steps_eval
        self.optimizer = InnerOptimizer(inner_optimizer, inner_momentum, inner_epsilon)
        self.patterns = adapt
        self._ends_in_head: bool | None = None  # whether features flow as rows into the head, which gives the outputs; once it was tried

    @property
    def adapted(self) -> list[str]:
        """Names of the parameters that the inner loop changes."""
        return self.chosen("learner.adapt", self.patterns) if self.patterns else self.not_frozen

    def rate(self, params: Params, name: str, step: int) -> float | Tensor:
        """α of one parameter at one inner step."""
        return self.inner_lr * self.decay(step)

    def decay(self, step: int) -> float:
        """The factor of inner_lr at an inner step."""
        return self.inner_lr_decay if step else 1.0

    def adaptation(self, meta_params: Params, episode: Batch, steps: int | None = None) -> Iterator[Params]:
        yield from self.adaptations(self.forward(), self.with_fixed(detached(meta_params)), episode, steps)

    def adaptations(self, forward: Forward, params: Params, batch: Batch, steps: int | None = None) -> Iterator[Params]:
        """The same for the T tasks of `batch`; `params` are {name: (T, …)} if `forward` is batched."""
        steps = self.inner_steps_eval if steps is None else steps
        held = self.model.state_dict()
        descent = self.descent(forward, params, batch, steps)
        fast_weights: Params | None = {}
        while fast_weights is not None:
            yield {name: value for name, value in (params | fast_weights).items() if name in held}
            with frozen(self.model, running_only=True):
                fast_weights = next(descent, None)

    def splits(self, batch: Batch, forward: Forward, params: Params) -> TypeGuard[EpisodeBatch]:
        """Whether only the head adapts, and to examples that exist beforehand, so that features need not be computed at every step."""
        if not (isinstance(batch, EpisodeBatch) and isinstance(self.objective, Supervised)):
            return False
        held = places(self.model)
        if not all(is_head(self.model, place) for name in self.adapted for place in held[name]):
            return False
        if self._ends_in_head is None:
            try:
                with torch.no_grad():
                    forward(params, batch.support_images, method="features")
                    self._ends_in_head = ends_in_head(self.model, lambda: forward(params, batch.support_images))
            except ConfigError:
                self._ends_in_head = False
        return self._ends_in_head

    def outputs(self, adapted: Params, queries: Tensor) -> Tensor:
        forward = self.forward()
        if forward.kept is None or not self._ends_in_head:
            return super().outputs(adapted, queries)
        return Head(self.model, batched=False)(adapted, forward(adapted, queries[None], method="features"))[0]

    def descent(self, forward: Forward, params: Params, batch: Batch, steps: int) -> Iterator[Params]:
        """fast_weights after 1, 2, … `steps` steps on the support data of T tasks, without a graph through them."""
        if self.splits(batch, forward, params):
            with torch.no_grad():
                batch = replace(batch, support_images=forward(params, batch.support_images, method="features"))
            forward = Head(self.model, forward.batched)
        loop = InnerLoop(
            forward=forward, objective=self.objective, rate=self.rate, adapted=self.adapted, loss_weights=[1.0], optimizer=self.optimizer
        )
        fast = detached(loop.start(params))
        for step in range(steps):
            fast = detached(loop.step(params, leaves(fast), batch, step, create_graph=False))
            yield {name: fast[name] for name in loop.adapted}


class TransferBaseline(FineTuning):
    """Trained on every task's support and query data at once, under the task's own labels, then fine-tuned at test.

    The baseline that MAML's first experiments call "pretrained on all tasks" (arXiv:1703.03400, section 5.1), and introductory courses call
    "transfer learning". Training has no inner loop, so its gradient is that of plain multi-task learning.
    """

    def task_gradients(self, params: Params, forward: Forward, batch: Batch) -> MetaGradients:
        losses, scores = self.objective.support(Network(forward, params, outer=True), self.objective.pooled(batch), 0)
        return MetaGradients(gradients_of(losses, self.trained(params)), losses, scores)
