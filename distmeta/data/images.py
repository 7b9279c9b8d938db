"""One image: bytes → pixels of the dataset's size and mode → the network's input. Training and prediction share these functions."""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator
from torch import Tensor

from distmeta.data.decode import (
    MAX_PIXELS,
    ValueRange,
    as_pillow_scales,
    check_bright,
    check_pixels,
    decode_file,
    does_not_decode,
    eight_bits,
    flattened,
    upright,
)
from distmeta.errors import DataError

Resize = Literal["squash", "center-crop"]
Pixels = NDArray[np.uint8]
Number = Annotated[float, Field(allow_inf_nan=False)]

_JPEG = b"\xff\xd8"
_JPEG_SIZE_MARKERS = (0xC0, 0xC1, 0xC2)  # start of a frame: baseline, extended, progressive
_JPEG_TABLES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # segments that may precede it: tables, application data, comments


class Preprocessing(BaseModel):
    """How images of a dataset become network input. It is part of every published model.

    `image_size` is the side in pixels, `channels` 1 (grey) or 3 (RGB); `resize` is the method of making images square: "squash" scales both
    sides, "center-crop" keeps the largest central square; `mean` and `std`, one number for each channel, are of pixel values in 0..1;
    `value_range` gives the values of black and white in files that do not have 8 bits (default: the full range of 16-bit integers; other
    files are refused).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    resize: Resize
    mean: list[Number]
    std: list[Number]
    value_range: tuple[Number, Number] | None = None

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: list[float]) -> list[float]:
        if min(std, default=0.0) <= 0:
            raise ValueError(f"standard deviation {std}; it must be above 0, otherwise all images are equal")
        return std

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        """Check that there is one mean and one deviation for each channel, or one for all."""
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.channels):
                raise ValueError(f"{name} has {len(numbers)} values for {self.channels} channels")
        return self

    @field_validator("value_range")
    @classmethod
    def _check_value_range(cls, value_range: ValueRange | None) -> ValueRange | None:
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"value range {value_range}; the first value, black, must be below the second, white")
        return value_range

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a value range the key is omitted, so that older datasets keep their fingerprint."""
        fields = serialize(self)
        return fields if self.value_range else {name: value for name, value in fields.items() if name != "value_range"}

    def network_input(self, pixels: Pixels) -> Tensor:
        """uint8 pixels (..., C, H, W) → normalised float32 (..., C, H, W), in the memory layout of `channels_last`."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        innermost = np.moveaxis(pixels, -3, -1)
        images = np.empty(innermost.shape, np.float32)
        values = math.prod(images.shape[-3:])  # all values of an image in one row, because numpy is fast on long rows
        scale, shift = (np.tile(each, values // len(std)) for each in (np.float32(255) * std, mean / std))
        for image, row in zip(images.reshape(-1, values), innermost.reshape(-1, values), strict=True):  # small enough for the CPU's cache
            image[:] = row
            image /= scale
            image -= shift
        return torch.from_numpy(images).movedim(-1, -3)

    def pixels(self, *shape: int) -> Pixels:
        """An empty tensor for images (*shape, C, H, W), in the memory layout of `channels_last`."""
        return np.moveaxis(np.empty((*shape, self.image_size, self.image_size, self.channels), np.uint8), -1, -3)


def channels_last(images: Tensor) -> Tensor:
    """The same images (..., C, H, W) with the channels innermost in memory, which makes convolutions on CPU up to twice as fast.

    This also matters for one channel: torch cannot distinguish the two layouts there and then computes in the slow one.
    """
    return images.movedim(-3, -1).clone(memory_format=torch.contiguous_format).movedim(-1, -3)


def fit(picture: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    """Bring a picture to image_size × image_size."""
    if picture.size == (image_size, image_size):
        return picture
    box = None
    if resize == "center-crop":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
    return picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def decode(image: bytes, preprocessing: Preprocessing, origin: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Any encoded file → uint8 pixels (C, H, W) of the size and mode in `preprocessing`.

    Raises DataError as `decode_file`, and for 16-bit values that use a small part of their range.
    """
    decoded = decode_file(image, preprocessing.channels, origin, preprocessing.value_range, max_pixels)
    check_bright(decoded.peak, origin)
    return fitted(decoded.picture, preprocessing)


def pixels_of(picture: Image.Image, preprocessing: Preprocessing, origin: str) -> Pixels:
    """A picture of any size and mode → uint8 pixels (C, H, W) as specified by `preprocessing`. Raises DataError as `decode`."""
    check_pixels(picture.size, MAX_PIXELS, origin)
    if 0 in picture.size:
        raise DataError(f"{origin} has no pixels: {picture.width} x {picture.height}", "replace or remove that image")
    try:
        value_range = as_pillow_scales(picture, preprocessing.value_range)
        picture.load()
        narrowed, peak = eight_bits(picture, origin, value_range)
        check_bright(peak, origin)
        whole = flattened(upright(narrowed, picture), preprocessing.channels)
    except DataError:
        raise
    except Exception as error:  # a file that Pillow opened but that turns out to be damaged
        raise does_not_decode(origin, error) from None
    return fitted(whole, preprocessing)


def decode_packed(image: bytes, preprocessing: Preprocessing, origin: str) -> Pixels:
    """Like `decode`, for an image of a packed dataset. JPEG is read by a decoder that is three times as fast. Every reader of a dataset
    must use it, because decoders may differ in the last bit. Raises DataError if the image does not decode.
    """
    if not image.startswith(_JPEG):
        return decode(image, preprocessing, origin)
    try:
        check_pixels(_jpeg_size(image), MAX_PIXELS, origin)
        pixels = simplejpeg.decode_jpeg(image, "GRAY" if preprocessing.channels == 1 else "RGB")
    except ValueError as error:
        raise does_not_decode(origin, error) from None
    if pixels.shape[:2] != (preprocessing.image_size,) * 2:
        picture = Image.fromarray(pixels.squeeze(2) if preprocessing.channels == 1 else pixels)
        return fitted(picture, preprocessing)
    return pixels.transpose(2, 0, 1)


def _jpeg_size(image: bytes) -> tuple[int, int]:
    """(width, height) from a JPEG's header. Raises ValueError if it has none.

    Headers written by Pillow are parsed here in two microseconds. All others are read by simplejpeg, which takes as long as decoding.
    """
    at = 2
    while at + 9 <= len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker in _JPEG_SIZE_MARKERS:
            return int.from_bytes(image[at + 7 : at + 9]), int.from_bytes(image[at + 5 : at + 7])
        if marker not in _JPEG_TABLES:
            break
        at += 2 + int.from_bytes(image[at + 2 : at + 4])
    height, width, *_ = simplejpeg.decode_jpeg_header(image)
    return width, height


def fitted(picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """An upright picture in mode L or RGB → uint8 pixels (C, H, W) of the size that `preprocessing` names."""
    pixels = np.asarray(fit(picture, preprocessing.image_size, preprocessing.resize))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
