"""Shared by all tests: a small packed dataset made here, and the real data where there is some."""

import math
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from distmeta.data.episodes import Batch, Task
from distmeta.data.pack import PackOptions, pack
from distmeta.data.shards import Dataset
from distmeta.data.sources import SourceImage
from distmeta.learners import build_learner
from distmeta.seeds import generator
from distmeta.training.accuracy import Accuracy

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

torch.set_num_threads(1)
settings.register_profile("distmeta", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("distmeta")


@pytest.fixture(autouse=True)
def forget_written_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test wrote and imported would answer for the next test's module of the same name in this process."""
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path_factory.getbasetemp()}{os.sep}"):
            del sys.modules[name]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def png(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def patterns(images_per_class: int = 12, classes: tuple[int, int, int] = (12, 6, 7), size: int = 16) -> Iterator[SourceImage]:
    """Classes that can be told apart: each is a blocky random picture, its images are noisy copies."""
    for split, count in zip(("train", "val", "test"), classes, strict=True):
        for number in range(count):
            base = np.kron(generator(7, split, number).integers(0, 200, (4, 4)), np.ones((size // 4, size // 4)))
            for i in range(images_per_class):
                noise = generator(7, split, number, i).integers(0, 56, (size, size))
                image = png((base + noise).astype(np.uint8))
                yield SourceImage(
                    split=split,
                    class_name=f"{split}-{number}",
                    category=f"{split} category {number % 3}",
                    image=image,
                    origin=f"pattern {number}/{i}",
                )


def options(**changes: object) -> PackOptions:
    return PackOptions(
        dataset="patterns", image_size=16, channels=1, image_format="png", resize="squash", images_per_class=6, seed=0, source={}
    )._replace(**changes)


@pytest.fixture(scope="module", autouse=True)
def _no_tracking_uri_stays() -> Iterator[None]:
    """MLflow keeps the URI that a test set in the environment, where the next module's tests would find it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 classes of 12 images in two shards a split."""
    out = tmp_path_factory.mktemp("data") / "patterns"
    pack(patterns(), out, options())
    return out


@pytest.fixture(scope="session")
def dataset(packed: Path) -> Dataset:
    return Dataset(str(packed))


@pytest.fixture(scope="module", autouse=True)
def import_path() -> Iterator[None]:
    """Restores sys.path after a module. MLflow puts a loaded model's own code first there, where later processes would import it."""
    before = list(sys.path)
    yield
    sys.path = before


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster of two CPUs for all runs of a module; it has no dashboard."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all runs of a module."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A new folder with a short path, because Ray makes sockets in it. Every user may read it."""
    with tempfile.TemporaryDirectory(prefix="distmeta-", dir="/tmp", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of an S3 server on the loopback, which has one bucket, "bucket"; all programs started meanwhile find it."""
    import boto3
    import moto.backends
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    try:
        yield client
    finally:
        moto.backends.get_backend("s3").reset()  # it would be there for the next server too
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def small_memory() -> Iterator[Callable[[int], None]]:
    """Puts a process into a control group of its own in which it can have hardly any more memory."""
    group = Path("/sys/fs/cgroup/memory") / f"distmeta-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("65536")
    except OSError:
        pytest.skip("control groups cannot be made here")

    def confine(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))

    yield confine
    with suppress(OSError):
        group.rmdir()


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same tasks, bit for bit."""
    pairs = [(value, getattr(b, name)) for name, value in vars(a).items()]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def validation(score: float) -> dict[str, Any]:
    """What a classification run's metrics hold of a validation with this inductive accuracy, which may be NaN."""
    measurement = Accuracy().measure(build_learner("maml", nn.Linear(1, 3)), Task(3, 1, 2), torch.tensor([[score, score]]).double())
    return Accuracy().keys(measurement) | {"measurement": measurement.as_dict(), "score": score if math.isfinite(score) else None}
