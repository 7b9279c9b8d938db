"""Episodes in order, read ahead of use: first composed (integers), then shards fetched, images decoded, tensors made."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice

import cachetools
import numpy as np
import torch

from distmeta.data.episodes import Episode, EpisodeBatch, Task, compose
from distmeta.data.images import Pixels, Preprocessing, channels_last, decode
from distmeta.data.shards import Dataset, Shard, ShardInfo, Split, members_of_class
from distmeta.seeds import generator

_PIXEL_CACHE_BYTES = 256 << 20
_SHARD_CACHE_BYTES = 256 << 20
_AHEAD = 2  # batches made before they are asked for


class EpisodeStream:
    """Episodes of one split as pure functions of (seed, step, slot): of no rank, worker count, restart or thread.

    `image_size` may be smaller than the packed one. Raises ConfigError if the split cannot serve `task`.
    """

    def __init__(self, dataset: Dataset, split: Split, task: Task, seed: int, image_size: int | None = None, section: str = "data") -> None:
        dataset.check_task(split, task, section)
        self.dataset = dataset
        self.split = split
        self.task = task
        self.seed = seed
        packed = dataset.manifest.preprocessing
        self.preprocessing = packed.model_copy(update={"image_size": image_size or packed.image_size})
        self._infos = dataset.shards(split)
        self._visit = max(1, min(len(info.class_ids) for info in self._infos) // task.images)  # episodes a shard serves before the next
        self._members = [members_of_class(info) for info in self._infos]
        self._images = _Images(dataset, self._infos, self.preprocessing)

    def training(self, slots: Sequence[int], start_step: int = 0) -> Iterator[EpisodeBatch]:
        """For step = start_step, start_step + 1, … without end, the episodes of `slots`."""
        return _ahead(lambda step: self._batch([self._training_episode(step, slot) for slot in slots], slots), count(start_step))

    def evaluation(self, indices: Sequence[int], batch: int = 4) -> Iterator[EpisodeBatch]:
        """The fixed evaluation episodes numbered `indices`, `batch` at a time; episode i reads shard i mod S, in order of shards."""
        ordered = sorted(indices, key=lambda i: (i % len(self._infos), i))
        groups = [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
        return _ahead(lambda n: self._batch([self._evaluation_episode(i) for i in groups[n]], groups[n]), range(len(groups)))

    def training_episode(self, step: int, slot: int) -> Episode:
        """Which classes and images the episode of (step, slot) is made of."""
        return self._training_episode(step, slot)[1]

    def _training_episode(self, step: int, slot: int) -> tuple[int, Episode]:
        shard = self.shard_of(step, slot)
        return shard, compose(self.task, self._members[shard], self.seed, f"{self.split} episode", step, slot)

    def _evaluation_episode(self, index: int) -> tuple[int, Episode]:
        shard = index % len(self._infos)
        return shard, compose(self.task, self._members[shard], self.seed, f"{self.split} evaluation episode", index)

    def shard_of(self, step: int, slot: int) -> int:
        """The shard that serves (step, slot).

        Each slot visits the shards in an order of its own, a new one each time round, and stays for a visit's episodes.
        """
        round_, position = divmod(step // self._visit, len(self._infos))
        return int(generator(self.seed, "shard order", slot, round_).permutation(len(self._infos))[position])

    def _batch(self, episodes: list[tuple[int, Episode]], slots: Sequence[int]) -> EpisodeBatch:
        shot, way = self.task.shot, self.task.way
        pixels = np.stack([self._pixels(shard, episode) for shard, episode in episodes])  # (B, N, K+Q, C, H, W)
        images = self.preprocessing.network_input(pixels)
        labels = torch.arange(way).expand(len(episodes), way)
        return EpisodeBatch(
            0,
            list(slots),
            channels_last(images[:, :, :shot].flatten(1, 2)),
            labels.repeat_interleave(shot, 1),
            channels_last(images[:, :, shot:].flatten(1, 2)),
            labels.repeat_interleave(self.task.queries, 1),
        )

    def _pixels(self, shard: int, episode: Episode) -> Pixels:
        """(N, K+Q, C, H, W), each class turned as its episode says."""
        rows = [
            np.rot90(np.stack([self._images.pixels(shard, member) for member in members]), turns, axes=(-2, -1))
            for members, turns in zip(episode.members.tolist(), episode.quarter_turns.tolist(), strict=True)
        ]
        return np.stack(rows)


class _Images:
    """Decoded images of the shards in use. Shards and pixels used least recently are dropped first."""

    def __init__(self, dataset: Dataset, infos: list[ShardInfo], preprocessing: Preprocessing) -> None:
        self._dataset = dataset
        self._infos = infos
        self._preprocessing = preprocessing
        shard_bytes = max(_SHARD_CACHE_BYTES, 2 * max(info.bytes for info in infos))
        self._shards: cachetools.LRUCache[int, Shard] = cachetools.LRUCache(shard_bytes, getsizeof=lambda shard: shard.info.bytes)
        self._pixels: cachetools.LRUCache[tuple[int, int], Pixels] = cachetools.LRUCache(_PIXEL_CACHE_BYTES, getsizeof=lambda p: p.nbytes)

    def pixels(self, shard: int, member: int) -> Pixels:
        """Image `member` of shard number `shard`, uint8 (C, H, W). Raises DataError if it cannot be read or decoded."""
        key = (shard, member)
        if key not in self._pixels:
            info = self._infos[shard]
            if shard not in self._shards:
                self._shards[shard] = self._dataset.fetch(info)
            self._pixels[key] = decode(self._shards[shard].image(member), self._preprocessing, f"image {member} of {info.name}")
        return self._pixels[key]


def _ahead(make: Callable[[int], EpisodeBatch], indices: Iterable[int]) -> Iterator[EpisodeBatch]:
    """make(i) for every index, computed by one thread up to `_AHEAD` calls before they are asked for."""
    remaining = iter(indices)
    pending: deque[Future[EpisodeBatch]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="episodes") as thread:
        try:
            pending.extend(thread.submit(make, i) for i in islice(remaining, _AHEAD))
            while pending:
                batch = pending.popleft().result()
                pending.extend(thread.submit(make, i) for i in islice(remaining, 1))
                yield batch
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


class LabelledStream:
    pass
