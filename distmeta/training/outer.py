"""The outer update: a torch optimiser over meta_params, with a learning rate that is a function of the step."""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from distmeta.data.episodes import Batch
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, unflatten
from distmeta.training.metrics_folder import Record
from distmeta.training.reduce import Mean, Reduced

Schedule = Callable[[int], float]

_STATISTICS_RATE = 0.1  # momentum of running statistics per step: torch's default for batch norm


def schedule(name: str, lr: float, steps: int, milestones: Sequence[int] = (), decay: float = 0.1) -> Schedule:
    """step → learning rate, from `lr` at step 0.

    "constant"; "linear" to zero at `steps`; "cosine" to zero at `steps` (arXiv:1608.03983, equation 5, one period); "milestones": times
    `decay` at each of them.
    """
    courses: dict[str, Schedule] = {
        "constant": lambda step: lr,
        "linear": lambda step: lr * max(0.0, 1 - step / max(steps, 1)),
        "cosine": lambda step: lr * 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0))),
        "milestones": lambda step: lr * decay ** sum(step >= milestone for milestone in milestones),
    }
    return courses[name]


class OuterUpdate:
    """Owns meta_params and changes them by meta-gradients.

    `statistics` names the running statistics. They follow the slots' mean, without optimiser, decay or clipping.
    """

    def __init__(
        self,
        meta_params: Params,
        optimizer: str,
        lr: Schedule,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        statistics: Collection[str] = (),
    ) -> None:
        self.meta_params = meta_params
        self.trained = {name: value for name, value in meta_params.items() if name not in statistics}
        self.lr = lr
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        values = list(self.trained.values())
        self.optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(values, lr=lr(0), momentum=momentum, weight_decay=weight_decay)
        else:
            self.optimizer = torch.optim.Adam(values, lr=lr(0), weight_decay=weight_decay)

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        """The data of a step, given this worker's tasks. Default: the tasks."""
        return batch

    def step(self, learner: Learner, batch: Batch, mean: Mean, step: int) -> tuple[Reduced, Record]:
        """Make outer step number `step` (from 0). Returns the averaged result and the update's keys for the step's record. Without a
        meta_gradient the step has failed.
        """
        reduced = mean(self.meta_params, lambda: learner.each_slot(self.meta_params, batch))
        if reduced.meta_gradient is None:
            return reduced, {}
        return reduced, {"gradient_norm": self.update(reduced.meta_gradient, step)}

    def update(self, meta_gradient: Tensor, step: int) -> float:
        """One step with meta_gradient (P,); returns its norm before clipping."""
        for name, gradient in unflatten(meta_gradient, self.meta_params).items():
            value = self.meta_params[name]
            if name in self.trained:
                value.grad = torch.empty_like(value).copy_(gradient)
            else:
                value.sub_(gradient, alpha=_STATISTICS_RATE)
        values = list(self.trained.values())
        if self.clip_value is not None:
            clip_grad_value_(values, self.clip_value)
        norm = clip_grad_norm_(values, self.clip_norm if self.clip_norm is not None else math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.step()
        return norm.item()

    def state(self) -> Params:
        """The optimiser's tensors under flat names "<parameter>.<state>"."""
        return {
            f"{name}:{what}": tensor
            for name, value in self.trained.items()
            for what, tensor in self.optimizer.state[value].items()
            if tensor is not None
        }

    def load(self, meta_params: Params, state: Params) -> None:
        """Copy the values of `meta_params` and `state` from a checkpoint into this object's tensors, keeping their memory layout."""
        for name, value in self.meta_params.items():
            value.copy_(meta_params[name])
        for key, tensor in state.items():
            name, what = key.split(":")
            value = self.meta_params[name]
            held = torch.empty_like(value) if tensor.shape == value.shape else torch.empty_like(tensor)
            self.optimizer.state[value][what] = held.copy_(tensor)
