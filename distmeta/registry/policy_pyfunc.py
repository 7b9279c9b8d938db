"""An adapted policy as MLflow's pyfunc: the file that MLflow runs on loading (models from code, no pickle)."""

from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray
from safetensors.torch import load_file

from distmeta.files import of_kind, read_json
from distmeta.inference.actor import ActorDescription, build_actor
from distmeta.learners.params import unusable


class AdaptedPolicyModel(PythonModel):
    """Observations (M, O) → the most probable actions: (M, size) real numbers, or (M,) whole numbers if actions are choices."""

    def load_context(self, context: Any) -> None:
        self.description = of_kind(ActorDescription, read_json(Path(context.artifacts["actor"]), finite=False))
        params = load_file(context.artifacts["params"])
        problem = unusable(params)
        if problem:
            raise MlflowException(f"the policy cannot be used: {problem}")
        self.act = build_actor(self.description, params)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> NDArray[Any]:
        observations = torch.from_numpy(np.array(model_input, np.float64))
        size = self.description["observation_size"]
        if observations.ndim != 2 or observations.shape[1] != size:
            raise MlflowException.invalid_parameter_value(f"observations of shape {tuple(observations.shape)}; (M, {size}) is needed")
        if not observations.isfinite().all():
            number = int(observations.isfinite().all(1).int().argmin())
            raise MlflowException.invalid_parameter_value(f"observation {number} holds values that are not finite (NaN or infinity)")
        return self.act(observations).numpy()


mlflow.models.set_model(AdaptedPolicyModel())
