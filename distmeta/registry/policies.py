"""Registered policies, ready to adapt in an environment."""

import tempfile
from collections.abc import Collection
from pathlib import Path

from distmeta.envs.environment import Environment
from distmeta.errors import RegistryError, RunError
from distmeta.inference.policy import PolicyModel, build_policy
from distmeta.registry.versions import check_known, check_weights, download
from distmeta.training.model_folder import ModelFolder


def load_policy(uri: str, model_uri: str, own: Collection[str] = (), environment: Environment | None = None) -> PolicyModel:
    """Look up a registered policy and build it; `environment` is the one to act in (default: the one that it was trained in).

    Nothing downloaded is executed, so the default works for our own environments only. Raises RegistryError, also for a model that is not
    a policy, and ConfigError if it must be told its environment.
    """
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        if description.get("domain", {}).get("name") != "reinforcement":
            raise RegistryError(
                f"{model_uri} is not a policy: it was trained on {description['dataset']}", "distmeta models lists the others"
            )
        check_known(model_uri, description, own)
        try:
            policy = build_policy(model_uri, description, ModelFolder(Path(scratch)).load_params(), own, environment)
        except (KeyError, TypeError, ValueError, RuntimeError, RunError) as error:
            raise RegistryError(f"{model_uri} cannot be read: {error!r}", "was it published by a newer distmeta? update distmeta") from None
    check_weights(policy.learner, policy.meta_params, model_uri)
    return policy
