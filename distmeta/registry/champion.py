"""Who is champion, decided on what the registry holds at that moment, and looked at again afterwards."""

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
    """Let the best of the present champion, `new`, and the versions made since number `before` be champion; the version that is.

    Several may publish at once, and MLflow has no way to change an alias only if it is what one thinks: everybody looks again after
    setting it, at all versions there are by then, so whoever sets it last leaves it right.
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
        except Exception as error:  # MLflow shows what its database says where two set it at once
            attempts += 1
            if attempts == _ATTEMPTS or not re.search("unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(random.uniform(0, 0.2 * attempts))


def _score(version: ModelVersion) -> float | None:
    """Its validation score, the worst there is (-∞) if that is not finite; None if its tags, which anybody may write, hold none."""
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
