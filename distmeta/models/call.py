"""Calls a module with given parameters, like torch.func.functional_call, but also for shared tensors and modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[nn.Module, Tensor], Tensor]


def places(model: nn.Module) -> dict[str, list[str]]:
    """The name of each parameter and buffer in `named_parameters` → all names under which it must be replaced.

    A tensor shared by two modules has two names. A module used in two places has one, because functional_call would replace its tensors
    twice and then restore the replacements.
    """
    first: dict[int, str] = {}
    uses: dict[str, list[str]] = {}
    for prefix, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    full = f"{prefix}.{name}" if prefix else name
                    uses.setdefault(first.setdefault(id(tensor), full), []).append(full)
    return uses


def call(model: nn.Module, held: Mapping[str, list[str]], params: Mapping[str, Tensor], map_: Map, inputs: Tensor) -> Any:
    """map_(model, inputs) with `params` instead of the model's tensors; `held` is the result of `places`."""
    given = {f"network.{place}": value for name, value in params.items() for place in held.get(name, ())}
    return functional_call(_Mapped(model, map_), given, (inputs,), tie_weights=False)


class _Mapped(nn.Module):
    def __init__(self, network: nn.Module, map_: Map) -> None:
        super().__init__()
        self.network = network
        self.map = map_

    def forward(self, inputs: Tensor) -> Tensor:
        return self.map(self.network, inputs)


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's forward as a `Map`. The other Map is `distmeta.models.head.features`."""
    return model(inputs)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """torch's attention as plain operations: its fused kernels have no second derivative, and different bits with and without gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
