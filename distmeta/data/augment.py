"""Augmentation that keeps an image's class. Each change is a function of uint8 pixels and a generator."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distmeta.data.images import Pixels
from distmeta.seeds import generator

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


Augment = Callable[[Pixels, np.random.Generator], Pixels]  # images (n, C, H, W) of one slot, H = W → changed images of the same shape


def augment(
    pixels: Pixels,
    random: np.random.Generator,
    *,
    rotation: float = 0.0,
    flip: float = 0.0,
    crop: int = 0,
    resized_crop: float = 0.0,
    jitter: float = 0.0,
) -> Pixels:
    """Images (n, C, H, W) of one slot, changed; H = W.

    `rotation`: probability that all of them are turned together by 90° or 270°; `flip`: probability for each image to be mirrored left to
    right; `crop`: maximum shift of each image in either direction (pixels), with its border reflected; `resized_crop`: a random part of
    each image, with at least this share of its area, is scaled to the full size; `jitter`: brightness, contrast and saturation of each
    image are multiplied by numbers between 1 - `jitter` and 1 + `jitter`.
    """
    if rotation and random.random() < rotation:
        pixels = np.rot90(pixels, 1 + 2 * int(random.integers(2)), axes=(-2, -1))
    if flip:
        mirrored = random.random(len(pixels)) < flip
        pixels = np.where(mirrored[:, None, None, None], pixels[..., ::-1], pixels)
    if crop:
        pixels = _crop(pixels, crop, random)
    if resized_crop:
        pixels = np.stack([_resized(image, *_part(image.shape[1], image.shape[2], resized_crop, random)) for image in pixels])
    if jitter:
        pixels = _jitter(pixels, random.uniform(1 - jitter, 1 + jitter, (3, len(pixels), 1, 1, 1)).astype(np.float32))
    return pixels


def augmented(pixels: Pixels, change: Augment | None, seed: int, step: int, slot: int) -> Pixels:
    """The images (..., C, H, W) of a slot after `change` at that step."""
    if change is None:
        return pixels
    return change(pixels.reshape(-1, *pixels.shape[-3:]), generator(seed, "augmentation", step, slot)).reshape(pixels.shape)


def _crop(pixels: Pixels, border: int, random: np.random.Generator) -> Pixels:
    height, width = pixels.shape[-2:]
    padded = np.pad(pixels, [(0, 0), (0, 0), (border, border), (border, border)], mode="reflect")
    corners = random.integers(0, 2 * border + 1, (len(pixels), 2)).tolist()
    return np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)])


def _part(height: int, width: int, least: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part: the share of its area is uniform in [`least`, 1], the logarithm of its aspect ratio
    uniform between those of 3/4 and 4/3 (Szegedy et al. 2015, arXiv:1409.4842, section 6). The whole image, if ten such parts do not fit.
    """
    for _ in range(10):
        area, ratio = height * width * random.uniform(least, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return int(random.integers(width - across + 1)), int(random.integers(height - down + 1)), across, down
    return 0, 0, width, height


def _resized(image: NDArray[np.uint8], left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """A part of an image (C, H, W), scaled bilinearly to the image's size."""
    size, box = (image.shape[2], image.shape[1]), (left, top, left + width, top + height)
    planes = [Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BILINEAR, box) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def _jitter(pixels: Pixels, factors: NDArray[np.float32]) -> Pixels:
    """`factors` (3, n, 1, 1, 1): of brightness; of contrast, about the image's mean grey; of saturation, about each pixel's grey."""
    brightness, contrast, saturation = factors
    images = pixels * brightness
    mean = _grey(images).mean((1, 2, 3), keepdims=True)
    images = mean + contrast * (images - mean)
    grey = _grey(images)
    images = grey + saturation * (images - grey)
    return images.clip(0, 255).round().astype(np.uint8)


def _grey(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return images if images.shape[1] == 1 else np.einsum("nchw,c->nhw", images, _GREY)[:, None]
