"""Connects to a Ray cluster without noise, and checks whether it can place a run's workers."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

# Set before Ray is imported: Ray reads them once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how often reports are taken; the default is 2 s
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # what Ray prints goes to a file
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` Ray would upload the working folder
os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # a hanging worker does not answer, whatever the time limit

import grpc
import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._common.utils import get_default_ray_temp_dir
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError
from ray.util import placement_group, remove_placement_group

from distmeta.config import TrainConfig
from distmeta.errors import ClusterError, ConfigError, DistmetaError
from distmeta.masking import log_text
from distmeta.scale.places import amounts_text, places_on
from distmeta.terminal import lasting, lost_output
from distmeta.training.storage import appending, on_disk

TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, the file of the cluster's token"
_ANSWER_S = 20.0
_MANAGED = "ray.io/node-group"  # a label of nodes that a launcher started


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, else at RAY_ADDRESS, else to a new local instance that ends with the block. Raises ClusterError
    within 20 s if no cluster answers or accepts the connection.
    """
    outside = os.environ.get("RAY_ADDRESS") or None
    if address or outside:
        _check_answers(address or outside or "", "--address" if address else "RAY_ADDRESS")
    else:
        os.environ["RAY_AUTH_MODE"] = "disabled"  # a local instance listens on loopback only
    try:
        with _sigterm_kept():
            ray.init(
                address=address or outside or "local",
                include_dashboard=None if address or outside else False,
                logging_level=logging.ERROR,
                runtime_env={"worker_process_setup_hook": _process_setup()},
            )
    except DistmetaError:  # a signal from the user
        raise
    except Exception as error:  # Ray may raise any exception
        raise _refused(error, address or outside) from None
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        ray.shutdown()
        if outside is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = outside


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep this process's SIGTERM handler, if it has one, because ray.init replaces it by a silent exit."""
    own = signal.getsignal(signal.SIGTERM)
    yield
    if callable(own) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, own)


def _check_answers(address: str, source: str) -> None:
    """Raises ClusterError unless a Ray head answers at `address` (HOST:PORT, or auto), which `source` named, and takes our token."""
    remedy = "start that cluster, or correct --address" if source == "--address" else "unset RAY_ADDRESS, or set it to a running cluster"
    try:
        head = canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, ValueError, OSError) as error:
        reason = f"{source}={address} is not the address of a Ray head: {_first_line(error)}"
        raise ClusterError(reason, "write HOST:PORT (often port 6379)") from None
    try:
        NodeInfoGcsServiceStub(create_gcs_channel(head)).CheckAlive(CheckAliveRequest(), timeout=_ANSWER_S)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise ClusterError(f"the Ray cluster at {source}={address} wants its token", TOKEN) from None
        reason = f"no answer in {_ANSWER_S:g} s" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else _first_line(error.details())
        raise ClusterError(f"no Ray cluster answers at {source}={address}: {reason}", remedy) from None
    except AuthenticationError as error:
        raise ClusterError(f"no token for the Ray cluster at {source}={address}: {_first_line(error)}", TOKEN) from None


def _refused(error: Exception, address: str | None) -> ClusterError:
    """The message for an error of ray.init."""
    if "AF_UNIX path" in str(error):
        return ClusterError(
            f"the path of Ray's temporary folder is too long for sockets: {get_default_ray_temp_dir()}", "set RAY_TMPDIR=/tmp"
        )
    if "timed out during startup" in str(error):
        return ClusterError("Ray did not start on this machine in time", "try again when the machine is less busy")
    where = f"the Ray cluster at {address} refuses" if address else "Ray does not start on this machine"
    return ClusterError(f"{where}: {_first_line(error)}", "distmeta doctor says more")


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _process_setup() -> Callable[[], None]:
    """The setup hook of every process that Ray starts for us. It sets RAY_ADDRESS to the process's cluster, and GLOO_SOCKET_IFNAME to the
    interface of its node's address.

    Without RAY_ADDRESS, Ray's state API uses the cluster of the last `ray start` on the machine. By default Gloo uses the address of the
    host's name, which on many hosts is 127.0.0.1.
    """

    def set_up() -> None:  # a local function, because Ray then sends its code, and Ray's helpers start without importing distmeta
        import os
        import socket

        import psutil
        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        own = ray.util.get_node_ip_address()
        for interface, addresses in psutil.net_if_addrs().items():
            if any(
                candidate.family in (socket.AF_INET, socket.AF_INET6) and candidate.address.partition("%")[0] == own
                for candidate in addresses
            ):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

    return set_up


def storage(folder: Path) -> dict[str, Any]:
    """Ray's arguments for its files in `folder`, which may be in object storage."""
    if on_disk(folder):
        return {"storage_path": str(folder)}
    remote: Any = folder
    return {"storage_path": remote.path, "storage_filesystem": PyFileSystem(FSSpecHandler(remote.fs))}


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Redirect all output of this process and Ray's daemons to `log`. Yields the original standard error, for messages to the user."""
    _flush()
    saved = os.dup(1), os.dup(2)
    with appending(log) as file, lasting(os.dup(2), owned=True) as terminal:
        began = file.seek(0, os.SEEK_END)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            lost_output()  # a full log does not lose results
            _flush()
            for number, original in enumerate(saved, 1):
                os.dup2(original, number)
                os.close(original)
            _mask(file, began)


def _mask(log: IO[bytes], began: int) -> None:
    """Take out of what was logged since `began` colours, and what may be secret: Ray and libraries print what they were given."""
    log.seek(began)
    text = log.read().decode(errors="replace")
    safe = log_text(text)
    if safe != text:
        log.truncate(began)
        log.seek(began)
        log.write(safe.encode())
        log.flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a closed terminal or pipe
            stream.flush()


def await_nodes(train: TrainConfig, say: Callable[[str], None]) -> None:
    """On a cluster that a launcher manages (KubeRay, ray up), wait until its nodes can hold the run's workers.

    A placement group asks the autoscaler for them. It is removed again at once; idle nodes stay for a minute or more. If nodes are missing
    after train.start_timeout_s, `resolve_device` and `check_capacity` report it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    need = worker_needs(train, "cuda" if train.device == "cuda" else "cpu")
    places = sum(places_on(node["Resources"], need) for node in nodes)
    if places >= train.fewest or not any(_MANAGED in node["Labels"] for node in nodes):
        return
    wanted = amounts_text({kind: amount * train.fewest for kind, amount in need.items()})
    limit = f"train.start_timeout_s={train.start_timeout_s:g}"
    say(f"the nodes hold {places} of {train.fewest} workers; asked the autoscaler for {wanted} ({limit})")
    group = placement_group([need] * train.fewest)
    try:
        group.wait(train.start_timeout_s)
    finally:
        remove_placement_group(group)


def resolve_device(train: TrainConfig) -> str:
    """ "cuda" or "cpu" for train.device; auto is cuda if every worker can have its GPUs. Raises ConfigError if cuda is requested but not
    available.
    """
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
    """The number of workers that the cluster can place at once. Raises ClusterError with the numbers if a run needs more."""
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
