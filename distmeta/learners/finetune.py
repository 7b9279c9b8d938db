"""Learners that adapt by gradient descent on the support set, and the simplest of them, the transfer baseline."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, frozen
from distmeta.learners.inner import InnerLoop, gradients_of
from distmeta.learners.learner import Learner, TaskGradients
from distmeta.learners.loss import task_losses
from distmeta.learners.params import Params, detached, leaves


class FineTuning(Learner):
    """Adapts the network, or `adapted` parameters of it, by `inner_steps_eval` (inner_steps if None) of gradient descent with inner_lr.

    inner_lr is α for a loss that is a mean over the support set (see `distmeta.learners.loss`).
    """

    def __init__(
        self, model: nn.Module, inner_lr: float = 0.05, inner_steps: int = 5, inner_steps_eval: int | None = None, **common: Any
    ) -> None:
        super().__init__(model, **common)
        if inner_steps < 1 or (inner_steps_eval is not None and inner_steps_eval < 1):
            raise ConfigError(f"{inner_steps} inner steps: at least one is needed to adapt", "raise learner.inner_steps")
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_eval = inner_steps if inner_steps_eval is None else inner_steps_eval

    @property
    def adapted(self) -> list[str]:
        """Names of the parameters that the inner loop changes."""
        return [name for name, _ in self.model.named_parameters()]

    def rate(self, params: Params, name: str, step: int) -> float | Tensor:
        """α of one parameter at one inner step."""
        return self.inner_lr

    def adaptation(self, meta_params: Params, inputs: Tensor, targets: Tensor, steps: int | None = None) -> Iterator[Params]:
        steps = self.inner_steps_eval if steps is None else steps
        held = self.model.state_dict()
        params = detached(meta_params)
        descent = self.descent(self.forward(), params, {name: params[name] for name in self.adapted}, inputs[None], targets[None], steps)
        fast_weights: Params | None = {}
        while fast_weights is not None:
            yield {name: value for name, value in (params | fast_weights).items() if name in held}
            with frozen(self.model, running_only=True):
                fast_weights = next(descent, None)

    def descent(
        self, forward: Forward, params: Params, fast_weights: Params, inputs: Tensor, targets: Tensor, steps: int
    ) -> Iterator[Params]:
        """fast_weights after 1, 2, … `steps` steps on T tasks, inputs (T, M, …), targets (T, M, …), without a graph through them."""
        loop = InnerLoop(forward, self.rate, self.adapted, [1.0])
        for step in range(steps):
            fast_weights = detached(loop.step(params, leaves(fast_weights), inputs, targets, step, create_graph=False))
            yield fast_weights


class TransferBaseline(FineTuning):
    """Supervised on every training task's support and query images under the task's own labels, then fine-tuned at test.

    The baseline that MAML's first experiments call "pretrained on all tasks" (arXiv:1703.03400, section 5.1), and introductory homework
    "transfer learning": no inner loop in training, so its gradient is that of plain multi-task learning.
    """

    def task_gradients(self, params: Params, forward: Forward, batch: EpisodeBatch) -> TaskGradients:
        inputs = torch.cat([batch.support_images, batch.query_images], 1)
        targets = torch.cat([batch.support_labels, batch.query_labels], 1)
        outputs = forward(params, inputs, outer=True)
        losses = task_losses(outputs, targets)
        return TaskGradients(gradients_of(losses, self.trained(params)), losses, outputs.detach(), targets)
