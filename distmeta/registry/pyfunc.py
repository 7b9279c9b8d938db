"""A published model as MLflow's pyfunc: the file that MLflow runs when somebody loads it (models from code, no pickle).

Our own verbs never do (law 6); this is for those who know only MLflow.
"""

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray
from safetensors.torch import load_file

from distmeta.data.decode import size_of
from distmeta.errors import DataError, DistmetaError
from distmeta.files import of_kind, read_json
from distmeta.inference.inputs import Picture, is_missing
from distmeta.inference.limits import limits
from distmeta.inference.model import Model, build
from distmeta.learners.description import Description
from distmeta.learners.params import unusable

_SEND = "send PNG or JPEG files in base64, or lists of whole pixel values 0 to 255, (H, W) or (H, W, C)"
_log = logging.getLogger(__name__)


class FewShotClassifier(PythonModel):
    """Adapts to the rows that have a label and classifies those that have none.

    Input: a table of `image` (a PNG or JPEG file as bytes or base64 text, or its pixels 0..255, (H, W) or (H, W, C), as array or nested
    lists) and `label` (its class, text or a number; empty for a query). Output: for each query, in order, its `class`, that class's
    `probability`, and the `probabilities` of all. `inner_steps` is a parameter. How much a request may ask for stands in
    `distmeta.inference.limits`.
    """

    def load_context(self, context: Any) -> None:
        description = of_kind(Description, read_json(Path(context.artifacts["model"]), finite=False))
        weights = load_file(context.artifacts["meta_params"])
        problem = unusable(weights)
        if problem:
            raise MlflowException(f"the model cannot be used: {problem}")
        self.model = Model("", description, build(description, weights, _named(description)), weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            return self._answer(model_input, (params or {}).get("inner_steps"))
        except DistmetaError as error:  # so that MLflow's server passes the reason on
            raise MlflowException.invalid_parameter_value(f"{error.message}; {error.remedy}") from None
        except Exception:  # MLflow would send its stack trace to the client
            _log.exception("a request failed")
            raise MlflowException("the request failed unexpectedly; the server's log says where", INTERNAL_ERROR) from None

    def _answer(self, table: pd.DataFrame, inner_steps: int | None) -> pd.DataFrame:
        labels = [_label(label) for label in table["label"]] if "label" in table else [""] * len(table)
        if not any(labels):
            raise DataError("no row has a label", "label some rows: the model adapts to these and classifies the others")
        limits().check("images", len(table))
        pictures = list(_within_limits(_picture(image, f"image {number}") for number, image in enumerate(table["image"])))
        support = [(picture, label) for picture, label in zip(pictures, labels, strict=True) if label]
        adapted = self.model.adapt([picture for picture, _ in support], [label for _, label in support], inner_steps)
        queries = [picture for picture, label in zip(pictures, labels, strict=True) if not label]
        rows = [
            {
                "class": adapted.classes[row.index(max(row))],
                "probability": max(row),
                "probabilities": dict(zip(adapted.classes, row, strict=True)),
            }
            for row in adapted.predict(queries).tolist()
        ]
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])


def _within_limits(pictures: Iterable[bytes | NDArray[np.uint8]]) -> Iterator[Picture]:
    """Pass pictures through, whose pixels and bytes are counted from their headers. Raises DataError at the first too many."""
    most = limits()
    size = pixels = 0
    for number, picture in enumerate(pictures):
        width, height = size_of(picture, f"image {number}") if isinstance(picture, bytes) else picture.shape[1::-1]
        pixels += width * height
        size += len(picture) if isinstance(picture, bytes) else picture.nbytes
        most.check("pixels", pixels)
        most.check("bytes", size)
        yield picture


def _label(label: Any) -> str:
    """A label as text; empty if there is none. A column of whole numbers with gaps is made of floats."""
    label = label.item() if isinstance(label, np.generic) else label
    if is_missing(label):
        return ""
    if not isinstance(label, str | int | float):
        raise DataError(f"a label is {label!r:.60}", "send class names or class numbers")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


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


mlflow.models.set_model(FewShotClassifier())


def _named(description: dict[str, Any]) -> set[str]:
    """The classes of the user's own that a model needs; whoever serves it has chosen to run its code."""
    return {description[part]["name"] for part in ("model", "learner")}
