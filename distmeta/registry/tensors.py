"""Registered models whose inputs are not images, ready to adapt."""

import tempfile
from collections.abc import Collection
from pathlib import Path

from distmeta.errors import RegistryError, RunError
from distmeta.inference.tensors import TensorModel, build_tensor_model
from distmeta.learners.objective import Objective
from distmeta.registry.versions import check_known, check_weights, download
from distmeta.training.model_folder import ModelFolder


def load_tensor_model(uri: str, model_uri: str, own: Collection[str] = (), objective: Objective | None = None) -> TensorModel:
    """Look up a registered model of vectors, sequences or tokens and build it. Nothing downloaded is executed.

    `own` holds the import paths of its network's and learner's classes, if they are your own; `objective` is
    that of its domain, if the domain is your own. Raises RegistryError, also for a model of images or a policy, and ConfigError if it
    needs an objective.
    """
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        if description["preprocessing"] is not None:
            raise RegistryError(f"{model_uri} reads images", "load it with distmeta.load")
        if description.get("domain", {}).get("name") == "reinforcement":
            raise RegistryError(f"{model_uri} is a policy", "load it with distmeta.registry.policies.load_policy")
        check_known(model_uri, description, own)
        try:
            loaded = build_tensor_model(model_uri, description, ModelFolder(Path(scratch)).load_params(), own, objective)
        except (KeyError, TypeError, ValueError, RuntimeError, RunError) as error:
            raise RegistryError(f"{model_uri} cannot be read: {error!r}", "was it published by a newer distmeta? update distmeta") from None
    check_weights(loaded.learner, loaded.meta_params, model_uri)
    return loaded
