"""Counts duplicate pictures within classes, across classes and across splits."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

_PAIRS = 10  # pairs of classes named as examples


class Copies(BaseModel):
    """How often images of a dataset have the same pixels.

    `within_classes`: images with the same pixels as an earlier image of their class. `across_classes`: distinct pictures that are in more
    than one class of a split. `across_splits`: distinct pictures that are in more than one split. `pairs`: class_ids of classes that share
    a picture, up to ten, those of different splits first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    within_classes: int = Field(ge=0)
    across_classes: int = Field(ge=0)
    across_splits: int = Field(ge=0)
    pairs: list[tuple[int, int]] = []

    def sentences(self, names: Sequence[str]) -> list[str]:
        """The counts as sentences; `names[class_id]` names a class. Empty if there are no duplicates."""
        counts = (
            (self.within_classes, "images are copies of another image of their class"),
            (self.across_classes, "pictures are in more than one class of a split"),
            (self.across_splits, "pictures are in more than one split"),
        )
        said = [f"{count} {text}" for count, text in counts if count]
        if self.pairs:
            said.append("classes that share a picture: " + ", ".join(f"{names[a]} and {names[b]}" for a, b in self.pairs))
        return said


class FoundCopies(NamedTuple):
    """`across` holds the positions of two images with the same pixels in different splits, or None."""

    copies: Copies
    across: tuple[int, int] | None


def find_copies(digests: NDArray[np.uint64], class_ids: NDArray[np.int64], splits: Sequence[str]) -> FoundCopies:
    """Compare images, each given by its `pixels_digest` and class_id; `splits[class_id]` is the class's split."""
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.diff(digests[order], prepend=~digests[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    within = across_classes = across_splits = 0
    pairs: list[Counter[tuple[int, int]]] = [Counter(), Counter()]  # across splits, across classes
    across: tuple[int, int] | None = None
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        group = order[start : start + size].tolist()
        first_of = {int(class_ids[i]): i for i in reversed(group)}
        within += size - len(first_of)
        by_split: dict[str, list[int]] = defaultdict(list)
        for class_id in sorted(first_of):
            by_split[splits[class_id]].append(class_id)
        several = [held for held in by_split.values() if len(held) > 1]
        across_classes += bool(several)
        pairs[1].update((held[0], other) for held in several for other in held[1:])
        if len(by_split) > 1:
            across_splits += 1
            first, *others = (held[0] for held in by_split.values())
            pairs[0].update((first, other) for other in others)
            across = across or (first_of[first], first_of[others[0]])
    named = [pair for kind in pairs for pair, _ in kind.most_common()][:_PAIRS]
    return FoundCopies(Copies(within_classes=within, across_classes=across_classes, across_splits=across_splits, pairs=named), across)


class SeenPictures:
    """Collects the digests of a dataset's images. It takes sixteen bytes per image."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []

    def add(self, class_ids: NDArray[np.int64], digests: Sequence[int]) -> None:
        """Add some images' class_ids and digests. Several threads may call this at once."""
        self._parts.append((class_ids, np.array(digests, np.uint64)))

    def copies(self, splits: Sequence[str]) -> FoundCopies:
        """The result of `find_copies` over all added images."""
        class_ids, digests = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return find_copies(digests, class_ids, splits)
