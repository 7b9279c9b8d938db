"""Episodes in order, read ahead of use: first composed (integers), then shards fetched, images decoded, tensors made."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count
from operator import attrgetter
from threading import Lock

import cachetools
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.data.ahead import ahead
from distmeta.data.augment import Augment, augmented
from distmeta.data.episodes import Episode, EpisodeBatch, Task, compose
from distmeta.data.images import Pixels, Preprocessing
from distmeta.data.reader import ImageReader, ImageRef
from distmeta.data.shards import Dataset, members_of_class
from distmeta.data.splits import Split
from distmeta.seeds import generator

_WINDOWS_KEPT = 256  # shards whose member lists are cached

Members = dict[int, NDArray[np.int64]]  # class_id → positions
Window = tuple[int, ...]  # numbers of shards


class EpisodeStream:
    """Episodes of one split as pure functions of (seed, step, slot), independent of rank, worker count, restarts and threads.

    An episode is drawn from a window of shards: one shard if shards hold all classes, else two, replaced one at a time.
    `image_size` may be smaller than the packed one; `augment` changes training images. Images that do not decode are replaced by others
    of their class from the same window, up to `max_bad_fraction` of those in the shards read; `bad` lists their keys.
    Raises ConfigError if the split cannot serve `task`.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        task: Task,
        seed: int,
        image_size: int | None = None,
        section: str = "data",
        augment: Augment | None = None,
        max_bad_fraction: float = 0.0,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        dataset.check_task(split, task, section)
        self.dataset = dataset
        self.split = split
        self.task = task
        self.seed = seed
        self.augment = augment
        self.preprocessing = preprocessing or dataset.preprocessing(image_size)
        self._infos = dataset.shards(split)
        self._width = dataset.window_width(split)
        self._visit = max(1, min(len(info.class_ids) for info in self._infos) // task.images)  # episodes that a slot draws from one window
        self._reader = ImageReader(dataset, split, self.preprocessing, max_bad_fraction)
        self._known_members: cachetools.LRUCache[Window, Members] = cachetools.LRUCache(_WINDOWS_KEPT)
        self._lock = Lock()

    @property
    def bad(self) -> list[str]:
        return self._reader.bad

    def training(self, slots: Sequence[int], start_step: int = 0) -> Iterator[EpisodeBatch]:
        """For step = start_step, start_step + 1, … without end, the episodes of `slots`."""

        def make(step: int) -> EpisodeBatch:
            self._reader.expect(chain.from_iterable(self.window(at, slot) for at in (step, step + self._visit) for slot in slots))
            pixels = self._room(slots)
            for slot, episode in zip(slots, pixels, strict=True):
                self._fill(episode, self.window(step, slot), self.training_episode(step, slot))
                episode[:] = augmented(episode, self.augment, self.seed, step, slot)
            return self._batch(step, slots, pixels)

        return ahead(make, count(start_step))

    def evaluation(self, indices: Sequence[int], batch: int = 4) -> Iterator[EpisodeBatch]:
        """The fixed evaluation episodes numbered `indices`, `batch` at a time, in order of shards; episode i reads shard i mod S."""
        ordered = sorted(indices, key=lambda i: (i % len(self._infos), i))
        groups = [ordered[i : i + batch] for i in range(0, len(ordered), batch)]

        def make(number: int) -> EpisodeBatch:
            self._reader.expect(chain.from_iterable(self._evaluation_window(i) for group in groups[number : number + 2] for i in group))
            pixels = self._room(groups[number])
            for index, episode in zip(groups[number], pixels, strict=True):
                self._fill(episode, self._evaluation_window(index), self.evaluation_episode(index))
            return self._batch(0, groups[number], pixels)

        return ahead(make, range(len(groups)))

    def training_episode(self, step: int, slot: int) -> Episode:
        """The classes and images of the episode of (step, slot)."""
        return compose(self.task, self._members(self.window(step, slot)), self.seed, f"{self.split} episode", step, slot)

    def evaluation_episode(self, index: int) -> Episode:
        """The classes and members of evaluation episode `index`, without images."""
        members = self._members(self._evaluation_window(index))
        return compose(self.task, members, self.seed, f"{self.split} evaluation episode", index)

    def window(self, step: int, slot: int) -> Window:
        """The shards that serve (step, slot).

        Each slot visits the shards in its own order, which is drawn again in each round, and draws several episodes per visit.
        """
        visit = step // self._visit
        if len(self._infos) == self._width == 2:
            return 0, 1
        return tuple(self._visited(slot, visit + i) for i in range(self._width))

    def _visited(self, slot: int, visit: int) -> int:
        round_, position = divmod(visit, len(self._infos))
        return _shard_order(self.seed, slot, round_, len(self._infos), self._width)[position]

    def _evaluation_window(self, index: int) -> Window:
        return tuple((index + i) % len(self._infos) for i in range(self._width))

    @cachetools.cachedmethod(attrgetter("_known_members"), lock=attrgetter("_lock"))
    def _members(self, window: Window) -> Members:
        return members_of_class(*(self._infos[shard] for shard in window))

    def _room(self, slots: Sequence[int]) -> Pixels:
        return self.preprocessing.pixels(len(slots), self.task.way, self.task.images_per_class)

    def _fill(self, pixels: Pixels, window: Window, episode: Episode) -> None:
        """Decode the episode's images into `pixels` (N, K+Q, C, H, W), and turn each class as the episode requires."""
        first = len(self._infos[window[0]].class_ids)

        def images(members: NDArray[np.int64]) -> Iterator[ImageRef]:
            return ((window[0], member) if member < first else (window[1], member - first) for member in members.tolist())

        for row, members, spares, turns in zip(pixels, episode.members, episode.spares, episode.quarter_turns.tolist(), strict=True):
            stand_ins = images(spares)
            for position, image in enumerate(images(members)):
                row[position] = np.rot90(self._reader.first(chain([image], stand_ins)), turns, axes=(-2, -1))

    def _batch(self, step: int, slots: Sequence[int], pixels: Pixels) -> EpisodeBatch:
        """`pixels` (B, N, K+Q, C, H, W)."""
        shot, way = self.task.shot, self.task.way
        labels = torch.arange(way).expand(len(pixels), way)
        return EpisodeBatch(
            step=step,
            slots=list(slots),
            support_images=self._images(pixels[:, :, :shot]),
            support_labels=labels.repeat_interleave(shot, 1),
            query_images=self._images(pixels[:, :, shot:]),
            query_labels=labels.repeat_interleave(self.task.queries, 1),
        )

    def _images(self, pixels: Pixels) -> Tensor:
        """(B, N, K, C, H, W) → (B, N*K, C, H, W), with the channels innermost. With C = 1, torch would otherwise lose this layout."""
        return self.preprocessing.network_input(pixels).movedim(-3, -1).flatten(1, 2).movedim(-1, -3)


@lru_cache(maxsize=4096)
def _shard_order(seed: int, slot: int, round_: int, shards: int, width: int) -> tuple[int, ...]:
    """The order in which a slot visits the shards in a round. With windows of two, a round never starts with the last round's final
    shard.
    """
    order, before = (generator(seed, "shard order", slot, max(0, r)).permutation(shards).tolist() for r in (round_, round_ - 1))
    if width == 2 and round_ > 0 and order[0] == before[-1]:
        order[:2] = order[1::-1]  # at least three shards here, so the swap does not change the round's last shard
    return tuple(order)
