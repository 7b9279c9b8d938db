"""The last layer of a network: its name, its width, and its inputs (the features)."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from distmeta.errors import ConfigError

HEAD = "head"
"""Default name of a network's last layer (model.head)."""


def name_head(model: nn.Module, name: str) -> nn.Module:
    """`model`, with `name` stored as the name of its last layer."""
    model.__dict__["_distmeta_head"] = name
    return model


def head_name(model: nn.Module) -> str:
    return model.__dict__.get("_distmeta_head", HEAD)


def is_head(model: nn.Module, parameter: str) -> bool:
    """Whether the parameter of that name belongs to the head."""
    return parameter.startswith(f"{head_name(model)}.")


def head_of(model: nn.Module) -> nn.Module:
    """The last layer. Raises ConfigError, listing candidates, if `model` has no layer of that name."""
    name = head_name(model)
    try:
        return model.get_submodule(name)
    except AttributeError:
        linear = [other for other, module in model.named_modules() if isinstance(module, nn.Linear)]
        near = difflib.get_close_matches(name, linear, n=3) or linear[-3:]
        raise ConfigError(
            f"{type(model).__name__} has no layer {name!r}, which model.head names",
            f"set model.head to the name of its last layer, such as {', '.join(near) or 'head'}",
        ) from None


def has_head(model: nn.Module) -> bool:
    return any(name == head_name(model) for name, _ in model.named_modules())


def fit_head(model: nn.Module, outputs: int) -> None:
    """Replace the head, a linear layer of another width, by a new one of `outputs` rows, drawn as torch draws a linear layer.

    A head of another kind is kept; `distmeta.models.contract` checks the width of its rows.
    """
    head = head_of(model)
    if isinstance(head, nn.Linear) and head.out_features != outputs:
        fresh = nn.Linear(head.in_features, outputs, head.bias is not None, head.weight.device, head.weight.dtype)
        set_head(model, fresh)


def set_head(model: nn.Module, head: nn.Module) -> None:
    """Replace the last layer by `head`."""
    parent, _, last = head_name(model).rpartition(".")
    setattr(model.get_submodule(parent), last, head)


class NoHead(nn.Module):
    """Stands where a head was whose outputs nothing uses. It holds no values, but a forward still finds the head's attributes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.__dict__["_head"] = head  # not registered, so it is not part of the network's state

    def __getattr__(self, name: str) -> Any:
        head = self.__dict__.get("_head")
        return super().__getattr__(name) if head is None else getattr(head, name)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """The head's inputs: (M, D) for inputs (M, …). Raises ConfigError if they are not rows, or if the head is never called."""
    held: list[Tensor] = []
    with head_of(model).register_forward_pre_hook(lambda _module, given: held.append(given[0])):
        model(inputs)
    if len(held) != 1 or held[0].dim() != 2:
        problem = f"is called {len(held)} times" if len(held) != 1 else f"reads {tuple(held[0].shape)}"
        raise ConfigError(
            f"layer {head_name(model)} of {type(model).__name__} {problem}; one row of features for each input is needed",
            "set model.head to the layer that maps features (M, D) to outputs, or choose a learner that adapts the whole network",
        )
    return held[0]


def ends_in_head(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether the network, which `call` calls once, calls its head once and returns what that gives, and nothing made of it."""
    given: list[Any] = []
    returned: list[Any] = []
    watched = head_of(model).register_forward_hook(lambda _module, _inputs, outputs: given.append(outputs))
    with watched, model.register_forward_hook(lambda _module, _inputs, outputs: returned.append(outputs)):
        call()
    return len(given) == len(returned) == 1 and given[0] is returned[0]
