"""Checks of a downloaded model before its use."""

import importlib.metadata
from collections.abc import Collection
from typing import Any

from distmeta.errors import RegistryError
from distmeta.learners import LEARNERS
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, difference, unusable
from distmeta.models import MODELS

PUBLISH_AGAIN = "publish it again: distmeta publish RUN_FOLDER"
__version__ = importlib.metadata.version("distmeta")


def check_known(model_uri: str, description: dict[str, Any], own: Collection[str]) -> None:
    """Raises RegistryError unless network and learner are distmeta's, or among the user's import paths (`own`)."""
    for part, known in (("network", MODELS), ("learner", LEARNERS)):
        name = description["model" if part == "network" else part]["name"]
        if name not in known and name not in own:
            raise RegistryError(
                f"{model_uri} uses {part} {name!r}, which is not part of distmeta {__version__}",
                f"if it is your own class, name it: --{part} {name} (own=[{name!r}] in Python); else update distmeta",
            )


def check_weights(learner: Learner, weights: Params, model_uri: str) -> None:
    """Raises RegistryError unless `weights` are named and shaped as the learner's own."""
    differing = difference(weights, learner.whole(learner.initial_params()))
    if differing:
        raise RegistryError(f"the weights of {model_uri} are not those of its network: {differing}", PUBLISH_AGAIN)
    problem = unusable(weights)
    if problem:
        raise RegistryError(f"the weights of {model_uri} cannot be used: {problem}", "choose another version: distmeta models lists them")
