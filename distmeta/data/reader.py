"""Pixels of a split's images. Shards are fetched ahead of use. Images that do not decode are replaced and counted."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from distmeta.data.images import Pixels, Preprocessing, decode_packed
from distmeta.data.shards import Dataset, Shard
from distmeta.data.splits import Split
from distmeta.data.traffic import TRAFFIC
from distmeta.errors import DataError
from distmeta.masking import printable

ImageRef = tuple[int, int]  # number of the shard in its split, member in the shard

# a split up to this size is decoded once and kept; in a larger one, most images are used once per visit to a shard
_PIXELS_KEPT_BYTES = 64 << 20
_SPARE_SHARD_BYTES = 256 << 20  # bytes on disk of shards that stay open although no slot uses them
_FETCHERS = 4  # threads
_log = logging.getLogger(__name__)


class ImageReader:
    """Images of one split as uint8 pixels.

    Of the images in the shards read so far, up to `max_bad_fraction` may fail to decode; `bad` lists them by key. Safe between threads.
    """

    def __init__(self, dataset: Dataset, split: Split, preprocessing: Preprocessing, max_bad_fraction: float) -> None:
        self.bad: list[str] = []
        self._dataset = dataset
        self._infos = dataset.shards(split)
        self._preprocessing = preprocessing
        self._max_bad_fraction = max_bad_fraction
        self._read: set[int] = set()
        self._shards: dict[int, Future[Shard]] = {}  # least recently used first
        images = sum(len(info.sizes) for info in self._infos)
        self._keeps_pixels = images * preprocessing.pixels().nbytes <= _PIXELS_KEPT_BYTES
        self._pixels: dict[ImageRef, Pixels] = {}
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="shards")

    def expect(self, shards: Iterable[int]) -> None:
        """Start to fetch the shards that will be needed, in this order, and release the least recently used others."""
        needed = list(dict.fromkeys(shards))
        with self._lock:
            for number in needed:
                self._shards[number] = self._fetched(number)
            spare = sum(self._infos[number].bytes for number in self._shards if number not in needed)
            for number in [number for number in self._shards if number not in needed]:
                if spare <= _SPARE_SHARD_BYTES:
                    break
                self._shards.pop(number).cancel()
                spare -= self._infos[number].bytes

    def first(self, choices: Iterator[ImageRef]) -> Pixels:
        """The first of `choices` that decodes, uint8 (C, H, W). Raises DataError if none decodes, if too many images did not, or if their
        shard cannot be read.
        """
        last = None
        for image in choices:
            if (pixels := self._pixels.get(image)) is not None:
                return pixels
            try:
                return self._decode(image)
            except _BadImage as error:
                self._count(error)
                last = error
        raise DataError(f"{last}, and no image of its class is left to replace it", "distmeta verify names the images to fix")

    def _fetched(self, number: int) -> Future[Shard]:
        """A shard, removed from `_shards` or requested now. The caller holds the lock."""
        return self._shards.pop(number, None) or self._threads.submit(self._dataset.fetch, self._infos[number])

    def _decode(self, image: ImageRef) -> Pixels:
        number, member = image
        key = self._infos[number].key(member)
        if key in self.bad:
            raise _BadImage(key, f"{key} was bad before")
        with self._lock:
            future = self._shards[number] = self._fetched(number)
        shard = future.result()
        self._read.add(number)
        encoded = shard.image(member)
        TRAFFIC.count(image_bytes=len(encoded))
        try:
            pixels = decode_packed(encoded, self._preprocessing, key)
        except DataError as error:
            raise _BadImage(key, error.message) from None
        if self._keeps_pixels:
            self._pixels[image] = pixels
        return pixels

    def _count(self, bad: "_BadImage") -> None:
        with self._lock:
            if bad.key in self.bad:
                return
            self.bad.append(bad.key)
            TRAFFIC.count(bad_images=1)
        seen = sum(len(self._infos[number].sizes) for number in self._read)
        if len(self.bad) > self._max_bad_fraction * seen:
            others = f"; {len(self.bad)} of {seen} images do not decode, more than data.max_bad_fraction={self._max_bad_fraction:g}"
            raise DataError(
                f"{bad}{others if len(self.bad) > 1 else ''}",
                "raise data.max_bad_fraction, with which --resume continues; or pack the dataset again",
            )
        _log.warning("%s; it is replaced by another image of its class", printable(str(bad)))


class _BadImage(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key
