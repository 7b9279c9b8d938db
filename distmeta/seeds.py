"""The source of every random number in distmeta: a generator is a function of (seed, purpose, indices)."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator for one purpose, independent of every other purpose and of every other index.

    Two calls with equal arguments give equal streams in any process; nothing is shared or advanced globally.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *indices])


def torch_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for `torch.Generator`, derived like `generator`."""
    return int(generator(seed, purpose, *indices).integers(1 << 63))
