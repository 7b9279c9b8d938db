"""Inputs through a network each by itself, so that an answer's bits do not depend on who else is asked (law 8)."""

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """(M, …) of inputs (M, …), where `compute` maps (1, …) to (1, …).

    Chunks of one size are not enough: matrix products and vectorised operations may round a row's last bit by its place in the chunk.
    """
    if not len(inputs):
        return compute(inputs.new_zeros(1, *inputs.shape[1:]))[:0]
    return torch.cat([compute(inputs[[number]]) for number in range(len(inputs))])
