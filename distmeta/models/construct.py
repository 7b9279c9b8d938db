"""Users' networks: imported by path, and constructed so that every value is a function of the seed."""

import importlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from distmeta.errors import RAISED, ConfigError, DistmetaError
from distmeta.time_limit import time_limit

IMPORT_LIMIT_S = 300.0
"""Time limit for importing or constructing a network (seconds): long enough for a download, and it ends a deadlock."""


def imported(key: str, path: str) -> Any:
    """The object at an import path: my_package.my_module.Name, or Name.method of a class. Raises ConfigError naming the config's `key`."""
    parts = path.split(".")
    if parts[0] == "__main__":
        raise ConfigError(
            f"{key}={path!r} is in the program that runs now, which no worker imports", "move the class to a module and name that"
        )
    error: BaseException | None = None
    with _limited(f"{key}={path!r}: its import"), _torchs_modes():
        for count in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:count])
            try:
                target = importlib.import_module(module)
                for name in parts[count:]:
                    target = getattr(target, name)
                return target
            except ModuleNotFoundError as missing:
                error = error or missing
                if missing.name is None or not module.startswith(missing.name):
                    error = missing  # the module exists, but one that it imports does not
                    break
            except DistmetaError:
                raise
            except RAISED as raised:  # a user's module may raise anything
                error = raised
                break
    remedy = "give a path that Python finds from here, such as my_package.my_module.Name"
    if not isinstance(error, ModuleNotFoundError | AttributeError):
        remedy = f"fix the code that {module} runs on import"
    raise ConfigError(f"{key}={path!r} cannot be imported: {error!r}", remedy) from error


def constructed(name: str, make: Callable[..., Any], arguments: dict[str, Any], seed: int | None) -> nn.Module:
    """The module that `make(**arguments)` returns, its values a function of `seed`; without a seed they are arbitrary.

    With a seed the network is constructed twice, and refused if the two differ. The global generators of torch, numpy and Python are
    restored. Raises ConfigError.
    """
    model = _made(name, make, arguments, seed)
    if seed is not None:
        twin = _made(name, make, arguments, seed)
        if twin is model:
            raise ConfigError(f"model.name={name!r} returns the same module at each call", "construct a new one in each call")
        first, second = (tensors_of(one.state_dict()) for one in (model, twin))
        for key in [*first, *second]:
            if key not in first or key not in second or not _same_bytes(first[key], second[key]):
                raise ConfigError(
                    f"model.name={name!r} starts with another {key} each time it is constructed",
                    "draw its values from torch, numpy or random without seeding them from the clock, and leave no tensor uninitialised",
                )
    return model


def _made(name: str, make: Callable[..., Any], arguments: dict[str, Any], seed: int | None) -> nn.Module:
    try:
        with _limited(f"model.name={name!r}: its constructor"), seeded(seed), _torchs_modes():
            model = make(**arguments)
    except DistmetaError:
        raise
    except RAISED as error:  # a user's class may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(
            f"model.name={name!r} cannot be built from {given}: {error!r}", "fix the constructor, or change model.*"
        ) from error
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.name={name!r} makes a {type(model).__name__}, not a torch.nn.Module", "give the path of a class or function that does"
        )
    try:
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    except TypeError:  # torch keeps modules in sets
        raise ConfigError(f"model.name={name!r} holds a module that has no hash", "declare it with @dataclass(eq=False)") from None
    _check_modules(name, model)
    for key, value in held.items():
        if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise ConfigError(f"model.name={name!r} has a lazy layer: {key} has no shape yet", "give the layer its input size")
        kind = unusual(value)
        if kind:
            raise ConfigError(f"{key} of model.name={name!r} is a {kind} tensor, which is not supported", "keep its values as real numbers")
    if not any(value.is_floating_point() for value in model.parameters()):
        raise ConfigError(f"model.name={name!r} has no parameters in floating point", "choose a network that can learn")
    _check_memory(name, held)
    return model.float()  # as the run computes, unless train.weights says otherwise


def _check_modules(name: str, model: nn.Module) -> None:
    """Leave out the wrappers of torch.compile inside `model`, which have no second derivative. Raises ConfigError for a scripted module."""
    for module_name, module in list(model.named_modules()):
        module.__dict__.pop("_compiled_call_impl", None)
        for key, child in module._modules.items():
            if isinstance(getattr(child, "_orig_mod", None), nn.Module):
                module._modules[key] = child._orig_mod
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"{module_name or 'the network'} of model.name={name!r} is a module of TorchScript, whose parameters cannot be replaced",
                "construct it from its Python class, and load its weights by init_from",
            )


def _check_memory(name: str, held: dict[str, torch.Tensor]) -> None:
    """Give repeated values of an expanded tensor separate memory. Raises ConfigError if two tensors share memory."""
    spans: list[tuple[int, int, str]] = []
    for key, value in held.items():
        if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
            value.data = value.data.clone(memory_format=torch.contiguous_format)
        if value.numel():
            last = sum(stride * (size - 1) for stride, size in zip(value.stride(), value.shape, strict=True))
            spans.append((value.data_ptr(), value.data_ptr() + value.element_size() * (last + 1), key))
    spans.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise ConfigError(
                f"{first} and {second} of model.name={name!r} share memory, but are two tensors",
                "let both names be the same nn.Parameter, or give each its own values with clone()",
            )


def unusual(value: torch.Tensor) -> str:
    """Which kind of tensor `value` is, if not a plain one of real numbers."""
    kinds = {
        "meta": value.is_meta,
        "sparse": value.layout is not torch.strided,
        "quantized": value.is_quantized,
        "complex": value.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), "")


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict, which may hold more (torch's get_extra_state)."""
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(value.detach().reshape(-1).view(torch.uint8) for value in (one, other)))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore them at the end. With None, only restore them."""
    python, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)


@contextmanager
def _torchs_modes() -> Iterator[None]:
    """Restore at the end what a user's code may have set for the whole process, which other networks and loops would compute with."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)


def _limited(what: str) -> AbstractContextManager[None]:
    """Raise ConfigError if the block takes longer than IMPORT_LIMIT_S."""
    remedy = "import it in a separate Python process to see where it waits"
    return time_limit(IMPORT_LIMIT_S, ConfigError(f"{what} takes more than {IMPORT_LIMIT_S:g} s", remedy))
