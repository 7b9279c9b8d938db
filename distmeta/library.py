"""What `import distmeta` offers as functions; the same procedures as the command line's."""

from pathlib import Path
from typing import Any

from distmeta.config import Config, load_config
from distmeta.data.episodes import Task
from distmeta.data.shards import Dataset, Split
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError
from distmeta.registry.model import Model
from distmeta.registry.models import load_model
from distmeta.registry.tracking import tracking_uri as resolve
from distmeta.train.evaluate import accuracy


def load(model: str, tracking_uri: str | None = None) -> Model:
    """The registered model of images that models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model names.

    Nothing of it is executed. Raises RegistryError.
    """
    return load_model(resolve(tracking_uri), model)


def train(config: Config | Path | str, *sets: str, resume: bool = False, address: str | None = None) -> dict[str, Any]:
    """Meta-train, test and publish as a config says, a file or an object; `sets` are "dotted.key=value", for a file.

    Returns what `distmeta train --json` prints. Raises DistmetaError.
    """
    from distmeta.scale.run import run  # Ray takes seconds to import

    return run(config if isinstance(config, Config) else load_config(Path(config), list(sets)), resume, address)


def evaluate(
    model: Model,
    shards: str | Path,
    split: Split = "test",
    way: int | None = None,
    shot: int | None = None,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> dict[str, Any]:
    """How accurate `model` is on fixed episodes of a packed dataset: mean, 95% interval and what they were measured on.

    `way` and `shot` are those it was trained for, if None. Raises DataError, ConfigError.
    """
    trained_for = model.description["task"]
    task = Task(way or trained_for["way"], shot or trained_for["shot"], queries)
    model.check_classes(task.way, f"an episode of {shards}")
    dataset, wanted = Dataset(str(shards)), model.preprocessing
    found = dataset.preprocessing(wanted.image_size)
    if (found.channels, found.resize) != (wanted.channels, wanted.resize):
        raise ConfigError(
            f"{shards} holds images of {found.channels} channels ({found.resize}); the model reads {wanted.channels} ({wanted.resize})",
            "pack the images as the model's dataset was",
        )
    stream = EpisodeStream(dataset, split, task, seed, wanted.image_size, section="evaluate")
    stream.preprocessing = wanted  # normalised as in training
    return accuracy(model.learner, model.meta_params, stream, episodes, model.description["norm"], 0, 1).as_dict()
