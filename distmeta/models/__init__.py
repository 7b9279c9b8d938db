"""Backbones: `nn.Module`s that map images (B, C, H, W) or vectors (B, D) to outputs (B, outputs), by features and a linear head."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from distmeta.errors import ConfigError, DistmetaError
from distmeta.models.conv4 import Conv4
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


def build_model(
    name: str, input_shape: tuple[int, ...], outputs: int, norm: str = "batch", allow_import: bool = False, **own: Any
) -> nn.Module:
    """The backbone `name` for inputs of shape (C, H, W) or (D,), with its constructor's own arguments.

    A backbone is constructed as `Backbone(input_shape, outputs, norm, **own)`; it has `features(inputs (B, *input_shape)) -> (B, D)`, a
    last `nn.Linear` called `head`, and `forward(inputs) = head(features(inputs))`. With `allow_import`, and only for a name from the user's
    own config, `name` may also be an import path, "my_package.my_module.Net": of input_shape, outputs and norm such a class is given those
    that its constructor takes.
    Image models come in the memory layout that convolutions are fastest in. Raises ConfigError naming the key, the value and the rule.
    """
    backbone = MODELS[name] if name in MODELS else _imported(name, allow_import)
    parameters = inspect.signature(backbone).parameters
    common = {"input_shape": tuple(input_shape), "outputs": outputs, "norm": norm}
    _known(name, parameters, own, common)
    arguments = {key: value for key, value in common.items() if key in parameters} | own
    if name in MODELS:
        model = backbone(**{key: _checked(key, value, parameters[key].annotation) for key, value in arguments.items()})
    else:
        model = _constructed(name, backbone, arguments)
    return model.to(memory_format=torch.channels_last) if len(input_shape) == 3 else model  # type: ignore[call-overload]


def _imported(name: str, allowed: bool) -> type[nn.Module]:
    module, _, attribute = name.rpartition(".")
    if not (module and allowed):
        raise ConfigError(f"model.name={name!r} is no backbone of distmeta", f"choose one of {', '.join(MODELS)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's own module raises
        raise ConfigError(
            f"model.name={name!r} cannot be imported: {error!r}", "give the path of a class that Python finds, my_package.my_module.Net"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"model.name={name!r} is no class of torch.nn.Module", "give the path of one, my_package.my_module.Net")
    return found


def _known(name: str, parameters: Parameters, own: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """Raises ConfigError if an own argument is unknown to the constructor, or one is missing."""
    named = {key: p for key, p in parameters.items() if key not in common and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in own:
        if key not in named and not takes_any:
            raise ConfigError(f"model.{key} is no argument of {name}", f"its arguments: {', '.join(named) or 'none'}")
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in own:
            raise ConfigError(f"model.{key} is missing: {name} has no default for it", f"add it, or give --set model.{key}=…")


def _checked(key: str, value: Any, annotation: Any) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
    raise ConfigError(f"model.{key}={value!r}: {message[0].lower()}{message[1:]}", f"mend model.{key}")


def _constructed(name: str, backbone: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return backbone(**arguments)
    except DistmetaError:
        raise
    except Exception as error:  # whatever the user's own class raises
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"model.name={name!r} cannot be built from {given}: {error!r}", "mend the class or its arguments") from error
