"""What may be followed in the config of a run folder, which somebody else may have written: only what the user says."""

from distmeta.assembly.domain import DOMAINS
from distmeta.config import CacheConfig, Config
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS
from distmeta.models import MODELS


def followed(received: Config, own: Config | None, shards: str | None) -> Config:
    """`received`, read from a run folder, with data from `shards` or from `own` alone: the flag and the config that the user gave.

    The dataset's location, the cache's folder and every import path are followed only on the user's word, because a location can be a
    shell command (`pipe:`) and an import runs code. Raises ConfigError naming what the folder asks for beyond that.
    """
    for key, name in _imported(received).items():
        if own is None or _imported(own).get(key) != name:
            raise ConfigError(
                f"{key}={name} is imported only from your own config, not from a run folder's",
                "give --config FILE, your own config of that run",
            )
    location = shards or (own.data.shards if own is not None else None)
    if received.data.shards is not None and location is None:
        raise ConfigError(
            "a dataset is opened where you say that it is, not where a run folder says",
            "give --shards LOCATION, or --config FILE, your own config of that run",
        )
    cache = own.data.cache if own is not None else CacheConfig()
    return received.model_copy(update={"data": received.data.model_copy(update={"shards": location, "cache": cache})})


def _imported(config: Config) -> dict[str, str]:
    """What building the run would import beside distmeta: key → name."""
    names = {
        "model.name": config.model.name,
        "learner.name": config.learner.name,
        "data.domain": config.data.domain,
        "data.eval.metric": config.data.eval.metric,
    }
    ours = {*MODELS, *LEARNERS, *DOMAINS}
    foreign = {key: name for key, name in names.items() if name is not None and name not in ours}
    options = config.data.settings.get("options")
    if isinstance(options, dict) and "id" in options:  # Gymnasium imports the module that an id names
        foreign["data.settings.options.id"] = str(options["id"])
    return foreign
