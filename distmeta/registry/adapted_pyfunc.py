"""A classifier that was adapted to its classes, as MLflow's pyfunc: the file that MLflow runs on loading (no pickle)."""

from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel

from distmeta.inference.batching import Batching
from distmeta.inference.inputs import network_input
from distmeta.inference.model import Adapted, finite
from distmeta.registry.serving import answering, answers_of, pictures_of

_LARGEST = 32  # images per batch: a larger batch does not run faster on a CPU, and takes more memory


class AdaptedClassifier(PythonModel):
    """Classifies images; simultaneous requests are computed together.

    Input: a table of `image` (a PNG or JPEG file as bytes or base64 text, or its pixels 0..255, (H, W) or (H, W, C), as array or nested
    lists). Output: for each, in order, its `class`, that class's `probability`, and the `probabilities` of all.
    """

    def load_context(self, context: Any) -> None:
        self.adapted = Adapted.load(Path(context.artifacts["adapted"]).parent, own=None)
        self.probabilities = Batching(self.adapted.probabilities, _LARGEST)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        with answering():
            pictures = pictures_of(model_input)
            if not pictures:
                return answers_of(self.adapted.classes, torch.zeros(0, len(self.adapted.classes)))
            inputs = network_input(pictures, self.adapted.preprocessing, self.adapted.like)
            return answers_of(self.adapted.classes, finite(self.probabilities(inputs)))


mlflow.models.set_model(AdaptedClassifier())
