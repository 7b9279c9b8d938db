"""A published model as MLflow's pyfunc: the file that MLflow runs when somebody loads it (models from code, no pickle).

Our own verbs never do (law 6); this is for those who know only MLflow.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file

from distmeta.errors import DataError, DistmetaError
from distmeta.inference.model import Model, Picture, build


class FewShotClassifier(PythonModel):
    """Adapts to the rows that have a label and classifies those that have none.

    Input: a table of `image` (a PNG or JPEG file as bytes or base64 text, or its uint8 pixels (H, W) or (H, W, C) as array or nested
    lists) and `label` (its class; empty for a query). Output: for each query, in order, its `class`, that class's `probability`, and the
    `probabilities` of all. `inner_steps` is a parameter.
    """

    def load_context(self, context: Any) -> None:
        description = json.loads(Path(context.artifacts["model"]).read_text())
        weights = load_file(context.artifacts["meta_params"])
        self.model = Model("", description, build(description, weights, _named(description)), weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            return self._answer(model_input, (params or {}).get("inner_steps"))
        except DistmetaError as error:  # so that MLflow's server passes the reason on
            raise MlflowException.invalid_parameter_value(f"{error.message}; {error.remedy}") from None

    def _answer(self, model_input: pd.DataFrame, inner_steps: int | None) -> pd.DataFrame:
        is_support = model_input["label"].notna() & (model_input["label"] != "")
        support, queries = model_input[is_support], model_input[~is_support]
        adapted = self.model.adapt([_picture(image) for image in support["image"]], list(support["label"]), inner_steps)
        probabilities = adapted.predict([_picture(image) for image in queries["image"]]).tolist()
        rows = [
            {
                "class": adapted.classes[row.index(max(row))],
                "probability": max(row),
                "probabilities": dict(zip(adapted.classes, row, strict=True)),
            }
            for row in probabilities
        ]
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])


def _picture(image: Any) -> Picture:
    if isinstance(image, str):
        try:
            return base64.b64decode(image, validate=True)
        except binascii.Error:
            raise DataError("an image is text that is not base64", "send PNG or JPEG files in base64, or nested lists of pixels") from None
    return image if isinstance(image, bytes) else np.asarray(image, np.uint8)


mlflow.models.set_model(FewShotClassifier())


def _named(description: dict[str, Any]) -> set[str]:
    """The classes of the user's own that a model needs; whoever serves it has chosen to run its code."""
    return {description[part]["name"] for part in ("model", "learner")}
