"""Assigns images to shards. The assignment uses integers only and is a pure function of the classes' sizes and the seed.

Every class of a split is cut into the same number R of chunks, sizes differing by at most one. There are R partitions of the classes into G
groups, group sizes differing by at most one; a shard is one group of one partition and takes one chunk of each of its classes. So a shard
holds enough images of each of its classes for any episode, and every image is in exactly one shard. With G = 1 a shard is a miniature of
its split. With more groups two classes share a shard in about one of G partitions, each drawn at random.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distmeta.seeds import generator

Integers = NDArray[np.int64]


class ShardContents(NamedTuple):
    """One shard's samples in order: `classes` (n,) positions in the list of sizes, `images` (n,) positions in the class."""

    classes: Integers
    images: Integers


def deal(sizes: list[int], chunks: int, groups: int, seed: int, split: str, first_id: int = 0) -> list[ShardContents]:
    """`chunks` × `groups` shards of classes with `sizes` images. `first_id` is the class_id of the first class; `split` is part of the
    random draw.
    """
    cut = [_cut(size, chunks, seed, first_id + position) for position, size in enumerate(sizes)]
    shards: list[ShardContents] = []
    for chunk in range(chunks):
        order = np.arange(len(sizes)) if groups == 1 else generator(seed, f"pack {split} partition", chunk).permutation(len(sizes))
        for group in np.array_split(order, groups):
            shards.append(_shuffled([(int(p), cut[p][chunk]) for p in np.sort(group)], seed, split, len(shards)))
    return shards


def _cut(size: int, chunks: int, seed: int, class_id: int) -> list[Integers]:
    """A class's images in `chunks` random parts. Which parts get one image more is also random."""
    random = generator(seed, "pack class", class_id)
    parts = np.array_split(random.permutation(size), chunks)
    return [part for _, part in sorted(zip(random.permutation(chunks).tolist(), parts, strict=True), key=lambda pair: pair[0])]


def _shuffled(parts: list[tuple[int, Integers]], seed: int, split: str, number: int) -> ShardContents:
    classes = np.repeat([position for position, _ in parts], [len(part) for _, part in parts])
    images = np.concatenate([part for _, part in parts])
    order = generator(seed, f"pack {split} shard", number).permutation(len(images))
    return ShardContents(classes[order], images[order])
