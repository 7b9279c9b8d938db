"""Chooses the champion from the present contents of the registry, and checks the choice afterwards."""

import json
import math
import random
import re
import time

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from distmeta.registry.listing import versions_of

CHAMPION = "champion"
SCORE = "validation_score"
_ATTEMPTS = 8


def crown(mlflow_client: MlflowClient, name: str, before: int, new: ModelVersion) -> str | None:
    """Make the best of the present champion, `new`, and the versions after number `before` the champion, and return it.

    Several processes may publish at once, and MLflow cannot change an alias conditionally. So each process compares all versions again
    after setting the alias, and the last one leaves it right.
    """
    attempts = 0
    while True:
        holder = str(mlflow_client.get_registered_model(name).aliases.get(CHAMPION, ""))
        versions = sorted(versions_of(mlflow_client, name), key=lambda version: int(version.version))
        best = next((version for version in versions if str(version.version) == holder), None)
        for version in versions:
            stands = int(version.version) > before or str(version.version) == str(new.version)
            if stands and _score(version) not in (None, -math.inf) and (best is None or _beats(version, best)):
                best = version
        if best is None or str(best.version) == holder:
            return holder or None
        try:
            mlflow_client.set_registered_model_alias(name, CHAMPION, best.version)
        except Exception as error:  # if two processes set it at once, MLflow passes on its database's error
            attempts += 1
            if attempts == _ATTEMPTS or not re.search("unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(random.uniform(0, 0.2 * attempts))


def _score(version: ModelVersion) -> float | None:
    """Its validation score, -∞ if that is not finite, or None if its tags, which anybody can edit, hold no score."""
    try:
        score = json.loads(version.tags.get(SCORE, ""))
    except ValueError:
        return None
    if score is None:  # JSON's form of what is not finite
        return -math.inf
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return float(score) if math.isfinite(score) else -math.inf


def _beats(new: ModelVersion, old: ModelVersion) -> bool:
    """Whether `new` scored higher on the same validation episodes; not comparable is not better."""
    mine, theirs = _score(new), _score(old)
    same_episodes = old.tags.get("validation_episodes") == new.tags.get("validation_episodes")
    return same_episodes and mine is not None and theirs is not None and mine > theirs
