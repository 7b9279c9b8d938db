"""Episodes in two stages: first which classes and images (integers), then the images themselves.

The first stage is a pure function of (seed, purpose, step, slot) and the composition of one window of shards. It does not read pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distmeta.seeds import generator


@dataclass(frozen=True)
class Task:
    """Way N, shot K, queries Q (per class), and whether each class turned by 90°, 180° and 270° counts as three more classes."""

    way: int
    shot: int
    queries: int
    class_rotations: bool = False

    @property
    def images_per_class(self) -> int:
        return self.shot + self.queries

    @property
    def images(self) -> int:
        return self.way * self.images_per_class


class Episode(NamedTuple):
    """The composition of one episode, in integers.

    `class_ids` (N,); `quarter_turns` (N,) in 0..3; `members` (N, K+Q): positions in the window, the first K of each row are support;
    `spares`: for each class the images not drawn, in the order in which they replace images that do not decode.
    """

    class_ids: NDArray[np.int64]
    quarter_turns: NDArray[np.int64]
    members: NDArray[np.int64]
    spares: list[NDArray[np.int64]]


@dataclass(frozen=True)
class Batch:
    """B tasks of one step. Every field but `step` holds one entry for each task: a tensor (B, …) or a list.

    step: of training, 0 in evaluation; slots: the tasks' positions in the meta-batch, or the numbers of evaluation episodes.
    Fields are used by name, so a batch may have more of them: a domain derives a subclass (`docs/extending.md`).
    """

    step: int
    slots: list[int]

    def __len__(self) -> int:
        return len(self.slots)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same tasks with every tensor mapped."""
        changed: dict[str, Any] = {name: change(value) for name, value in self._entries().items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def like(self, parameter: Tensor) -> Self:
        """The same tasks on `parameter`'s device, with real numbers in its type."""
        return self.map(lambda tensor: tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else None))

    def take(self, positions: Sequence[int]) -> Self:
        """The tasks at these positions; a position may be repeated."""
        chosen = list(positions)
        if chosen == list(range(len(self))):
            return self
        taken: dict[str, Any] = {
            name: value[chosen] if isinstance(value, Tensor) else [value[position] for position in chosen]
            for name, value in self._entries().items()
        }
        return replace(self, **taken)

    def each(self) -> Iterator[Self]:
        """Every task as a batch of one."""
        return (self.take([position]) for position in range(len(self)))

    def chunks(self, size: int) -> Iterator[tuple[Self, list[int]]]:
        """The tasks as chunks of `size`, each with the places of its tasks in the chunk, in the batch's order. A task's place is its slot
        modulo `size`, whatever else the batch holds; places without a task repeat another task. Both matter for a task's bits, because
        vectorised operations may round the last values of a tensor differently from the first. A contiguous block of n slots makes ⌈n /
        size⌉ chunks.
        """
        places: dict[int, int] = {}  # place → position in this batch
        for position, slot in enumerate(self.slots):
            if slot % size in places:
                yield self._chunk(places, size)
                places = {}
            places[slot % size] = position
        if places:
            yield self._chunk(places, size)

    def _chunk(self, places: dict[int, int], size: int) -> tuple[Self, list[int]]:
        any_of_them = next(iter(places.values()))
        return self.take([places.get(place, any_of_them) for place in range(size)]), list(places)

    def _entries(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "step"}


@dataclass(frozen=True)
class EpisodeBatch(Batch):
    """B episodes with their images.

    support_images (B, N*K, C, H, W) and query_images (B, N*Q, C, H, W), normalised float32, grouped by label;
    support_labels (B, N*K) and query_labels (B, N*Q) in 0..N-1. In regression, inputs (B, M, D) and targets (B, M, 1) take their places.
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    @classmethod
    def of_support(cls, images: Tensor, labels: Tensor) -> "EpisodeBatch":
        """One task that has a support set, images (M, …) and labels (M, …), and no queries."""
        return cls(0, [0], images[None], labels[None], images[None, :0], labels[None, :0])


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """B slots of M images each, for supervised training.

    images (B, M, C, H, W), normalised float32; labels (B, M): the position of each image's class among the classes of the split.
    """

    images: Tensor
    labels: Tensor


def compose(task: Task, members_of_class: dict[int, NDArray[np.int64]], seed: int, purpose: str, *indices: int) -> Episode:
    """Draw one episode uniformly: N different classes, then K+Q different images of each.

    `members_of_class` maps class_id → positions in the window; it must hold at least N classes (a quarter of that with `class_rotations`)
    of at least K+Q images, which `distmeta.data.shards.Dataset.check_task` has checked.
    """
    random = generator(seed, purpose, *indices)
    class_ids = np.array(sorted(members_of_class))
    turns = 4 if task.class_rotations else 1
    chosen = random.permutation(len(class_ids) * turns)[: task.way]
    chosen_ids = class_ids[chosen // turns]
    drawn = [random.permutation(members_of_class[class_id]) for class_id in chosen_ids.tolist()]
    count = task.images_per_class
    return Episode(chosen_ids, chosen % turns, np.stack([order[:count] for order in drawn]), [order[count:] for order in drawn])
