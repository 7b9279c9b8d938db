"""Runs that meet with failures, on real Ray workers: killed, hung, told to end, out of disk, side by side. All end in the same weights."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from failures import at_checkpoint, workers_of
from ray.cluster_utils import Cluster
from test_run import STEPS, config

from distmeta.config import Config
from distmeta.errors import RunError
from distmeta.scale.run import run
from distmeta.train import checkpoint as checkpoints
from distmeta.train.metrics import read_metrics, restarts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def alone(home: Path, packed: Path, address: str) -> dict[str, Any]:
    return run(config(home, packed, "alone", workers=1), address=address)


def steps_of(result: dict[str, Any]) -> list[int]:
    return [record["step"] for record in read_metrics(Path(result["run_folder"]))]


def same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    return (
        result["weights_sha256"] == alone["weights_sha256"]
        and result["test"] == alone["test"]
        and steps_of(result) == list(range(1, STEPS + 1))
    )


@pytest.mark.parametrize("number", range(3))
def test_killed_at_random(number: int, alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    """tests/bench/same_weights.py does this twenty times, with a larger run."""
    drawn = random.Random(number)
    step, victim = drawn.randrange(5, 35), drawn.randrange(2)
    made = config(home, packed, f"killed-{number}", checkpoint_every=2)
    at_checkpoint(Path(made.run_folder), step, lambda: workers_of(psutil.Process())[victim].kill(), drawn.random() / 10)
    result = run(made, address=address)
    assert same(result, alone)
    (again,) = restarts(Path(result["run_folder"]))
    assert step <= again < STEPS


def test_a_worker_that_hangs_is_replaced(alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    made = config(home, packed, "hung", checkpoint_every=2, collective_timeout_s=8)
    stopped: list[psutil.Process] = []

    def hang() -> None:
        stopped.append(workers_of(psutil.Process())[0])
        stopped[0].suspend()

    at_checkpoint(Path(made.run_folder), 6, hang)
    result = run(made, address=address)
    assert stopped
    assert same(result, alone)
    assert len(restarts(Path(result["run_folder"]))) == 1


def test_a_worker_told_to_end_leaves_a_checkpoint(alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    """SIGTERM, as before a machine is taken away: not a step is repeated, though no checkpoint was due before the run's end."""
    made = config(home, packed, "told", checkpoint_every=STEPS, validate_every=STEPS)
    started = Path(made.run_folder) / "starts.jsonl"

    def tell() -> None:
        while not started.exists():
            time.sleep(0.05)
        time.sleep(1.0)
        workers_of(psutil.Process())[0].terminate()

    threading.Thread(target=tell, daemon=True).start()
    result = run(made, address=address)
    assert result["weights_sha256"] == alone["weights_sha256"]
    assert steps_of(result) == list(range(1, STEPS + 1))
    (again,) = restarts(Path(result["run_folder"]))
    assert 0 < again < STEPS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_named(
    alone: dict[str, Any], home: Path, packed: Path, address: str, small_disk: Path
) -> None:
    made = config(home, packed, "full", checkpoint_every=4)
    made = made.model_copy(update={"run_folder": str(small_disk / "run")})
    run_folder = Path(made.run_folder)

    def fill() -> None:
        with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    at_checkpoint(run_folder, 8, fill)
    with pytest.raises(RunError, match=r"cannot be written: .*No space left on device.*\nmake room.*goes on from step-0000\d\d"):
        run(made, address=address)
    newest = checkpoints.newest(run_folder)
    assert newest is not None
    (small_disk / "filler").unlink()
    result = run(made, resume=True, address=address)
    assert same(result, alone)
    assert int(newest.name[5:]) in restarts(run_folder)


def test_two_runs_in_one_cluster(alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    both = [start(config(home, packed, f"beside-{number}", cpus_per_worker=0.4), home, address) for number in range(2)]
    for process in both:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert same(json.loads(out.splitlines()[-1]), alone)


def test_a_killed_driver_is_resumed(alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    made = config(home, packed, "driverless", checkpoint_every=2)
    process = start(made, home, address)
    at_checkpoint(Path(made.run_folder), 6, lambda: os.kill(process.pid, signal.SIGKILL))
    process.communicate()
    result = run(made, resume=True, address=address)
    assert same(result, alone)
    assert restarts(Path(result["run_folder"]))[-1] >= 6


def start(made: Config, home: Path, address: str) -> "subprocess.Popen[str]":
    """The command line's `train`, in a process of its own."""
    path = home / f"{Path(made.run_folder).name}.yaml"
    path.write_text(made.to_yaml())
    command = [sys.executable, "-m", "distmeta", "train", str(path), "--json", "--address", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
