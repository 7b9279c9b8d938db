"""Weights from elsewhere: read from a file without executing any of it, and put into a network wherever name and shape agree."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from torch import Tensor, nn

from distmeta.errors import ConfigError, DataError
from distmeta.models.convert import batch_norms
from distmeta.models.head import is_head
from distmeta.models.norm import FrozenBatchNorm

_NAMED = 5  # names that a message lists
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # under which training scripts keep a state dict among other things
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_weights(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote (.pt, .pth, .bin; no code in it is run).

    Raises DataError; `origin` names the file for people.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            return deserialised(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise DataError(f"{origin} does not hold safetensors: {error}", "download or export the weights again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler raises, at length
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
    """How many tensors were taken, and the names that were not: heads of another width, and entries that the network has no place for."""

    taken: int
    drawn: list[str]
    left_over: list[str]

    def __str__(self) -> str:
        parts = [f"{self.taken} tensors taken"]
        parts += [f"drawn at random: {_listed(self.drawn)}"] if self.drawn else []
        parts += [f"left over: {_listed(self.left_over)}"] if self.left_over else []
        return "; ".join(parts)


def load_into(model: nn.Module, given: dict[str, Tensor], origin: str, prefix: str | None = None) -> Loaded:
    """Put `given` into the parameters and persistent buffers of `model` that have the same names, in place.

    `prefix` is removed from names that begin with it. The head, low-rank pairs and buffers keep what they have where `given` lacks them,
    all but the statistics of frozen norms.
    Raises ConfigError listing what is missing and what has another shape, if that is in the body, or what is not finite.
    """
    if prefix:
        if not any(name.startswith(prefix) for name in given):
            raise ConfigError(f"init_prefix={prefix!r}, but no name in {origin} begins with it", f"its names: {_listed(list(given))}")
        given = {name.removeprefix(prefix): value for name, value in given.items()}
    held = model.state_dict(keep_vars=True)
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
    broken = [name for name, value in taken.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ConfigError(f"init_from={origin} holds values that are not finite (NaN or infinity): {_listed(broken)}", "export it again")
    with torch.no_grad():
        for name, value in taken.items():
            held[name].copy_(value)
    used = {plain_name(name) for name in held} | held.keys() | _norm_entries(model)
    return Loaded(len(taken), [name for name in held if name not in taken], [name for name in given if name not in used])


def plain_name(name: str) -> str:
    """The name that a parameter has without the parametrization around it."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)


def _free(model: nn.Module, name: str) -> bool:
    """Whether a start needs no value for it."""
    if is_head(model, name) or re.search(r"\.parametrizations\.\w+\.\d+\.", name) is not None:
        return True
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    return last in module._buffers and not isinstance(module, FrozenBatchNorm)


def _norm_entries(model: nn.Module) -> set[str]:
    """What torch's batch norms keep and ours do not: a count of batches, and statistics where the episode's own are used."""
    entries = set()
    for name, module in model.named_modules():
        if name in batch_norms(model) or hasattr(module, "running_mean"):
            entries |= {f"{name}.{part}" for part in ("num_batches_tracked", "running_mean", "running_var")}
    return entries


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
