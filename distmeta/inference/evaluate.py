"""The episodes on which a registered model is evaluated."""

from distmeta.data.episodes import Task
from distmeta.data.shards import Dataset
from distmeta.data.splits import Split
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError
from distmeta.inference.model import Model


def evaluation_stream(model: Model, shards: str, split: Split, way: int | None, shot: int | None, queries: int, seed: int) -> EpisodeStream:
    """Episodes of a packed dataset, with images in the model's form; `way` and `shot` default to those it was trained for.

    Raises DataError or ConfigError if the dataset cannot serve them, or if its images do not match the model.
    """
    trained_for = model.description["task"]
    task = Task(way or trained_for["way"], shot or trained_for["shot"], queries)
    model.check_classes(task.way, f"an episode of {shards}")
    dataset, wanted = Dataset(shards), model.preprocessing
    packed = dataset.preprocessing(wanted.image_size)
    if packed.resize != wanted.resize:
        raise ConfigError(
            f"{shards} holds images resized by {packed.resize}; the model reads {wanted.resize}",
            "pack the images as the model's dataset was",
        )
    return EpisodeStream(dataset=dataset, split=split, task=task, seed=seed, section="evaluate", preprocessing=wanted)
