"""Which locations and import paths of a run folder's config or a model's description may be used: only those that the user names. Somebody
else may have written the files.
"""

from typing import Any

from distmeta.assembly.domain import DOMAINS, metric_at
from distmeta.config import CacheConfig, Config
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS
from distmeta.models import MODELS
from distmeta.training.accuracy import Accuracy
from distmeta.training.metric import Metric


def followed(received: Config, own: Config | None, shards: str | None) -> Config:
    """The config `received` from a run folder, with its data taken only from the user's flag `shards` or config `own`.

    The dataset's location, the cache's folder and every import path are used only if the user gives them, because a location can be a shell
    command (`pipe:`) and an import runs code. Raises ConfigError naming what else the folder asks for.
    """
    for key, name in _imports_of(received).items():
        if own is None or _imports_of(own).get(key) != name:
            raise ConfigError(
                f"{key}={name} is imported only from your own config, not from a run folder's",
                "give --config FILE, your own config of that run",
            )
    location = shards or (own.data.shards if own is not None else None)
    if received.data.shards is not None and location is None:
        raise ConfigError(
            "a dataset's location is taken from you, not from a run folder",
            "give --shards LOCATION, or --config FILE, your own config of that run",
        )
    cache = own.data.cache if own is not None else CacheConfig()
    return received.model_copy(update={"data": received.data.model_copy(update={"shards": location, "cache": cache})})


def metric_for(description: dict[str, Any], given: str | None) -> Metric:
    """The metric of a registered model of images: `given` by the user as an import path or "accuracy" (default: accuracy).

    Raises ConfigError if the model was validated by its owner's metric and the user does not name one, because the model's import path is
    not followed; and as `metric_at`.
    """
    validated_by = description.get("metric")
    if given is None and validated_by is not None:
        raise ConfigError(
            f"the model was validated by the metric {validated_by!r}, which is not part of distmeta",
            f"if it is your own class, name it: --metric {validated_by} (metric={validated_by!r} in Python); else give --metric accuracy",
        )
    return Accuracy() if given in (None, Accuracy.name) else metric_at("--metric", given)


def import_paths(config: Config) -> dict[str, str]:
    """The import paths of the user's classes in a config, by key."""
    names = {
        "model.name": config.model.name,
        "learner.name": config.learner.name,
        "data.domain": config.data.domain,
        "data.eval.metric": config.data.eval.metric,
    }
    ours = {*MODELS, *LEARNERS, *DOMAINS}
    return {key: name for key, name in names.items() if name is not None and name not in ours}


def _imports_of(config: Config) -> dict[str, str]:
    """The modules that building the run would import besides distmeta: key → import path."""
    foreign = import_paths(config)
    options = config.data.settings.get("options")
    if isinstance(options, dict) and "id" in options:  # Gymnasium imports the module named in an id
        foreign["data.settings.options.id"] = str(options["id"])
    return foreign
