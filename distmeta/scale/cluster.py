"""Reaching a Ray cluster, quietly, and asking whether it can place what a run wants."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Set before Ray is imported: Ray reads them once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how often reports are taken; the default is 2 s
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # a worker that hangs does not answer, however long one asks

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem

from distmeta.config import TrainConfig
from distmeta.errors import ClusterError, ConfigError
from distmeta.scale.places import amounts_text, places_on
from distmeta.training.storage import appending, on_disk


@contextmanager
def connected(address: str | None, dashboard: bool = False) -> Iterator[None]:
    """A connection to the cluster at `address`, or else to RAY_ADDRESS, or else to a local instance of our own that ends with the block.

    With `dashboard`, raises ClusterError if the cluster has none.
    """
    outside = os.environ.get("RAY_ADDRESS")
    address = address or outside
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # our own instance listens on loopback only
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else dashboard,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": _address_setter()},
        )
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(f"no Ray cluster answers at {address or 'this machine'}: {reason}", "check --address or RAY_ADDRESS") from None
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        if dashboard and not context.dashboard_url:
            raise ClusterError(
                f"the Ray cluster at {address} has no dashboard; without it Ray does not give a stopped trial's place to the next",
                "start its head with --include-dashboard=true, and with ray[default] installed",
            )
        yield
    finally:
        ray.shutdown()
        if outside is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = outside


def _address_setter() -> Callable[[], None]:
    """What every process that Ray starts for us runs first: it sets RAY_ADDRESS to the cluster that the process belongs to.

    Without RAY_ADDRESS, Ray's own helpers (its state API) take the cluster that `ray start` was last called for on the machine.
    """

    def set_address() -> None:  # a local function, because Ray sends its code: helpers of Ray then start without importing distmeta
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    return set_address


def storage(folder: Path) -> dict[str, Any]:
    """Ray's arguments for what it keeps in `folder`, which may lie in object storage."""
    if on_disk(folder):
        return {"storage_path": str(folder)}
    remote: Any = folder
    return {"storage_path": remote.path, "storage_filesystem": PyFileSystem(FSSpecHandler(remote.fs))}


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Send all that this process and Ray's daemons print to `log`; yields the standard error there was, for what a person should see."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with appending(log) as file, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(saved, 1):
                os.dup2(original, number)
                os.close(original)


def resolve_device(train: TrainConfig) -> str:
    """ "cuda" or "cpu" for train.device; auto takes cuda if every worker can have its GPUs. Raises ConfigError if cuda cannot be had."""
    if train.device == "cpu":
        return "cpu"
    wanted = train.fewest * (1.0 if train.gpus_per_worker is None else train.gpus_per_worker)
    available = ray.cluster_resources().get("GPU", 0)
    if 0 < wanted <= available:
        return "cuda"
    if train.device == "cuda":
        raise ConfigError(
            f"train.device=cuda wants {wanted:g} GPUs but the cluster has {available:g}", "set train.device=auto or lower train.workers"
        )
    return "cpu"


def gpus_per_worker(train: TrainConfig, device: str) -> float:
    return (1.0 if train.gpus_per_worker is None else train.gpus_per_worker) if device == "cuda" else 0.0


def worker_needs(train: TrainConfig, device: str) -> dict[str, float]:
    """What Ray reserves for each worker: kind of resource → amount."""
    gpus = gpus_per_worker(train, device)
    return {"CPU": train.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def check_capacity(train: TrainConfig, device: str) -> int:
    """How many workers the cluster's nodes can hold at once. Raises ClusterError, with the arithmetic, if that is fewer than a run's."""
    need = worker_needs(train, device)
    places = 0
    arithmetic = []
    for node in ray.nodes():
        if node["Alive"]:
            here = places_on(node["Resources"], need)
            places += here
            arithmetic.append(
                f"{node['Resources'].get('CPU', 0):g} CPUs"
                + (f" and {node['Resources'].get('GPU', 0):g} GPUs" if "GPU" in need else "")
                + f" hold {here}"
            )
    if train.fewest > places:
        raise ClusterError(
            f"train.workers={train.workers} of {amounts_text(need)} each, "
            f"but this cluster places {places} (nodes: {'; '.join(arithmetic)})",
            f"set train.workers={places}, or lower train.cpus_per_worker"
            if places
            else "lower train.cpus_per_worker or train.gpus_per_worker",
        )
    return places
