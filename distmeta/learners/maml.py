"""MAML and its family: learners whose meta-gradient goes through the inner loop (Finn, Abbeel & Levine 2017, arXiv:1703.03400)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from distmeta.bounds import Count, Positive
from distmeta.data.episodes import Batch, EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward, Head
from distmeta.learners.inner import InnerLoop, MetaGradients, checkpointed, unrolled
from distmeta.learners.params import Params, floating_parameter, leaves
from distmeta.models.head import head_of, is_head

_ENGINES = {"unrolled": unrolled, "checkpointed": checkpointed}


class MAML(FineTuning):
    """Learns an initialisation θ from which a few gradient steps solve a new task, exact to second order.

    The meta-gradient of a task is ∇θ L_query(φ_k(θ)) (the sum's terms in algorithm 1, line 10). inner_steps are used in training,
    inner_steps_eval in evaluation and prediction. `gradient` is the method: "unrolled" keeps every inner step's graph, "checkpointed" keeps
    that of one step and recomputes the others. If only the head adapts, the features of given examples do not change in the inner loop.
    They are then computed once, with one dropout mask, and differentiated once.
    """

    first_order: ClassVar[bool] = False

    def __init__(self, model: nn.Module, gradient: Literal["unrolled", "checkpointed"] = "unrolled", **fine_tuning: Any) -> None:
        super().__init__(model, **fine_tuning)
        self.gradient = gradient

    def task_gradients(self, params: Params, forward: Forward, batch: Batch) -> MetaGradients:
        if self.splits(batch, forward, params):
            return self._on_features(params, forward, batch)
        return self._through(forward, params, list(self.trained(params)), batch)

    def _through(self, forward: Forward, params: Params, wanted: Sequence[str], batch: Batch) -> MetaGradients:
        """Meta-gradients by params[wanted], through the inner loop."""
        engine = unrolled if self.first_order else _ENGINES[self.gradient]
        return engine(self.inner_loop(forward, batch.step), params, wanted, batch)

    def inner_loop(self, forward: Forward, step: int) -> InnerLoop:
        """The inner loop of training step `step`."""
        return InnerLoop(
            forward=forward,
            objective=self.objective,
            rate=self.rate,
            adapted=self.adapted,
            loss_weights=self.loss_weights(step),
            first_order=self.first_order,
            optimizer=self.optimizer,
        )

    def _on_features(self, params: Params, forward: Forward, batch: EpisodeBatch) -> MetaGradients:
        """The same if only the head adapts: the body is computed and differentiated once instead of at every inner step."""
        ends = {
            "support": forward(params, batch.support_images, 0, "features"),
            "queries": forward(params, batch.query_images, 1, "features", outer=True),
        }
        held = params | leaves(ends)
        body = self.body(self.trained(params))
        reached = ["queries"] if self.first_order else list(ends)  # in first order, fast_weights are constants
        wanted = [*(reached if body else ()), *(name for name in self.trained(params) if name not in body)]
        on_features = replace(batch, support_images=held["support"], query_images=held["queries"])
        gradients, losses, scores, metrics = self._through(Head(self.model, forward.batched, forward.noise), held, wanted, on_features)
        if body:
            of_body = torch.autograd.grad([ends[end] for end in reached], list(body.values()), [gradients[end] for end in reached])
            gradients |= dict(zip(body, of_body, strict=True))
        return MetaGradients(gradients, losses, scores, metrics)

    def loss_weights(self, step: int) -> list[float]:
        """The weights of the query loss after 0, 1, … inner steps at training step `step`."""
        return [0.0] * self.inner_steps + [1.0]


class FOMAML(MAML):
    """First-order MAML: the meta-gradient is ∇L_query at φ_k, without the inner steps' second derivatives (section 5.2)."""

    first_order = True


class ANIL(MAML):
    """Almost no inner loop: only the network's head is adapted (Raghu et al. 2020, arXiv:1909.09157, section 4).

    It is MAML with `adapt` naming the head.
    """

    def __init__(self, model: nn.Module, **maml: Any) -> None:
        super().__init__(model, **maml)
        head_of(model)

    @property
    def adapted(self) -> list[str]:
        return [name for name in super().adapted if is_head(self.model, name)]


class MetaSGD(MAML):
    """MAML with a learned inner_lr for every scalar parameter (Li et al. 2017, arXiv:1707.09835, equation 2).

    All of them start at inner_lr.
    """

    def initial_params(self) -> Params:
        params = super().initial_params()
        return params | {f"inner_lr.{name}": torch.full_like(self.with_fixed(params)[name], self.inner_lr) for name in self.adapted}

    def rate(self, params: Params, name: str, step: int) -> Tensor:
        return self.decay(step) * params[f"inner_lr.{name}"]


class MAMLPlusPlus(MAML):
    """MAML with the two most effective parts of MAML++ (Antoniou et al. 2019, arXiv:1810.09502, section 4).

    LSLR: an inner_lr for each layer and inner step, learned with θ; all start at inner_lr. MSL: the query loss counts after every inner
    step. The weights of earlier steps decrease, and after `multi_step_loss` training steps only the last step counts (0: from the start).
    The weights change every `multi_step_stair` training steps, which is once per epoch in the authors' code. `rates_per`: one rate for each
    layer, as in the paper, or for each tensor, as in the authors' code.
    """

    def __init__(
        self,
        model: nn.Module,
        multi_step_loss: Count = 0,
        multi_step_stair: Positive = 1,
        rates_per: Literal["layer", "tensor"] = "layer",
        **maml: Any,
    ) -> None:
        super().__init__(model, **maml)
        self.multi_step_loss = multi_step_loss
        self.multi_step_stair = multi_step_stair
        self.rates_per = rates_per

    def initial_params(self) -> Params:
        params = super().initial_params()
        steps = max(self.inner_steps, self.inner_steps_eval)
        like = floating_parameter(self.model)
        return params | {self._rate_name(name): like.new_full((steps,), self.inner_lr) for name in self.adapted}

    def rate(self, params: Params, name: str, step: int) -> Tensor:
        rate = params[self._rate_name(name)][..., step]
        return rate.view(rate.shape + (1,) * (params[name].dim() - rate.dim()))

    def check_steps(self, meta_params: Params, steps: int) -> None:
        super().check_steps(meta_params, steps)
        held = min(len(value) for name, value in meta_params.items() if name.startswith("inner_lr."))
        if steps > held:
            raise ConfigError(f"{steps} inner steps: {held} inner_lr of each layer were learned, one per step", f"give at most {held}")

    def loss_weights(self, step: int) -> list[float]:
        step -= step % self.multi_step_stair
        share = max(0.0, 1 - step / self.multi_step_loss) / self.inner_steps if self.multi_step_loss else 0.0
        return [0.0] + [share] * (self.inner_steps - 1) + [1 - share * (self.inner_steps - 1)]

    def _rate_name(self, name: str) -> str:
        layer = name.rpartition(".")[0] or name
        return f"inner_lr.{layer if self.rates_per == 'layer' else name}"
