"""Runs a network on one input at a time, so that an answer's bits do not depend on the other inputs."""

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Results (M, …) for inputs (M, …); `compute` maps (1, …) to (1, …).

    Chunks of equal size are not enough, because in matrix products and vectorised operations the rounding of a row can depend on its place
    in the chunk.
    """
    if not len(inputs):
        return compute(inputs.new_zeros(1, *inputs.shape[1:]))[:0]
    return torch.cat([compute(inputs[[number]]) for number in range(len(inputs))])
