"""Chooses native or torch kernels for a run's workers: once, before step 0, for all nodes."""

import socket

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from distmeta.assembly.run import Run
from distmeta.config import Config, TrainConfig
from distmeta.errors import ClusterError, ConfigError, RunError
from distmeta.models import native
from distmeta.models.native.library import KernelsUnavailable, Library, Precision, library
from distmeta.scale.cluster import worker_needs
from distmeta.scale.places import places_on


def settled(this: Run, device: str) -> tuple[str, str]:
    """The kernels of `this` on `device`, "native" or "torch", and a message for the user (may be empty).

    A resumed run keeps its kernels. Otherwise auto is native if every node that may hold a worker can build the kernels and run their
    probe. Raises ConfigError or ClusterError if train.kernels=native is not possible.
    """
    train = this.config.train
    wanted = _began_with(this) if train.kernels == "auto" else train.kernels
    if wanted == "torch":
        return "torch", ""
    reason = _unsuited(train, device, this.learner.model)
    if reason is not None:
        if wanted == "native":
            raise ConfigError(f"train.kernels=native: {reason}", "set train.kernels=auto or torch")
        return "torch", ""
    failure = _failure(train, device)
    if failure is None:
        return "native", ""
    if wanted == "native":
        raise ClusterError(f"train.kernels=native, but {failure[0]}", failure[1])
    return "torch", f"{failure[0]}; training uses torch's kernels, which are slower"


def _began_with(this: Run) -> str:
    """The kernels of the run or sweep in the folder; "auto" if there is none. Older runs, without this entry, used torch."""
    if not this.folder.holds_run:
        return "auto"
    kept = this.folder.read_config().train.kernels
    return "torch" if kept == "auto" else kept


def of_worker(config: Config) -> Library | None:
    """The library of a run with native kernels. Raises RunError naming the node if it is not available there."""
    if config.train.kernels != "native":
        return None
    try:
        return library(config.train.weights)
    except KernelsUnavailable as error:
        raise RunError(f"this run computes with native kernels, but on node {socket.gethostname()} {error.message}", error.remedy) from None


def _unsuited(train: TrainConfig, device: str, network: nn.Module) -> str | None:
    """Why native kernels do not apply to this run, on any node."""
    if device != "cpu":
        return f"they run on CPUs, not on {device}"
    if train.threads_per_worker > 1:
        return f"they use one thread, and train.threads_per_worker={train.threads_per_worker}"
    return None if native.serves(network) else "they support no block of this network"


def _failure(train: TrainConfig, device: str) -> tuple[str, str] | None:
    """Why some node cannot use native kernels, and the remedy."""
    here, needs = ray.get_runtime_context().get_node_id(), worker_needs(train, device)
    nodes = [node for node in ray.nodes() if node["Alive"] and places_on(node["Resources"], needs)]
    others = [node for node in nodes if node["NodeID"] != here]
    asked = [
        _try.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(train.weights)
        for node in others
    ]
    names = [node["NodeManagerHostname"] for node in others]
    answers = dict(zip(names, ray.get(asked), strict=True))
    if len(others) < len(nodes):
        answers[socket.gethostname()] = _tried(train.weights)
    for name, answer in answers.items():
        if isinstance(answer, tuple):
            return f"on node {name} {answer[0]}", answer[1]
    if len(set(answers.values())) > 1:
        told = ", ".join(f"{name}: {answer}" for name, answer in answers.items())
        return f"native kernels compute different bits on these nodes ({told})", "set train.kernels=torch, or use nodes of one kind"
    return None


def _tried(precision: Precision) -> str | tuple[str, str]:
    """The kernels on this node, or the reason why there are none and the remedy."""
    try:
        return str(library(precision))
    except KernelsUnavailable as error:
        return error.message, error.remedy


_try = ray.remote(num_cpus=0)(_tried)
