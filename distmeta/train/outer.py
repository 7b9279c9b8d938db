"""The outer update: an optimiser of torch over meta_params, its learning rate a function of the step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from distmeta.learners.params import Params, unflatten

Schedule = Callable[[int], float]


def schedule(name: str, lr: float, steps: int) -> Schedule:
    """step → learning rate: "constant", or "cosine" from lr at step 0 to zero at `steps` (arXiv:1608.03983, equation 5, one period)."""
    if name == "cosine":
        return lambda step: lr * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return lambda step: lr


class OuterUpdate:
    """Owns meta_params and changes them by meta-gradients."""

    def __init__(
        self,
        meta_params: Params,
        optimizer: str,
        lr: Schedule,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.meta_params = meta_params
        self.lr = lr
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        values = list(meta_params.values())
        self.optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(values, lr=lr(0), momentum=momentum, weight_decay=weight_decay)
        else:
            self.optimizer = torch.optim.Adam(values, lr=lr(0), weight_decay=weight_decay)

    def update(self, meta_gradient: Tensor, step: int) -> float:
        """One step with meta_gradient (P,); returns its norm before clipping."""
        for value, gradient in zip(self.meta_params.values(), unflatten(meta_gradient, self.meta_params).values(), strict=True):
            value.grad = torch.empty_like(value).copy_(gradient)
        values = list(self.meta_params.values())
        if self.clip_value is not None:
            clip_grad_value_(values, self.clip_value)
        norm = clip_grad_norm_(values, self.clip_norm if self.clip_norm is not None else math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.step()
        return norm.item()

    def state(self) -> Params:
        """The optimiser's tensors under flat names "<parameter>.<what>"."""
        entries = zip(self.meta_params, self.meta_params.values(), strict=True)
        return {
            f"{name}:{what}": tensor
            for name, value in entries
            for what, tensor in self.optimizer.state[value].items()
            if tensor is not None
        }

    def load(self, meta_params: Params, state: Params) -> None:
        """Take over what `meta_params` and `state` held in a checkpoint, keeping this object's own tensors and their memory layout."""
        for name, value in self.meta_params.items():
            value.copy_(meta_params[name])
        for key, tensor in state.items():
            name, what = key.split(":")
            value = self.meta_params[name]
            held = torch.empty_like(value) if tensor.shape == value.shape else torch.empty_like(tensor)
            self.optimizer.state[value][what] = held.copy_(tensor)
