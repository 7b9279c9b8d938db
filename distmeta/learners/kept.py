"""Features of images that are met again: computed once for each image while nothing that they depend on changes."""

import hashlib
from collections.abc import Callable

import cachetools
import torch
from torch import Tensor

KEPT_BYTES = 2**30
"""Memory that kept features may take; the ones used least recently go first."""
_TOGETHER = 16  # images computed at once; always as many, so that an image meets the same arithmetic in every company


class KeptFeatures:
    """Image → features, for one network with one set of parameters, whose features no randomness and no other image changes."""

    def __init__(self) -> None:
        self._rows: cachetools.LRUCache[bytes, Tensor] = cachetools.LRUCache(KEPT_BYTES, lambda row: row.numel() * row.element_size())

    @torch.no_grad()
    def __call__(self, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """(M, D) for inputs (M, …): `compute` is asked for those that are not kept."""
        keys = [hashlib.blake2b(one.contiguous().cpu().numpy().tobytes(), digest_size=16).digest() for one in inputs]
        rows = {key: self._rows[key] for key in set(keys) if key in self._rows}
        missing = {key: place for place, key in enumerate(keys) if key not in rows}
        for start in range(0, len(missing), _TOGETHER):
            some = list(missing.items())[start : start + _TOGETHER]
            places = [place for _, place in some]
            computed = compute(inputs[places + places[:1] * (_TOGETHER - len(some))])
            rows |= {key: row.clone() for (key, _), row in zip(some, computed, strict=False)}
        for key in missing:
            self._rows[key] = rows[key]
        return torch.stack([rows[key] for key in keys])
