"""Learners that adapt by gradient descent on the support set, and the simplest of them, the transfer baseline."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from distmeta.data.episodes import Batch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Network, frozen
from distmeta.learners.inner import InnerLoop, MetaGradients, gradients_of
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, detached, leaves

INNER_STEPS = 5  # where learner.inner_steps is not set


class FineTuning(Learner):
    """Adapts the network, or `adapted` parameters of it, by `inner_steps_eval` (inner_steps if None) of gradient descent with inner_lr.

    inner_lr is α for a loss that is a mean over the support set (see `distmeta.learners.objective`). After the first inner step it is
    multiplied by inner_lr_decay, as MAML's authors do with 0.5 when policies adapt by several steps.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.05,
        inner_steps: int = INNER_STEPS,
        inner_steps_eval: int | None = None,
        inner_lr_decay: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        if inner_steps < 1 or (inner_steps_eval is not None and inner_steps_eval < 1):
            raise ConfigError(f"{inner_steps} inner steps: at least one is needed to adapt", "raise learner.inner_steps")
        self.inner_lr = inner_lr
        self.inner_lr_decay = inner_lr_decay
        self.inner_steps = inner_steps
        self.inner_steps_eval = inner_steps if inner_steps_eval is None else inner_steps_eval

    @property
    def adapted(self) -> list[str]:
        """Names of the parameters that the inner loop changes."""
        return [name for name, _ in self.model.named_parameters()]

    def rate(self, params: Params, name: str, step: int) -> float | Tensor:
        """α of one parameter at one inner step."""
        return self.inner_lr * self.decay(step)

    def decay(self, step: int) -> float:
        """What inner_lr is multiplied by at an inner step."""
        return self.inner_lr_decay if step else 1.0

    def adaptation(self, meta_params: Params, episode: Batch, steps: int | None = None) -> Iterator[Params]:
        yield from self.adaptations(self.forward(), detached(meta_params), episode, steps)

    def adaptations(self, forward: Forward, params: Params, batch: Batch, steps: int | None = None) -> Iterator[Params]:
        """The same for the T tasks of `batch`; `params` are {name: (T, …)} if `forward` is batched."""
        steps = self.inner_steps_eval if steps is None else steps
        held = self.model.state_dict()
        descent = self.descent(forward, params, {name: params[name] for name in self.adapted}, batch, steps)
        fast_weights: Params | None = {}
        while fast_weights is not None:
            yield {name: value for name, value in (params | fast_weights).items() if name in held}
            with frozen(self.model, running_only=True):
                fast_weights = next(descent, None)

    def descent(self, forward: Forward, params: Params, fast_weights: Params, batch: Batch, steps: int) -> Iterator[Params]:
        """fast_weights after 1, 2, … `steps` steps on the support data of T tasks, without a graph through them."""
        loop = InnerLoop(forward, self.objective, self.rate, self.adapted, [1.0])
        for step in range(steps):
            fast_weights = detached(loop.step(params, leaves(fast_weights), batch, step, create_graph=False))
            yield fast_weights


class TransferBaseline(FineTuning):
    """Trained on every task's support and query data at once, under the task's own labels, then fine-tuned at test.

    The baseline that MAML's first experiments call "pretrained on all tasks" (arXiv:1703.03400, section 5.1), and introductory homework
    "transfer learning": no inner loop in training, so its gradient is that of plain multi-task learning.
    """

    def task_gradients(self, params: Params, forward: Forward, batch: Batch) -> MetaGradients:
        losses, scores = self.objective.support(Network(forward, params, outer=True), self.objective.pooled(batch), 0)
        return MetaGradients(gradients_of(losses, self.trained(params)), losses, scores)
