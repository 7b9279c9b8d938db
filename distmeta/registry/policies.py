"""Registered policies, ready to adapt in an environment."""

from collections.abc import Collection
from typing import Any

from distmeta.envs.environment import Environment
from distmeta.errors import RegistryError
from distmeta.inference.policy import PolicyModel, build_policy
from distmeta.registry.adaptable import load_adaptable


def load_policy(uri: str, model_uri: str, own: Collection[str] = (), environment: Environment | None = None) -> PolicyModel:
    """Look up a registered policy and build it; `environment` is the one to act in (default: the one that it was trained in).

    Nothing downloaded is executed, so the default works for our own environments only. Raises RegistryError, also for a model that is not
    a policy, and ConfigError if it must be told its environment.
    """

    def check(description: dict[str, Any]) -> None:
        if description.get("domain", {}).get("name") != "reinforcement":
            raise RegistryError(
                f"{model_uri} is not a policy: it was trained on {description['dataset']}", "distmeta models lists the others"
            )

    return load_adaptable(
        uri, model_uri, own, check, build=lambda description, weights: build_policy(model_uri, description, weights, own, environment)
    )
