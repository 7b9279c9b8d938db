"""Dropout whose masks are a function of (seed, step, slot, phase, layer, element), so that a step can be repeated together with any other
slots.

torch's dropout draws from one global generator, whose state depends on earlier computations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distmeta.seeds import torch_seed

_MIXERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # SplitMix64's constants, as signed numbers
_SATURATED = -1.7580993408473766  # -λα of the self-normalising activation (SELU)


class SeededDropout(nn.Module):
    """Dropout in training, with a mask computed from `key` and the number of each element by SplitMix64 (Steele et al. 2014).

    `whole` is the first dimension over which elements are dropped together: None drops each element separately, 2 drops whole channels (N,
    C, …) like `nn.Dropout2d`. `alpha` keeps mean and variance of self-normalising networks (Klambauer et al. 2017, arXiv:1706.02515,
    section 3). `take_key` gives it an integer tensor, which inside `torch.vmap` may differ from task to task. Without a key the layer is
    inactive. A layer that is called several times draws another mask in each call.
    """

    def __init__(self, rate: float, whole: int | None = None, alpha: bool = False) -> None:
        super().__init__()
        self.rate = rate
        self.whole = whole
        self.alpha = alpha
        self.key: Tensor | None = None
        self.calls = 0

    def take_key(self, key: Tensor | None) -> None:
        """Draw the masks of the next forward from `key`, an int64 scalar; None drops nothing."""
        self.key, self.calls = key, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if not (self.training and self.rate and self.key is not None):
            return inputs
        shape = inputs.shape if self.whole is None else inputs.shape[: self.whole]
        kept = uniform(self.key + self.calls * _MIXERS[1], shape.numel(), inputs.device).view(shape) >= self.rate
        self.calls += 1
        kept = kept.view(*shape, *(1,) * (inputs.dim() - len(shape)))
        if not self.alpha:
            return torch.where(kept, inputs / (1 - self.rate), 0) if self.rate < 1 else torch.zeros_like(inputs)
        scale = ((1 - self.rate) * (1 + self.rate * _SATURATED**2)) ** -0.5 if self.rate < 1 else 0.0
        return torch.where(kept, inputs, _SATURATED) * scale - scale * self.rate * _SATURATED


def uniform(key: Tensor, count: int, device: torch.device) -> Tensor:
    """`count` numbers in [0, 1), each a function of `key` (an int64 scalar) and its position alone: SplitMix64's outputs, 24 bits of
    each.
    """
    state = (torch.arange(1, count + 1, device=device) * _MIXERS[0]) + key
    state = (state ^ _shifted(state, 30)) * _MIXERS[1]
    state = (state ^ _shifted(state, 27)) * _MIXERS[2]
    return _shifted(state ^ _shifted(state, 31), 40).float() * 2.0**-24


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, for which torch has no operation."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def dropouts(model: nn.Module) -> list[SeededDropout]:
    """The layers that take a key, in the model's order. A layer's number is its index here."""
    return [module for module in model.modules() if isinstance(module, SeededDropout)]


def keys(seed: int, step: int, slots: Sequence[int], phase: int, layers: int) -> Tensor:
    """int64 (slots, layers): the key of each dropout layer's mask in each slot."""
    return torch.tensor([[torch_seed(seed, "dropout", step, slot, phase, layer) for layer in range(layers)] for slot in slots])
