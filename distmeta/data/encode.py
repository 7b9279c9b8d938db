"""Source images → the encoded images in shards: decoded, resized and encoded once, a batch at a time."""

import io
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from distmeta.data.decode import MAX_PIXELS, ValueRange, decode_file
from distmeta.data.images import Pixels, Resize, fit
from distmeta.data.sources import SourceImage
from distmeta.errors import DataError

_BATCH_IMAGES = 64
_BATCH_BYTES = 2 << 20


class Encoding(NamedTuple):
    """How an image is read and stored: side (pixels), channels (1 or 3), format, method of making it square, JPEG quality (1 to 100),
    values of black and white in files without 8 bits, and maximum pixels of a file.
    """

    image_size: int
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]
    resize: Resize
    quality: int
    value_range: ValueRange | None = None
    max_pixels: int = MAX_PIXELS


class EncodedImage(NamedTuple):
    """One image for a shard. If there is no `content`, `problem` gives the reason.

    `digest` is equal for equal pixels; `peak` and `has_more` are as in `Decoded`.
    """

    split: str
    class_name: str
    category: str
    origin: str
    content: bytes = b""
    problem: str = ""
    digest: int = 0
    peak: int | None = None
    has_more: bool = False


class EncodedBatch(NamedTuple):
    """Some images in the source's order. `sums` and `squares` are per channel, over the values 0..255 of the training images' pixels.
    `source_crc` is a checksum of the source's data, from which a repeated batch is recognised.
    """

    images: list[EncodedImage]
    sums: list[int]
    squares: list[int]
    source_crc: int


def batches(images: Iterable[SourceImage]) -> Iterator[list[SourceImage]]:
    """Cut a stream into batches that depend on the stream alone."""
    batch: list[SourceImage] = []
    size = 0
    for image in images:
        batch.append(image)
        size += len(image.image)
        if len(batch) == _BATCH_IMAGES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def crc(batch: list[SourceImage]) -> int:
    """A checksum over names and bytes of a batch."""
    value = 0
    for image in batch:
        value = zlib.crc32(image.image, zlib.crc32(repr(image[:3]).encode(), value))
    return value


def encode(encoding: Encoding, batch: list[SourceImage]) -> EncodedBatch:
    """Encode a batch. An image that does not decode is a `problem`, not an error."""
    values = np.arange(256, dtype=np.int64)
    histogram = np.zeros((encoding.channels, 256), dtype=np.int64)
    images = []
    for image in batch:
        place = (image.split, image.class_name, image.category, image.origin)
        try:
            decoded = decode_file(image.image, encoding.channels, "the image", encoding.value_range, encoding.max_pixels)
        except DataError as error:
            images.append(EncodedImage(*place, problem=error.message))
            continue
        picture = fit(decoded.picture, encoding.image_size, encoding.resize)
        if image.split == "train":
            histogram += np.array(picture.histogram(), dtype=np.int64).reshape(histogram.shape)
        content, digest = _to_bytes(picture, encoding), pixels_digest(np.asarray(picture))
        images.append(EncodedImage(*place, content=content, digest=digest, peak=decoded.peak, has_more=decoded.has_more))
    return EncodedBatch(images, (histogram @ values).tolist(), (histogram @ values**2).tolist(), crc(batch))


def pixels_digest(pixels: Pixels) -> int:
    """64 bits that are equal for equal pixels, in rows of (H, W) or (H, W, C)."""
    return int.from_bytes(blake2b(pixels.tobytes(), digest_size=8).digest())


def _to_bytes(picture: Image.Image, encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    if encoding.image_format == "jpg":
        picture.save(buffer, "JPEG", quality=encoding.quality)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
