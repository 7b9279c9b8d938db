"""Evaluates a registered model on a Ray cluster: fixed episodes in parts. Each part is a Ray task, which is repeated on another node if a
node is lost.
"""

import os
import sys
from collections.abc import Collection, Generator, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from distmeta.assembly.received import metric_for
from distmeta.data.location import from_any_folder
from distmeta.data.splits import Split
from distmeta.errors import ClusterError, ConfigError, DistmetaError
from distmeta.inference.evaluate import evaluation_stream
from distmeta.inference.model import Model, build
from distmeta.inference.temperature import nearest_temperature
from distmeta.learners import build_learner
from distmeta.learners.allocator import ALLOCATOR
from distmeta.learners.description import Temperature
from distmeta.learners.params import Params
from distmeta.models import as_constructed, build_model
from distmeta.scale.cluster import connected
from distmeta.seeds import torch_seed
from distmeta.training.by_class import figures_of_answers
from distmeta.training.calibration import Answers, answered, keeping_answers, temperature_of
from distmeta.training.devices import device_of
from distmeta.training.evaluate import evaluation_of, scores, width

PART = 25  # episodes of a task: a few seconds of work, which is repeated if a worker is lost


class EpisodeSource(NamedTuple):
    """Episodes of a packed dataset's split, drawn from `seed`. `way` and `shot` default to those the model was trained for."""

    shards: str
    split: Split
    way: int | None
    shot: int | None
    queries: int
    seed: int


class Evaluated(NamedTuple):
    """The figures of the episodes and, if the evaluation fitted one, the temperature for their way and shot."""

    figures: dict[str, Any]
    fitted: Temperature | None


def evaluate(
    model: Model,
    source: EpisodeSource,
    episodes: int,
    address: str | None,
    own: Collection[str] = (),
    metric: str | None = None,
    calibrate_on: int | None = None,
) -> Iterator[Evaluated | None]:
    """Evaluate the model, and the same network without training, on all of the cluster's GPUs (or CPUs, if it has no GPU).

    `own` holds the import paths of the network's and the learner's class if they are the user's. `metric` names the metric, as in
    `distmeta.assembly.received.metric_for`. With `calibrate_on`, a temperature is first fitted on that number of validation episodes of the
    same way and shot. Yields None for each finished part, then the figures. They are the same on any cluster of one kind of machine. Raises
    DataError or ConfigError if the episodes cannot be read, ClusterError if the cluster failed.
    """
    source = source._replace(shards=from_any_folder(source.shards))
    stream = evaluation_stream(model, *source)
    scored_by = keeping_answers(metric_for(model.description, metric), stream.task)
    if calibrate_on is not None and not isinstance(scored_by, Answers):
        raise ConfigError("--calibrate: only accuracy has answers to calibrate", "leave --calibrate or --metric out")
    steps, norm = model.learner.inner_steps_eval, model.description["norm"]
    with connected(address):
        evaluation = _Evaluation(
            model.uri, model.description, model.meta_params, own=tuple(own), metric=metric, import_from=os.getcwd(), seed=source.seed
        )
        scoring = _Scoring(evaluation)
        fitted = None
        if calibrate_on is not None:
            validation = yield from scoring.of(source._replace(split="val"), calibrate_on, baseline=False)
            answers = answered(scored_by, evaluation_of(scored_by, validation, model.learner, stream, norm))
            fitted = answers and temperature_of(answers, stream.task, steps)
        by_episode = yield from scoring.of(source, episodes)
    parts = by_episode.split(width(scored_by, model.learner), dim=1)
    trained, random_init = (evaluation_of(scored_by, part, model.learner, stream, norm) for part in parts)
    temperature = fitted or nearest_temperature(model.description, stream.task.way, stream.task.shot, steps)
    figures = trained.as_dict() | random_init.as_baseline() | {"baseline": _baseline(model.description)}
    yield Evaluated(figures | figures_of_answers(stream, answered(scored_by, trained), temperature), fitted)


class _Evaluation(NamedTuple):
    """What every part of an evaluation uses. `own`: import paths of the user's classes; `import_from`: the folder to import them from."""

    uri: str
    description: dict[str, Any]
    weights: Params
    own: tuple[str, ...]
    metric: str | None
    import_from: str
    seed: int


class _Scoring:
    """A registered model's scores, computed by the connected cluster."""

    def __init__(self, evaluation: _Evaluation) -> None:
        on_gpu = bool(ray.cluster_resources().get("GPU"))
        environment = {"env_vars": ALLOCATOR | {"OMP_NUM_THREADS": "1"}}
        self._task = _score.options(num_cpus=1, num_gpus=int(on_gpu), runtime_env=environment)
        self._evaluation = [ray.put(evaluation)]  # in a list, a task receives the reference instead of the value

    def of(self, source: EpisodeSource, episodes: int, baseline: bool = True) -> Generator[None, None, Tensor]:
        """The rows of `_score` for the first `episodes` of `source`, (episodes, …); yields for each part that is done."""
        parts = [list(range(start, min(start + PART, episodes))) for start in range(0, episodes, PART)]
        going = {self._task.remote(self._evaluation, source, indices, baseline): indices for indices in parts}
        rows: dict[int, Tensor] = {}
        while going:
            (done, *_), _ = ray.wait(list(going))
            rows |= zip(going.pop(done), _got(done), strict=True)
            yield
        return torch.stack([rows[index] for index in range(episodes)])


@ray.remote
def _score(evaluation: list[ray.ObjectRef[_Evaluation]], source: EpisodeSource, indices: list[int], baseline: bool) -> Tensor:
    """Scores of these episodes (len(indices), width) by the model and, with `baseline`, in further columns by the same network without
    training.
    """
    trained, random_init, metric = _networks(evaluation[0])
    stream = evaluation_stream(trained, *source)
    scored_by = keeping_answers(metric_for(trained.description, metric), stream.task)
    used = [trained, random_init] if baseline else [trained]
    return torch.cat([scores(scored_by, each.learner, each.meta_params, stream, indices) for each in used], dim=1).cpu()


@lru_cache(maxsize=1)
def _networks(evaluation: ray.ObjectRef[_Evaluation]) -> tuple[Model, Model, str | None]:
    """The published network, the same network without training, and the metric. A process builds them once, on its device, for all of its
    parts. Each network has its own learner, which caches its features.
    """
    uri, description, weights, own, metric, import_from, seed = ray.get(evaluation)
    sys.path.append(import_from)
    torch.set_num_threads(1)
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    device_of(device).choose(tf32=False)
    weights = {name: value.to(device) for name, value in weights.items()}
    settings = description["model"]
    drawn = build_model(**settings, allow_import=settings["name"] in own, seed=torch_seed(seed, "initial weights"))
    initial = build_learner(model=drawn, allow_import=True, **description["learner"]).initial_params()
    random_init = weights | {name: value.to(weights[name]) for name, value in initial.items()}
    trained, untrained = (Model(uri, description, build(description, each, own), each) for each in (weights, random_init))
    return trained, untrained, metric


def _baseline(description: dict[str, Any]) -> str:
    """The baseline's name for people. A published model does not hold the weights from which its training began."""
    name = as_constructed(description["model"]["name"])
    return f"{name}, without the pretrained weights" if "init_from" in description else name


def _got(done: Any) -> Tensor:
    try:
        return ray.get(done)
    except RayTaskError as error:
        if isinstance(error.cause, DistmetaError):
            raise error.cause from None
        raise ClusterError(f"an evaluation task failed: {error.cause!r}"[:300], "see the cluster's log of it") from None
    except RayError as error:
        raise ClusterError(f"the cluster lost an evaluation task: {error!r}"[:300], "evaluate again; nothing was kept") from None
