"""Registered models whose inputs are not images, ready to adapt."""

from collections.abc import Collection
from typing import Any

from distmeta.errors import RegistryError
from distmeta.inference.tensors import TensorModel, build_tensor_model
from distmeta.learners.objective import Objective
from distmeta.registry.adaptable import load_adaptable


def load_tensor_model(uri: str, model_uri: str, own: Collection[str] = (), objective: Objective | None = None) -> TensorModel:
    """Look up a registered model of vectors, sequences or tokens and build it. Downloaded code is never executed. `own` holds the import
    paths of its network's and learner's classes, if they are your own; `objective` is your domain's objective, if the domain is your own.
    Raises RegistryError, also for a model of images or a policy, and ConfigError if it needs an objective.
    """

    def check(description: dict[str, Any]) -> None:
        if description["preprocessing"] is not None:
            raise RegistryError(f"{model_uri} reads images", "load it with distmeta.load")
        if description.get("domain", {}).get("name") == "reinforcement":
            raise RegistryError(f"{model_uri} is a policy", "load it with distmeta.registry.policies.load_policy")

    return load_adaptable(
        uri, model_uri, own, check, build=lambda description, weights: build_tensor_model(model_uri, description, weights, own, objective)
    )
