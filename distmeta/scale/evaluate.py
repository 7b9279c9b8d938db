"""A registered model evaluated by a Ray cluster: fixed episodes in parts, each a task that Ray gives to another node if one is lost."""

import os
import sys
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from distmeta.assembly.received import metric_for
from distmeta.data.location import from_any_folder
from distmeta.data.splits import Split
from distmeta.errors import ClusterError, DistmetaError
from distmeta.inference.evaluate import evaluation_stream
from distmeta.inference.model import Model, build
from distmeta.learners import build_learner
from distmeta.learners.allocator import ALLOCATOR
from distmeta.learners.params import Params
from distmeta.models import as_constructed, build_model
from distmeta.scale.cluster import connected
from distmeta.seeds import torch_seed
from distmeta.training.devices import device_of
from distmeta.training.evaluate import evaluation_of, scores

PART = 25  # episodes of a task: some seconds of work, which is what is done again if a worker is lost


class EpisodeSource(NamedTuple):
    """Which episodes: of a packed dataset's split, drawn from `seed`. `way` and `shot` are those the model was trained for, if None."""

    shards: str
    split: Split
    way: int | None
    shot: int | None
    queries: int
    seed: int


def evaluate(
    model: Model, source: EpisodeSource, episodes: int, address: str | None, own: Collection[str] = (), metric: str | None = None
) -> Iterator[dict[str, Any]]:
    """Evaluate on every CPU that the cluster has (or GPU, if it has any), and the same network without training beside it.

    `own` holds the import paths of the network's and the learner's class, if they are the user's own, and `metric` names what scores
    the episodes, as `distmeta.assembly.received.metric_for` takes it. Yields an empty dictionary for each
    part that is done, and at last the figures: the same from any cluster of one kind of machine.
    Raises DataError or ConfigError if the episodes cannot be had, ClusterError if the cluster failed.
    """
    source = source._replace(shards=from_any_folder(source.shards))
    scored_by, stream = metric_for(model.description, metric), evaluation_stream(model, *source)
    columns = len(scored_by.columns(model.learner))
    parts = [list(range(start, min(start + PART, episodes))) for start in range(0, episodes, PART)]
    with connected(address):
        on_gpu = bool(ray.cluster_resources().get("GPU"))
        task = _score.options(num_cpus=1, num_gpus=int(on_gpu), runtime_env={"env_vars": ALLOCATOR | {"OMP_NUM_THREADS": "1"}})
        weights, users = ray.put(model.meta_params), (tuple(own), metric, os.getcwd())
        going = {task.remote(model.uri, model.description, weights, source, indices, users): indices for indices in parts}
        by_episode = torch.zeros(episodes, 2 * columns, dtype=torch.float64)
        while going:
            (done, *_), _ = ray.wait(list(going))
            by_episode[going.pop(done)] = _got(done)
            yield {}
    norm = model.description["norm"]
    trained, random_init = (evaluation_of(scored_by, part, model.learner, stream, norm) for part in by_episode.split(columns, dim=1))
    yield trained.as_dict() | random_init.as_baseline() | {"baseline": _baseline(model.description)}


@ray.remote
def _score(
    uri: str,
    description: dict[str, Any],
    weights: Params,
    source: EpisodeSource,
    indices: list[int],
    users: tuple[tuple[str, ...], str | None, str],
) -> Tensor:
    """Scores of these episodes (len(indices), 2 · columns): by the model, and by the same network without training.

    `users`: import paths of the user's own classes, the metric that the user named, and the folder where they are found.
    """
    own, metric, import_from = users
    sys.path.append(import_from)
    torch.set_num_threads(1)
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    device_of(device).choose(tf32=False)
    weights = {name: value.to(device) for name, value in weights.items()}
    model = Model(uri, description, build(description, weights, own), weights)
    stream = evaluation_stream(model, *source)
    settings = description["model"]
    drawn = build_model(**settings, allow_import=settings["name"] in own, seed=torch_seed(source.seed, "initial weights"))
    learner = build_learner(model=drawn, allow_import=True, **description["learner"])
    random_init = weights | {name: value.to(weights[name]) for name, value in learner.initial_params().items()}
    scored_by = metric_for(description, metric)
    return torch.cat([scores(scored_by, model.learner, params, stream, indices) for params in (weights, random_init)], dim=1).cpu()


def _baseline(description: dict[str, Any]) -> str:
    """What the network beside the model's own is, for people: a published model does not hold the weights that its training began from."""
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
