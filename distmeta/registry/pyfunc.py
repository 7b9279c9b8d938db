"""A published model as MLflow's pyfunc: the file that MLflow runs on loading (models from code, no pickle). distmeta's own verbs never run
it; it is for users of plain MLflow.
"""

from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from safetensors.torch import load_file

from distmeta.errors import DataError
from distmeta.files import of_kind, read_json
from distmeta.inference.inputs import is_missing
from distmeta.inference.model import Model, build, named_classes
from distmeta.learners.description import Description
from distmeta.learners.params import unusable
from distmeta.registry.serving import answering, answers_of, pictures_of


class FewShotClassifier(PythonModel):
    """Adapts to the rows that have a label and classifies those that have none.

    Input: a table of `image` (a PNG or JPEG file as bytes or base64 text, or its pixels 0..255, (H, W) or (H, W, C), as array or nested
    lists) and `label` (its class, text or a number; empty for a query). Output: for each query, in order, its `class`, that class's
    `probability`, and the `probabilities` of all. `inner_steps` is a parameter. `distmeta.inference.limits` has the limits of a request.
    """

    def load_context(self, context: Any) -> None:
        description = of_kind(Description, read_json(Path(context.artifacts["model"]), finite=False))
        weights = load_file(context.artifacts["meta_params"])
        problem = unusable(weights)
        if problem:
            raise MlflowException(f"the model cannot be used: {problem}")
        self.model = Model("", description, build(description, weights, named_classes(description)), weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        with answering():
            return self._answer(model_input, (params or {}).get("inner_steps"))

    def _answer(self, table: pd.DataFrame, inner_steps: int | None) -> pd.DataFrame:
        labels = [_label(label) for label in table["label"]] if "label" in table else [""] * len(table)
        if not any(labels):
            raise DataError("no row has a label", "label some rows: the model adapts to these and classifies the others")
        pictures = pictures_of(table)
        support = [(picture, label) for picture, label in zip(pictures, labels, strict=True) if label]
        adapted = self.model.adapt([picture for picture, _ in support], [label for _, label in support], inner_steps)
        queries = [picture for picture, label in zip(pictures, labels, strict=True) if not label]
        return answers_of(adapted.classes, adapted.predict(queries))


def _label(label: Any) -> str:
    """A label as text; empty if there is none. A column of whole numbers with gaps is made of floats."""
    label = label.item() if isinstance(label, np.generic) else label
    if is_missing(label):
        return ""
    if not isinstance(label, str | int | float):
        raise DataError(f"a label is {label!r:.60}", "send class names or class numbers")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


mlflow.models.set_model(FewShotClassifier())
