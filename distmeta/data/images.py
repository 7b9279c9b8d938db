"""One image: bytes → pixels of the dataset's size and mode → the numbers a network sees. Training and prediction share these functions."""

import io
import math
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from distmeta.errors import DataError

Resize = Literal["squash", "center-crop"]
Pixels = NDArray[np.uint8]

_JPEG = b"\xff\xd8"


class Preprocessing(BaseModel):
    """How images of a dataset become network input; travels with every published model.

    `image_size` is the side in pixels, `channels` 1 (grey) or 3 (RGB); `resize` says how other shapes become square: "squash" both sides,
    or "center-crop" the largest middle square; `mean` and `std`, one number for each channel, are of pixel values in 0..1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int
    channels: Literal[1, 3]
    resize: Resize
    mean: list[float]
    std: list[float]

    def network_input(self, pixels: Pixels) -> Tensor:
        """uint8 pixels (..., C, H, W) → normalised float32 (..., C, H, W), in memory as `channels_last` says."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        innermost = np.moveaxis(pixels, -3, -1)
        images = np.empty(innermost.shape, np.float32)
        values = math.prod(images.shape[-3:])  # of an image, all in one row: long rows are what numpy is fast at
        scale, shift = (np.tile(each, values // len(std)) for each in (np.float32(255) * std, mean / std))
        for image, row in zip(images.reshape(-1, values), innermost.reshape(-1, values), strict=True):  # each stays in the cache
            image[:] = row
            image /= scale
            image -= shift
        return torch.from_numpy(images).movedim(-1, -3)

    def pixels(self, *shape: int) -> Pixels:
        """Room for images (*shape, C, H, W), in memory as `channels_last` says."""
        return np.moveaxis(np.empty((*shape, self.image_size, self.image_size, self.channels), np.uint8), -1, -3)


def channels_last(images: Tensor) -> Tensor:
    """The same images (..., C, H, W) with the channels innermost in memory: convolutions on CPU run up to twice as fast so.

    Also for one channel, where torch itself holds either layout for the other and then computes in the slow one.
    """
    return images.movedim(-3, -1).clone(memory_format=torch.contiguous_format).movedim(-1, -3)


def open_image(image: bytes, channels: int, origin: str) -> Image.Image:
    """Decode an encoded file to grey (`channels` 1) or RGB (3); transparency becomes white. `origin` names the image in the error.

    Raises DataError if the bytes are not a whole image or would unpack to an absurd number of pixels.
    """
    try:
        return with_channels(Image.open(io.BytesIO(image)), channels)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{origin} does not decode as an image ({reason})", "replace or remove that file") from None


def with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """A picture of any mode in grey (`channels` 1) or RGB (3); transparency becomes white."""
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if channels == 1 else "RGB")


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


def decode(image: bytes, preprocessing: Preprocessing, origin: str) -> Pixels:
    """Any encoded file → uint8 pixels (C, H, W) of the size and mode that `preprocessing` names. Raises DataError as `open_image`."""
    return pixels_of(open_image(image, preprocessing.channels, origin), preprocessing)


def pixels_of(picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """A picture of any size and mode → uint8 pixels (C, H, W) as `preprocessing` names them."""
    return _channels_first(fit(with_channels(picture, preprocessing.channels), preprocessing.image_size, preprocessing.resize))


def decode_packed(image: bytes, preprocessing: Preprocessing, origin: str) -> Pixels:
    """As `decode`, for an image of a packed dataset: JPEG by a decoder three times as fast, which every reader of a dataset must use,
    since decoders may differ in the last bit. Raises DataError if the image does not decode."""
    if not image.startswith(_JPEG):
        return decode(image, preprocessing, origin)
    try:
        pixels = simplejpeg.decode_jpeg(image, "GRAY" if preprocessing.channels == 1 else "RGB")
    except ValueError as error:
        raise DataError(f"{origin} does not decode as an image ({error})", "replace or remove that file") from None
    if pixels.shape[:2] != (preprocessing.image_size,) * 2:
        picture = Image.fromarray(pixels.squeeze(2) if preprocessing.channels == 1 else pixels)
        return _channels_first(fit(picture, preprocessing.image_size, preprocessing.resize))
    return pixels.transpose(2, 0, 1)


def _channels_first(picture: Image.Image) -> Pixels:
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
