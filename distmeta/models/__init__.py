"""Backbones: `nn.Module`s that map images (B, C, H, W), vectors (B, D) or other inputs to rows of outputs (B, outputs)."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch import nn

from distmeta.errors import ConfigError
from distmeta.models.construct import constructed, imported, seeded
from distmeta.models.conv4 import Conv4
from distmeta.models.convert import check_train, convert_dropout, convert_norms, convert_weight_norm
from distmeta.models.head import HEAD, fit_head, has_head, head_of, name_head
from distmeta.models.layout import in_fastest_layout, in_readable_layout
from distmeta.models.lora import add_pairs
from distmeta.models.lstm import LSTM
from distmeta.models.mlp import MLP
from distmeta.models.resnet12 import ResNet12
from distmeta.models.spiking import SpikingConv4
from distmeta.models.transformer import Transformer
from distmeta.models.vgg import VGG

MODELS: dict[str, type[nn.Module]] = {
    "conv4": Conv4,
    "resnet12": ResNet12,
    "vgg": VGG,
    "mlp": MLP,
    "spiking_conv4": SpikingConv4,
    "lstm": LSTM,
    "transformer": Transformer,
}

Parameters = Mapping[str, inspect.Parameter]


def as_constructed(name: str) -> str:
    """What the network `name` is before any training, for people: a constructor of a user's own may load weights."""
    return "random initialisation" if name in MODELS else "not meta-trained, as its constructor leaves it"


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    norm: str = "batch",
    allow_import: bool = False,
    head: str = HEAD,
    lora: Mapping[str, Any] | None = None,
    seed: int | None = None,
    **own: Any,
) -> nn.Module:
    """The network `name` for inputs of shape (C, H, W) or (D,), constructed with `own` arguments.

    A backbone of distmeta is constructed as `Backbone(input_shape, outputs, norm, **own)`. With `allow_import`, and only for a name from
    the user's own config, `name` may also be the import path of a class, or of a function that returns a module; it receives input_shape,
    outputs and norm if its constructor has such arguments. docs/extending.md has the rules for such a network. Its layer `head` is replaced
    if it is a linear layer of another width than `outputs`, its batch norms are replaced as `norm` says, its dropout layers by ours.
    `lora` ({rank, alpha, modules}) puts low-rank pairs on layers and freezes the others.

    With `seed` the values are those that the network starts from: drawn by torch's rules for a backbone of distmeta, otherwise as the
    constructor leaves them. Without it only the shapes count. Image models come in the memory layout that a CPU's convolutions are
    fastest in, if their forward can read it.
    Raises ConfigError naming the key, the value and the rule.
    """
    make = MODELS[name] if name in MODELS else _imported(name, allow_import)
    arguments = _arguments(name, make, {"input_shape": tuple(input_shape), "outputs": outputs, "norm": norm}, own)
    if name in MODELS:
        model: nn.Module = make(**arguments)
        if len(input_shape) == 3:
            in_fastest_layout(model)
        if seed is not None:
            redraw(model, seed)  # in the final layout, because torch draws values in memory order
    else:
        model = constructed(name, make, arguments, seed)
    name_head(model, head)
    if head != HEAD:
        head_of(model)  # a name given by the user must exist
    if name not in MODELS:
        with seeded(seed):
            if has_head(model):
                fit_head(model, outputs)
        check_train(model, norm)
        convert_norms(model, norm)
        convert_dropout(model)
        convert_weight_norm(model)
    if lora is not None:
        with seeded(seed):
            add_pairs(model, **lora)
    if len(input_shape) != 3:
        return model
    return in_fastest_layout(model) if name in MODELS else in_readable_layout(model, tuple(input_shape))


def redraw(model: nn.Module, seed: int) -> nn.Module:
    """`model` with fresh values from `seed` alone: every submodule with `reset_parameters` is drawn again. The global generators are not
    changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return model


def _imported(name: str, allowed: bool) -> Any:
    if "." not in name or not allowed:
        raise ConfigError(f"model.name={name!r} is not a backbone of distmeta", f"choose one of {', '.join(MODELS)}")
    network = imported("model.name", name)
    if not callable(network) or isinstance(network, nn.Module) or (isinstance(network, type) and not issubclass(network, nn.Module)):
        raise ConfigError(
            f"model.name={name!r} is neither a subclass of torch.nn.Module nor a function that returns a module",
            "give the path of one, my_package.my_module.Net",
        )
    return network


def _arguments(name: str, make: Any, common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments. Raises ConfigError if one of `own` is unknown or of another type, or if one is missing."""
    try:
        parameters: Parameters = inspect.signature(make).parameters
    except ValueError:  # a class written in C has no signature
        return dict(own)
    named = {key: p for key, p in parameters.items() if key not in common and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in own:
        if key not in named and not takes_any:
            raise ConfigError(f"model.{key} is not an argument of {name}", f"its arguments: {', '.join(named) or 'none'}")
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in own:
            raise ConfigError(f"model.{key} is missing: {name} has no default for it", f"add it, or give --set model.{key}=…")
    arguments = {key: value for key, value in common.items() if key in parameters} | dict(own)
    if name not in MODELS:
        return arguments
    return {key: checked(f"model.{key}", value, parameters[key].annotation) for key, value in arguments.items()}


def checked(key: str, value: Any, annotation: Any) -> Any:
    """`value` converted to the annotated type of an argument. Raises ConfigError naming the key, the value and the rule."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
    except PydanticUserError:
        raise ConfigError(
            f"{key}={value!r}: its annotation {annotation!r} is not a type of a config's values", f"leave {key} out"
        ) from None
    raise ConfigError(f"{key}={value!r}: {message[0].lower()}{message[1:]}", f"fix {key}")
