"""Pretrained weights: read from a file without executing anything in it, and copied into a network by name and shape."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from torch import Tensor, nn

from distmeta.errors import ConfigError, DataError
from distmeta.models.construct import tensors_of, unusual
from distmeta.models.convert import batch_norms
from distmeta.models.head import is_head
from distmeta.models.norm import FrozenBatchNorm

_NAMED = 5  # maximum names in a message
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts store the state dict
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_weights(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote (.pt, .pth, .bin; no code in it is run).

    Raises DataError; `origin` names the file in messages.
    """
    tensors = _of_safetensors(path, origin) if path.suffix.lower() == ".safetensors" else _of_state_dict(path, origin)
    for name, value in tensors.items():
        kind = unusual(value)
        if kind:
            raise DataError(f"{name} in {origin} is a {kind} tensor, which is not supported", "save its values as real numbers")
    return tensors


def _of_safetensors(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        return deserialised(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{origin} does not hold safetensors: {error}", "download or export the weights again") from None


def _of_state_dict(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises long messages of its unpickler
        refused = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = refused[1] if refused else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{origin} is not a state dict that can be read without running code: {' '.join(reason.split())[:160]}",
            "save it again with torch.save(network.state_dict(), FILE), or as safetensors",
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise DataError(f"{origin} holds a {type(content).__name__} without named tensors", "save network.state_dict() instead")
    return tensors


class Loaded(NamedTuple):
    """The number of tensors used, and the names of unused ones: heads of another width, and entries that the network does not have."""

    taken: int
    drawn: list[str]
    left_over: list[str]

    def __str__(self) -> str:
        parts = [f"{self.taken} tensors taken"]
        parts += [f"drawn at random: {_listed(self.drawn)}"] if self.drawn else []
        parts += [f"left over: {_listed(self.left_over)}"] if self.left_over else []
        return "; ".join(parts)


def load_into(model: nn.Module, given: dict[str, Tensor], origin: str, prefix: str | None = None) -> Loaded:
    """Copy `given` into the parameters and persistent buffers of `model` with the same names, in place.

    `prefix` is removed from names that begin with it. If `given` lacks the head, low-rank pairs or buffers, they keep their values, except
    the statistics of frozen norms. Raises ConfigError listing entries of the body that are missing or of another shape, or values that are
    not finite.
    """
    if prefix:
        if not any(name.startswith(prefix) for name in given):
            raise ConfigError(f"init_prefix={prefix!r}, but no name in {origin} begins with it", f"its names: {_listed(list(given))}")
        given = {name.removeprefix(prefix): value for name, value in given.items()}
    given = dict(sorted(given.items()))  # safetensors gives names in an order that changes from one reading to the next
    held = tensors_of(model.state_dict(keep_vars=True))
    places = {name: given.get(name, given.get(plain_name(name))) for name in held}
    missing = [name for name, value in places.items() if value is None and not _free(model, name)]
    other = [
        f"{name} {tuple(held[name].shape)} (there {tuple(value.shape)})"
        for name, value in places.items()
        if value is not None and value.shape != held[name].shape and not is_head(model, name)
    ]
    if missing or other:
        problems = [f"missing there: {_listed(missing)}"] if missing else []
        problems += [f"of another shape: {_listed(other)}"] if other else []
        left = [name for name in given if name not in held]
        hint = f"; names there: {_listed(left)}" if left and missing else ""
        raise ConfigError(
            f"init_from={origin} does not fit {type(model).__name__}: {'; '.join(problems)}{hint}",
            "set init_prefix to the prefix of the names, or model.* as in the network that was saved",
        )
    taken = {name: value for name, value in places.items() if value is not None and value.shape == held[name].shape}
    whole = [name for name, value in taken.items() if held[name].is_floating_point() and not value.is_floating_point()]
    if whole:
        raise ConfigError(f"init_from={origin} holds integers where numbers are needed: {_listed(whole)}", "export it without quantisation")
    broken = [name for name, value in taken.items() if value.is_floating_point() and not value.to(held[name].dtype).isfinite().all()]
    if broken:
        raise ConfigError(f"init_from={origin} holds values that are not finite (NaN or infinity): {_listed(broken)}", "export it again")
    with torch.no_grad():
        for name, value in taken.items():
            held[name].copy_(value)
    used = {plain_name(name) for name in held} | held.keys() | _norm_entries(model)
    return Loaded(len(taken), [name for name in held if name not in taken], [name for name in given if name not in used])


def plain_name(name: str) -> str:
    """A parameter's name without its parametrization."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)


def _free(model: nn.Module, name: str) -> bool:
    """Whether its value may be missing."""
    if is_head(model, name) or re.search(r"\.parametrizations\.\w+\.\d+\.", name) is not None:
        return True
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    return last in module._buffers and not isinstance(module, FrozenBatchNorm)


def _norm_entries(model: nn.Module) -> set[str]:
    """Entries of torch's batch norms that ours do not have: a count of batches, and statistics if the episode's statistics are used."""
    entries = set()
    for name, module in model.named_modules():
        if name in batch_norms(model) or hasattr(module, "running_mean"):
            entries |= {f"{name}.{part}" for part in ("num_batches_tracked", "running_mean", "running_var")}
    return entries


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
