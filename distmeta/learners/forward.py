"""The network as a function of its parameters: for one task or several at once, and with whose statistics its norms normalise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.learners.params import Params
from distmeta.models.dropblock import set_noise
from distmeta.models.norm import BatchNorm2d, RunningBatchNorm2d

Method = Literal["forward", "features"]


class Forward:
    """(params, inputs (T, M, …)) → outputs (T, M, N), or features (T, M, D). It takes those of params that are the network's.

    `batched`: params carry the leading T as well, {name: (T, …)}, and tasks are computed together; otherwise T is 1 and params are bare.
    `noise` (seed, step, slot) and `phase`, the call's number in the task, decide what dropout drops; without noise nothing is dropped.
    `bfloat16` lets torch's autocast compute outer passes in that type; outputs come in the inputs' own.
    `statistics` holds what running norms saw in the call of the last phase, in training mode: {name: (T, C)} or, for bare params, (C,).
    """

    def __init__(self, model: nn.Module, batched: bool, noise: tuple[int, int, int] | None = None, bfloat16: bool = False) -> None:
        self.model = model
        self.batched = batched
        self.noise = noise
        self.bfloat16 = bfloat16
        self.statistics: Params = {}
        self._last_phase = 0
        self._names = model.state_dict().keys() | {name for name, _ in model.named_buffers()}
        self._running = {name: module for name, module in model.named_modules() if isinstance(module, RunningBatchNorm2d)}

    def __call__(self, params: Params, inputs: Tensor, phase: int = 0, method: Method = "forward", outer: bool = False) -> Tensor:
        """`outer` says that no inner step depends on the outputs: this pass may be computed in bfloat16."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bfloat16 and outer):
            return self._call(params, inputs, phase, method).to(inputs.dtype)

    def _call(self, params: Params, inputs: Tensor, phase: int, method: Method) -> Tensor:
        set_noise(self.model, *(self.noise or (None,)), phase)
        if self.batched:
            outputs, statistics = torch.vmap(lambda one, of: self._one_task(one, of, method))(params, inputs)
        else:
            outputs, statistics = self._one_task(params, inputs[0], method)
            outputs = outputs[None]
        if phase >= self._last_phase:
            self.statistics, self._last_phase = statistics, phase
        return outputs

    def _one_task(self, params: Params, inputs: Tensor, method: Method) -> tuple[Tensor, Params]:
        prefixed = {f"network.{name}": value for name, value in params.items() if name in self._names}
        outputs = functional_call(_Calling(self.model, method), prefixed, (inputs,))
        if not self.model.training:
            return outputs, {}
        means = {f"{name}.running_mean": module.batch_mean for name, module in self._running.items() if module.training}
        return outputs, means | {f"{name}.running_var": module.batch_var for name, module in self._running.items() if module.training}


class Network(NamedTuple):
    """The network under one set of parameters: inputs (T, M, …) → outputs (T, M, N), or features (T, M, D).

    `params` are bare if `forward` computes one task, else {name: (T, …)}; `phase` and `outer` are those of `Forward`.
    """

    forward: Forward
    params: Params
    phase: int = 0
    outer: bool = False

    def __call__(self, inputs: Tensor, method: Method = "forward") -> Tensor:
        return self.forward(self.params, inputs, self.phase, method, self.outer)


class Head(Forward):
    """The same for the network's head alone: features (T, M, D) → outputs (T, M, N); parameters keep their names in the network."""

    def _one_task(self, params: Params, inputs: Tensor, method: Method) -> tuple[Tensor, Params]:
        own = {name.removeprefix("head."): value for name, value in params.items() if name.startswith("head.")}
        head = self.model.get_submodule("head")
        return functional_call(head, own, (inputs,)), {}


class _Calling(nn.Module):
    """A module whose forward is another's `method`."""

    def __init__(self, network: nn.Module, method: Method) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, inputs: Tensor) -> Tensor:
        return getattr(self.network, self.method)(inputs)


@contextmanager
def frozen(model: nn.Module, running_only: bool = False) -> Iterator[None]:
    """Norms take their statistics from buffers, not from what they are given; with `running_only`, just those that keep running ones."""
    modules = [m for m in model.modules() if isinstance(m, RunningBatchNorm2d)] if running_only else [model]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()


@torch.no_grad()
def support_statistics(forward: Forward, adapted: Params, inputs: Tensor) -> Params:
    """The batch-norm statistics of a support set, inputs (M, …), under `adapted`: {"….running_mean": (C,), "….running_var": (C,)}.

    With them a network in evaluation mode classifies every query by itself, whoever else is asked (law of inductive prediction).
    """
    statistics: Params = {}
    norms = {
        name: module
        for name, module in forward.model.named_modules()
        if isinstance(module, BatchNorm2d) and not isinstance(module, RunningBatchNorm2d)
    }

    def record(name: str, given: Tensor) -> None:
        others = [dimension for dimension in range(given.dim()) if dimension != 1]
        statistics[f"{name}.running_mean"] = given.mean(others)
        statistics[f"{name}.running_var"] = given.var(others, correction=0)

    hooks = [module.register_forward_pre_hook(lambda _module, given, name=name: record(name, given[0])) for name, module in norms.items()]
    try:
        forward(adapted, inputs[None])
    finally:
        for hook in hooks:
            hook.remove()
    return statistics
