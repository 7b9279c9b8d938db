"""Converts a model's arguments: pictures of any kind → network input, and labels of any kind → class names."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distmeta.data.decode import read_file
from distmeta.data.images import Pixels, Preprocessing, channels_last, decode, pixels_of
from distmeta.errors import DataError

Picture = bytes | Path | str | Image.Image | NDArray[np.uint8]
"""An encoded file, the path of one, a Pillow image, or uint8 pixels (H, W) or (H, W, C) with C 1, 3 (RGB) or 4 (RGBA)."""
Pictures = Sequence[Picture] | NDArray[np.uint8] | Tensor
"""Pictures of any sizes; or, as a tensor of floats (M, C, H, W), network input as an EpisodeStream gives it."""

_KINDS = (str, int, float, bool)


def check_several(images: Any) -> None:
    """Raises DataError for a single picture, whose rows would be read as pictures, or for anything but a sequence."""
    check_dense(images, "images")
    shape = getattr(images, "shape", None)
    if shape is not None and not (isinstance(images, Tensor) and images.is_floating_point()):
        one = len(shape) == 3 and shape[2] in (1, 3, 4)  # (H, W, C)
    else:
        one = isinstance(images, str | bytes | Path | Image.Image | Mapping)
    if one or not hasattr(images, "__getitem__") or shape == ():
        given = type(images).__name__ if shape is None else f"an array {tuple(shape)}"
        raise DataError(f"images is {given}; a list of pictures is needed", "give one picture as a list: [picture]")


def check_dense(values: Any, what: str) -> None:
    """Raises DataError if `values` is a tensor that is sparse, nested or quantized, or has no values (on the device "meta")."""
    if not isinstance(values, Tensor):
        return
    kinds = {"nested": values.is_nested, "sparse": values.layout != torch.strided, "quantized": values.is_quantized}
    kinds |= {"without values (on the device meta)": values.is_meta}
    found = [kind for kind, true in kinds.items() if true]
    if found:
        raise DataError(
            f"{what} are a tensor that is {found[0]}; a dense tensor is needed", "give a dense tensor, such as values.to_dense()"
        )


def network_input(images: Pictures, preprocessing: Preprocessing, like: Tensor, first: int = 0) -> Tensor:
    """(M, C, H, W) in the type and on the device of `like`.

    Raises DataError naming an image that cannot be converted; images are numbered from `first`.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return _checked(images, preprocessing, like, first)
    pixels = np.stack([_pixels(image, preprocessing, f"image {i}") for i, image in enumerate(images, first)])
    return channels_last(preprocessing.network_input(pixels).to(like))


def _checked(images: Tensor, preprocessing: Preprocessing, like: Tensor, first: int) -> Tensor:
    wanted = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
    if images.shape[1:] != wanted:
        raise DataError(f"image {first} has shape {tuple(images.shape[1:])}; {wanted} is needed", "normalise and resize the images")
    images = images.to(like)  # some types, such as float8, cannot be examined
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        number = first + int(finite.int().argmin())
        raise DataError(f"image {number} holds values that are not finite (NaN or infinity)", "check how it was computed")
    return channels_last(images)


def _pixels(image: Picture, preprocessing: Preprocessing, origin: str) -> Pixels:
    if isinstance(image, bytes):
        return decode(image, preprocessing, origin)
    if isinstance(image, str | Path):
        return decode(read_file(Path(image)), preprocessing, str(image))
    return pixels_of(image if isinstance(image, Image.Image) else _picture(image, origin), preprocessing, origin)


def _picture(image: Any, origin: str) -> Image.Image:
    try:
        pixels = np.asarray(image)
    except (ValueError, TypeError, RuntimeError):  # such as rows of different lengths
        raise DataError(f"{origin} is not an array of pixels", "give pixel values 0..255, channels last") from None
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if grey.dtype != np.uint8 or grey.ndim not in (2, 3) or 0 in grey.shape or (grey.ndim == 3 and grey.shape[2] not in (3, 4)):
        raise DataError(
            f"{origin} is an array of {pixels.dtype} {pixels.shape}; uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is needed",
            "give pixel values 0..255, channels last",
        )
    return Image.fromarray(grey)


def class_labels(labels: Iterable[Any]) -> list[Any]:
    """Labels as plain Python values of one kind: text, integers, floats or booleans. Values of NumPy, torch and pandas are converted.

    Text is converted to Unicode's form NFC, as the names of class folders are. Raises DataError if `labels` is not a sequence; else for
    the first label that is missing, or of another kind than the first.
    """
    check_dense(labels, "labels")
    if isinstance(labels, str | bytes | Mapping | Set) or not isinstance(labels, Iterable) or getattr(labels, "shape", None) == ():
        raise DataError(f"labels is {type(labels).__name__}; a list with a label for each image is needed", "give the labels as a list")
    plain = [_plain(label) for label in labels]
    for number, label in enumerate(plain):
        if is_missing(label):
            raise DataError(f"label {number} is missing ({label!r})", "give a label for each image")
        if type(label) not in _KINDS or (isinstance(label, float) and math.isinf(label)):
            raise DataError(f"label {number}, {label!r:.60}, is not text or a number", "give class names or class numbers")
        if type(label) is not type(plain[0]):
            kinds = f"label 0 is {plain[0]!r:.60} and label {number} is {label!r:.60}"
            raise DataError(f"labels of different kinds: {kinds}", "give all labels as text, or all as numbers")
    return plain


def _plain(label: Any) -> Any:
    """A number or text of NumPy or torch as a Python value."""
    if isinstance(label, np.generic | np.ndarray | Tensor) and math.prod(label.shape) == 1:
        label = label.item()
    return unicodedata.normalize("NFC", str(label)) if isinstance(label, str) else label  # str: also of NumPy's and other subclasses


def is_missing(label: Any) -> bool:
    """Whether a label is missing: None, NaN, pandas' NA and NaT, or empty text."""
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return True
    return label == "" if isinstance(label, str) else isinstance(label, float) and math.isnan(label)
