"""distmeta: few-shot meta-training at cluster scale.

For use as a library: `load` a registered model and adapt it, `train` a config, `evaluate` a model on a packed dataset, and what they are
made of: `Episode`, `EpisodeStream`, `Adapted`, and the learners by their names. Each is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.data.episodes import Episode, EpisodeBatch, Task
    from distmeta.data.image_files import class_folders, images_under
    from distmeta.data.shards import Dataset
    from distmeta.data.stream import EpisodeStream
    from distmeta.inference.model import Adapted, Model
    from distmeta.learners import LEARNERS, build_learner
    from distmeta.learners.learner import Learner
    from distmeta.library import evaluate, load, train
    from distmeta.models import build_model
    from distmeta.training.metric import Metric

__all__ = [
    "LEARNERS",
    "Adapted",
    "Dataset",
    "Episode",
    "EpisodeBatch",
    "EpisodeStream",
    "Learner",
    "Metric",
    "Model",
    "Task",
    "build_learner",
    "build_model",
    "class_folders",
    "evaluate",
    "images_under",
    "load",
    "train",
]

_HOMES = {
    "data.episodes": ("Episode", "EpisodeBatch", "Task"),
    "data.image_files": ("class_folders", "images_under"),
    "data.shards": ("Dataset",),
    "data.stream": ("EpisodeStream",),
    "learners": ("LEARNERS", "build_learner"),
    "learners.learner": ("Learner",),
    "library": ("evaluate", "load", "train"),
    "models": ("build_model",),
    "inference.model": ("Adapted", "Model"),
    "training.metric": ("Metric",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("distmeta")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"distmeta.{module}"), name)
    raise AttributeError(f"module 'distmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
