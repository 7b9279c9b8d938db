"""Requests and answers of a served model: tables of images, and tables of classes with their probabilities."""

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from numpy.typing import NDArray
from torch import Tensor

from distmeta.data.decode import size_of
from distmeta.errors import DataError, DistmetaError
from distmeta.inference.inputs import Picture
from distmeta.inference.limits import limits

_SEND = "send PNG or JPEG files in base64, or lists of whole pixel values 0 to 255, (H, W) or (H, W, C)"
_COLUMNS = ["class", "probability", "probabilities"]
_log = logging.getLogger(__name__)


@contextmanager
def answering() -> Iterator[None]:
    """Converts errors into MlflowException with the reason, which MLflow's server returns, and never a stack trace."""
    try:
        yield
    except DistmetaError as error:
        raise MlflowException.invalid_parameter_value(f"{error.message}; {error.remedy}") from None
    except Exception:
        _log.exception("a request failed")
        raise MlflowException("the request failed unexpectedly; the server's log says where", INTERNAL_ERROR) from None


def pictures_of(table: pd.DataFrame) -> list[Picture]:
    """The pictures in the column `image`. Raises DataError if one is not a picture, or if together they exceed the limits."""
    limits().check("images", len(table))
    return list(_within_limits(_picture(image, f"image {number}") for number, image in enumerate(table["image"])))


def answers_of(classes: list[Any], probabilities: Tensor) -> pd.DataFrame:
    """For each row of probabilities (M, N) its most probable class, that class's probability, and those of all `classes` by name."""
    rows = [
        {"class": classes[row.index(max(row))], "probability": max(row), "probabilities": dict(zip(classes, row, strict=True))}
        for row in probabilities.tolist()
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _within_limits(pictures: Iterable[bytes | NDArray[np.uint8]]) -> Iterator[Picture]:
    """Yields the pictures, and counts their pixels and bytes from their headers. Raises DataError as soon as a limit is exceeded."""
    most = limits()
    size = pixels = 0
    for number, picture in enumerate(pictures):
        width, height = size_of(picture, f"image {number}") if isinstance(picture, bytes) else picture.shape[1::-1]
        pixels += width * height
        size += len(picture) if isinstance(picture, bytes) else picture.nbytes
        most.check("pixels", pixels)
        most.check("bytes", size)
        yield picture


def _picture(image: Any, origin: str) -> bytes | NDArray[np.uint8]:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str):
        try:
            return base64.b64decode("".join(image.split()), validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{origin} is text that is not base64", _SEND) from None
    kinds = {type(value) for value in _leaves(image)}
    try:
        pixels = np.asarray(image.tolist() if isinstance(image, np.ndarray) and image.dtype == object else image)
    except (ValueError, TypeError):  # rows of different lengths
        raise DataError(f"{origin} is not an array of pixels: its rows differ in length", _SEND) from None
    if bool in kinds or pixels.dtype.kind not in "ui" or pixels.ndim not in (2, 3) or not pixels.size:
        raise DataError(f"{origin} is an array of {'boolean' if bool in kinds else pixels.dtype} {pixels.shape}", _SEND)
    if not 0 <= pixels.min() <= pixels.max() <= 255:
        raise DataError(f"{origin} has pixel values from {pixels.min()} to {pixels.max()}", _SEND)
    return pixels.astype(np.uint8)


def _leaves(image: Any) -> Iterable[Any]:
    """The values in nested lists; an array of one type has no others."""
    if isinstance(image, np.ndarray) and image.dtype != object:
        return ()
    return chain.from_iterable(_leaves(part) for part in image) if isinstance(image, list | tuple | np.ndarray) else (image,)
