"""The functions of `import distmeta`: the same procedures as the verbs of the command line."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from distmeta.assembly.received import metric_for
from distmeta.config import Config, load_config
from distmeta.data.splits import Split
from distmeta.inference.evaluate import evaluation_stream
from distmeta.inference.model import Model
from distmeta.inference.temperature import nearest_temperature
from distmeta.registry.tracking import tracking_uri as resolve
from distmeta.registry.versions import load_model
from distmeta.training.by_class import figures_of_answers
from distmeta.training.calibration import answered, keeping_answers
from distmeta.training.evaluate import evaluate as measure


def load(model: str, tracking_uri: str | None = None, own: Collection[str] = ()) -> Model:
    """The registered model of images that models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model names.

    No code in the model's files is executed. `own` holds the import paths of its network's and learner's classes, if they are your own.
    Raises RegistryError.
    """
    return load_model(resolve(tracking_uri), model, own)


def train(config: Config | Path | str, *sets: str, resume: bool = False, address: str | None = None) -> dict[str, Any]:
    """Meta-train, test and publish as a config says, a file or an object; `sets` are "dotted.key=value", for a file.

    Returns what `distmeta train --json` prints. Raises DistmetaError.
    """
    from distmeta.scale.run import run  # imported here, because Ray takes seconds to import

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
    metric: str | None = None,
) -> dict[str, Any]:
    """How good `model` is on fixed episodes of a packed dataset: mean, 95% interval and what they were measured on; for accuracy, also how
    far its probabilities are from it ("calibration") and its value by class.

    `way` and `shot` default to those the model was trained for. `metric` is "accuracy" or the import path of your own Metric; it is
    required for a model that was validated by your own Metric. The episodes run in this process; `distmeta evaluate` spreads them over Ray
    workers, with the same result. Raises DataError, ConfigError.
    """
    stream = evaluation_stream(model, str(shards), split, way, shot, queries, seed)
    scored_by = keeping_answers(metric_for(model.description, metric), stream.task)
    found = measure(scored_by, model.learner, model.meta_params, stream, episodes, model.description["norm"])
    temperature = nearest_temperature(model.description, stream.task.way, stream.task.shot, model.learner.inner_steps_eval)
    return found.as_dict() | figures_of_answers(stream, answered(scored_by, found), temperature)
