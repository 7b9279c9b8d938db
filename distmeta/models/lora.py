"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a frozen weight W becomes W + (alpha / rank) · B A, and only A and B are learned.

The pairs are torch parametrizations, so they apply in every layer that reads its weight, including nn.MultiheadAttention.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distmeta.errors import ConfigError
from distmeta.models.call import places as tensor_places
from distmeta.models.head import head_of, is_head
from distmeta.models.patterns import matching

_ORIGINAL = re.compile(r"(?P<layer>.+)\.parametrizations\.(?P<weight>\w+)\.original")  # suffix of a weight with one parametrization
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """W (rows, …) → W + (alpha / rank) · B A, with A (rank, columns) drawn as torch draws a linear layer and B (rows, rank) zero."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        columns = weight[0].numel()
        self.scale = alpha / rank
        self.A = nn.Parameter(weight.new_empty(rank, columns))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return _sum(weight, self.A, self.B, self.scale)


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight + scale * (b @ a).view(weight.shape)


def add_pairs(model: nn.Module, rank: int, alpha: float, modules: Sequence[str]) -> None:
    """Put a low-rank pair on every linear and convolution layer that a pattern of `modules` matches; freeze everything except pairs and
    head.

    Of nn.MultiheadAttention the pattern matches the layer itself (its joint input projection) and its `out_proj`.
    Raises ConfigError if a pattern matches no such layer, the layer is the head, or its weight is another layer's, too, or has a
    parametrization already: such a pair could not be merged into the weight.
    """
    head_of(model)
    uses = {place: shared for shared in tensor_places(model).values() for place in shared}
    places = {name: place for name, module in model.named_modules() if (place := _place(module)) and not is_head(model, f"{name}.")}
    chosen = matching(modules, places, "model.lora.modules", "linear or convolution layer before the head")
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(model, parameter_name) and parameter.requires_grad)
    for name in chosen:
        module, place = model.get_submodule(name), places[name]
        weight = getattr(module, place)
        if parametrize.is_parametrized(module, place):
            raise ConfigError(f"model.lora: {name}.{place} has a parametrization already", "leave that layer out of model.lora.modules")
        shared = [other for other in uses[f"{name}.{place}" if name else place] if other != f"{name}.{place}"]
        if shared:
            raise ConfigError(f"model.lora: {name}.{place} is {shared[0]}, too", "leave that layer out of model.lora.modules")
        if rank > min(len(weight), weight[0].numel()):
            raise ConfigError(
                f"model.lora.rank={rank} is more than the weight of {name} has, {min(len(weight), weight[0].numel())}",
                "set a smaller model.lora.rank, or remove that layer from model.lora.modules",
            )
        parametrize.register_parametrization(module, place, LowRank(weight.detach(), rank, alpha))


def _place(module: nn.Module) -> str | None:
    """The name of the weight that can have a pair."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight" if module.in_proj_weight is not None else None
    return "weight" if isinstance(module, _LAYERS) and not isinstance(module.weight, nn.UninitializedParameter) else None


def merge(model: nn.Module) -> None:
    """Make every weight with a low-rank pair a plain weight of the same value, in place."""
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        _of_its_own_class(module)
        for place in list(parametrizations):
            if isinstance(parametrizations[place][0], LowRank):  # type: ignore[index]
                with torch.no_grad():
                    parametrize.remove_parametrizations(module, place, leave_parametrized=True)


def _of_its_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that no other has: torch removes the weight from the class, which copies of a module share."""
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")})


def merged(tensors: Mapping[str, Tensor], lora: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network's tensors by name, with every low-rank pair merged into its weight, under the weight's name without a pair. `lora` holds
    the pairs' rank and alpha. The values equal those of `merge` bit for bit. Raises ConfigError if a weight has another parametrization
    besides its pair.
    """
    plain = dict(tensors)
    for name in tensors:
        found = _ORIGINAL.fullmatch(name)
        pair = name.removesuffix("original") + "0."
        if found and f"{pair}A" in tensors:
            weight, a, b = plain.pop(name), plain.pop(f"{pair}A"), plain.pop(f"{pair}B")
            plain[f"{found['layer']}.{found['weight']}"] = _sum(weight, a, b, lora["alpha"] / lora["rank"])
    left = next((name for name in plain if re.search(r"\.parametrizations\.\w+\.\d+\.[AB]$", name)), None)
    if left is not None:
        raise ConfigError(f"the low-rank pair {left} has a weight with another parametrization", "leave --merge out")
    return plain


def without_pairs(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a model after its low-rank pairs are merged: the network has no pairs, and the weights that had one are not
    frozen.
    """
    model = {key: value for key, value in description["model"].items() if key != "lora"}
    frozen = [name for name in description.get("frozen", ()) if not _ORIGINAL.fullmatch(name)]
    rest = {key: value for key, value in description.items() if key != "adapted"}
    return rest | {"model": model, "frozen": frozen}
