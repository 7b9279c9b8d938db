"""Episodes in two stages: first which classes and images (integers), then the images themselves.

The first stage is a pure function of (seed, purpose, step, slot) and the composition of one window of shards; it never sees a pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distmeta.seeds import generator


@dataclass(frozen=True)
class Task:
    """Way N, shot K, queries Q (per class), and whether each class is also seen turned by 90°, 180° and 270° as classes of their own."""

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
    """What one episode is made of, in integers.

    `class_ids` (N,); `quarter_turns` (N,) in 0..3; `members` (N, K+Q): positions in the window, the first K of each row are support;
    `spares`: for each class the images not drawn, in the order in which they stand in for those that do not decode.
    """

    class_ids: NDArray[np.int64]
    quarter_turns: NDArray[np.int64]
    members: NDArray[np.int64]
    spares: list[NDArray[np.int64]]


class EpisodeBatch(NamedTuple):
    """B episodes with their images.

    step: of training, 0 in evaluation;
    support_images (B, N*K, C, H, W) and query_images (B, N*Q, C, H, W), normalised float32, grouped by label;
    support_labels (B, N*K) and query_labels (B, N*Q) in 0..N-1; slots: the B positions in the meta-batch.
    """

    step: int
    slots: list[int]
    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    def like(self, parameter: Tensor) -> "EpisodeBatch":
        """The same episodes on `parameter`'s device, images in its type."""
        device, dtype = parameter.device, parameter.dtype
        return EpisodeBatch(
            self.step,
            self.slots,
            self.support_images.to(device, dtype),
            self.support_labels.to(device),
            self.query_images.to(device, dtype),
            self.query_labels.to(device),
        )


class LabelledBatch(NamedTuple):
    """B slots of M images each, for supervised training.

    images (B, M, C, H, W), normalised float32; labels (B, M): the position of each image's class among the classes of the split.
    """

    step: int
    slots: list[int]
    images: Tensor
    labels: Tensor

    def like(self, parameter: Tensor) -> "LabelledBatch":
        """The same batch on `parameter`'s device, images in its type."""
        return self._replace(images=self.images.to(parameter.device, parameter.dtype), labels=self.labels.to(parameter.device))


def compose(task: Task, members_of_class: dict[int, NDArray[np.int64]], seed: int, purpose: str, *indices: int) -> Episode:
    """Draw one episode uniformly: N different classes, then K+Q different images of each.

    `members_of_class` maps class_id → positions in the window; it must hold at least N classes (a quarter of that with `class_rotations`)
    of at least K+Q images, which `distmeta.data.shards.Dataset.check_task` has made sure of.
    """
    random = generator(seed, purpose, *indices)
    class_ids = np.array(sorted(members_of_class))
    turns = 4 if task.class_rotations else 1
    chosen = random.permutation(len(class_ids) * turns)[: task.way]
    chosen_ids = class_ids[chosen // turns]
    drawn = [random.permutation(members_of_class[class_id]) for class_id in chosen_ids.tolist()]
    count = task.images_per_class
    return Episode(chosen_ids, chosen % turns, np.stack([order[:count] for order in drawn]), [order[count:] for order in drawn])
