"""Registered policies, ready to adapt in an environment; and adapted ones, saved as MLflow models that act."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from distmeta.envs.environment import Environment
from distmeta.errors import ConfigError, RegistryError
from distmeta.inference.policy import AdaptedPolicy, PolicyModel, build_policy
from distmeta.registry.adaptable import load_adaptable
from distmeta.registry.package import write_actor


def load_policy(uri: str, model_uri: str, own: Collection[str] = (), environment: Environment | None = None) -> PolicyModel:
    """Look up a registered policy and build it; `environment` is the one to act in (default: the one that it was trained in).

    Downloaded code is never executed, so the default works only for distmeta's environments. Raises RegistryError, also for a model that is
    not a policy, and ConfigError if `environment` is required.
    """

    def check(description: dict[str, Any]) -> None:
        if description.get("domain", {}).get("name") != "reinforcement":
            raise RegistryError(
                f"{model_uri} is not a policy: it was trained on {description['dataset']}", "distmeta models lists the others"
            )

    return load_adaptable(
        uri, model_uri, own, check, build=lambda description, weights: build_policy(model_uri, description, weights, own, environment)
    )


def save_policy(policy: AdaptedPolicy, folder: Path | str) -> None:
    """Write an adapted policy into `folder`, which is new or empty, as an MLflow model from observations to actions.

    `mlflow.pyfunc.load_model(folder).predict(observations)` takes float64 (M, O). Raises ConfigError if the folder cannot be used.
    """
    check_vacant(folder)
    try:
        write_actor(Path(folder), *policy.as_actor(), policy.description)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}", "give a folder that you can write to") from None


def check_vacant(folder: Path | str) -> None:
    """Raises ConfigError unless `folder` is new or empty."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already, and an adapted policy replaces nothing", "give a folder that is new or empty")
