"""A split's images in ordinary shuffled batches, for supervised training."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count

import numpy as np
import torch
from numpy.typing import NDArray

from distmeta.data.ahead import ahead
from distmeta.data.augment import Augment, augmented
from distmeta.data.episodes import LabelledBatch
from distmeta.data.images import Preprocessing
from distmeta.data.reader import ImageReader, ImageRef
from distmeta.data.shards import Dataset
from distmeta.data.splits import Split
from distmeta.errors import ConfigError
from distmeta.seeds import generator


class LabelledStream:
    """Slots of `images_per_slot` images as pure functions of (seed, step, slot), where a step has `slots_per_step` over all workers.

    Slots are numbered across steps. An epoch has as many slots as the split fills, so it uses every image once, except the last few. Shards
    and the images in them are shuffled again in each epoch. A slot reads a contiguous part of the epoch, one shard after the other.
    `image_size`, `augment`, `max_bad_fraction` and `bad` as in `EpisodeStream`.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        images_per_slot: int,
        slots_per_step: int,
        seed: int,
        image_size: int | None = None,
        augment: Augment | None = None,
        max_bad_fraction: float = 0.0,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Raises ConfigError if the split cannot fill a slot."""
        self.split = split
        self.seed = seed
        self.augment = augment
        self.preprocessing = preprocessing or dataset.preprocessing(image_size)
        self._images_per_slot = images_per_slot
        self._slots_per_step = slots_per_step
        self._infos = dataset.shards(split)
        self._class_ids = np.array(dataset.class_ids(split))
        self._sizes = np.array([len(info.class_ids) for info in self._infos])
        self._slots_per_epoch = int(self._sizes.sum()) // images_per_slot
        if not self._slots_per_epoch:
            raise ConfigError(
                f"{images_per_slot} images in a slot but split '{split}' of {dataset.location} has {self._sizes.sum()}",
                "make slots smaller",
            )
        self._half_a_shard = max(1, int(self._sizes.min()) // images_per_slot // 2)  # in steps
        self._reader = ImageReader(dataset, split, self.preprocessing, max_bad_fraction)

    @property
    def bad(self) -> list[str]:
        return self._reader.bad

    def training(self, slots: Sequence[int], start_step: int = 0) -> Iterator[LabelledBatch]:
        """For step = start_step, start_step + 1, … without end, the images of `slots`."""

        def make(step: int) -> LabelledBatch:
            chosen = [self.images(step, slot) for slot in slots]
            soon = (image for slot in slots for image in self.images(step + self._half_a_shard, slot))
            self._reader.expect(shard for shard, _ in chain(*chosen, soon))
            pixels = self.preprocessing.pixels(len(slots), self._images_per_slot)
            for slot, images, room in zip(slots, chosen, pixels, strict=True):
                for position, image in enumerate(images):
                    room[position] = self._reader.first(chain([image], self._stand_ins(image)))
                room[:] = augmented(room, self.augment, self.seed, step, slot)
            labels = [[self._label(image) for image in images] for images in chosen]
            return LabelledBatch(step, list(slots), self.preprocessing.network_input(pixels), torch.tensor(labels))

        return ahead(make, count(start_step))

    def images(self, step: int, slot: int) -> list[ImageRef]:
        """The images (shard, member) of the slot."""
        epoch, number = divmod(step * self._slots_per_step + slot, self._slots_per_epoch)
        # The epoch's images are cut into one part for each slot of a step, so that these slots read different shards.
        position, stretch = divmod(number, self._slots_per_step)
        short, longer = divmod(self._slots_per_epoch, self._slots_per_step)
        first = (stretch * short + min(stretch, longer) + position) * self._images_per_slot
        order = _shuffled(self.seed, "labelled shards", len(self._infos), epoch)
        ends = self._sizes[order].cumsum()
        images = []
        for i in range(first, first + self._images_per_slot):
            at = int(np.searchsorted(ends, i, side="right"))
            shard = int(order[at])
            inside = _shuffled(self.seed, "labelled images", int(self._sizes[shard]), epoch, shard)
            images.append((shard, int(inside[i - ends[at]])))  # an index from the end of the shard
        return images

    def _label(self, image: ImageRef) -> int:
        shard, member = image
        return int(np.searchsorted(self._class_ids, self._infos[shard].class_ids[member]))

    def _stand_ins(self, image: ImageRef) -> Iterator[ImageRef]:
        """The other images of its class in its shard, starting with the next one."""
        shard, member = image
        alike = np.flatnonzero(self._infos[shard].class_ids == self._infos[shard].class_ids[member])
        after = np.roll(alike, -int(np.searchsorted(alike, member)))[1:]
        yield from ((shard, other) for other in after.tolist())


@lru_cache(maxsize=128)
def _shuffled(seed: int, purpose: str, count: int, *indices: int) -> NDArray[np.int64]:
    return generator(seed, purpose, *indices).permutation(count)
