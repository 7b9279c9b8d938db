"""Cached features of repeated images: computed once for each image as long as the parameters do not change."""

import hashlib
from collections.abc import Callable

import cachetools
import torch
from torch import Tensor

from distmeta.learners.one_by_one import one_by_one

KEPT_BYTES = 2**30
"""Memory limit of cached features (bytes). The least recently used ones are removed first."""


class KeptFeatures:
    """Image → features, for one network with one set of parameters. Features must not depend on random numbers or other images."""

    def __init__(self) -> None:
        self._rows: cachetools.LRUCache[bytes, Tensor] = cachetools.LRUCache(KEPT_BYTES, lambda row: row.numel() * row.element_size())

    @torch.no_grad()
    def __call__(self, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Features (M, D) for inputs (M, …). `compute` is called for the missing ones."""
        keys = [hashlib.blake2b(one.contiguous().cpu().numpy().tobytes(), digest_size=16).digest() for one in inputs]
        rows = {key: self._rows[key] for key in set(keys) if key in self._rows}
        missing = {key: place for place, key in enumerate(keys) if key not in rows}
        if missing:
            computed = one_by_one(compute, inputs[list(missing.values())])
            rows |= {key: row.clone() for key, row in zip(missing, computed, strict=True)}
        for key in missing:
            self._rows[key] = rows[key]
        return torch.stack([rows[key] for key in keys])
