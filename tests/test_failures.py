"""Runs that meet with failures, on real Ray workers: killed, hung, told to end, out of disk, side by side. All end in the same weights."""

import contextlib
import html
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from failures import at_checkpoint, workers_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import floats, integers
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from test_run import STEPS, config

from distmeta.config import Config
from distmeta.errors import ConfigError, RunError
from distmeta.scale.run import run
from distmeta.training.events import sentence
from distmeta.training.run_folder import RunFolder
from distmeta.training.stored import LOST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(home: Path, packed: Path, address: str) -> dict[str, Any]:
    return run(config(home, packed, "alone", workers=1), address=address)


def losses(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in RunFolder(result["run_folder"]).events.read() if event["kind"] in LOST]


def told_everywhere(result: dict[str, Any], event: dict[str, Any], terminal: str) -> None:
    """A lost worker is named alike in the terminal (and so in a job's log), in MLflow and in the report."""
    folder, said = RunFolder(result["run_folder"]), sentence(event)
    assert said in terminal
    assert said in html.unescape(folder.report.read_text())
    tags = MlflowClient(folder.read_config().tracking.uri).get_run(result["run_id"]).data.tags
    assert (tags["last_lost_worker"], tags["lost_workers"], tags["last_event"]) == (said, "1", "finished")
    if event["kind"] != "node lost":  # there its log went, too
        assert Path(event["log"]).is_relative_to(folder.path)
        assert Path(event["log"]).read_text()


def steps_of(result: dict[str, Any]) -> list[int]:
    return [record["step"] for record in RunFolder(result["run_folder"]).metrics.read()]


def same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    return (
        result["weights_sha256"] == alone["weights_sha256"]
        and result["test"] == alone["test"]
        and steps_of(result) == list(range(1, STEPS + 1))
    )


@given(step=integers(STEPS // 10, STEPS * 8 // 10), victim=integers(0, 1), delay_s=floats(0, 0.1))
@settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_killed_at_random(step: int, victim: int, delay_s: float, alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    """tests/bench/same_weights.py does this with a larger run."""
    made = config(home, packed, f"killed-{uuid.uuid4().hex}", checkpoint_every=2)
    at_checkpoint(Path(made.run_folder), step, lambda: workers_of(psutil.Process())[victim].kill(), delay_s)
    result = run(made, address=address)
    assert same(result, alone)
    (again,) = RunFolder(result["run_folder"]).restarts()
    assert step <= again < STEPS


def test_a_node_leaves_and_another_joins(home: Path, packed: Path) -> None:
    """A run on one or two workers: the node of one of them is lost, and the run grows again when the cluster does."""
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    lost, _ = (cluster.add_node(**node) for _ in range(2))
    every: Any = {"checkpoint_every": 20, "validate_every": 240}
    alone = lasting(config(home, packed, "not-resized", workers=1, **every))
    made = lasting(config(home, packed, "resized", workers=[1, 2], cpus_per_worker=1, start_timeout_s=20, **every))
    process = start(made, home, cluster.address)
    has_reached(made, 60)
    cluster.remove_node(lost, allow_graceful=False)
    has_reached(made, 100)
    cluster.add_node(**node)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads(out.splitlines()[-1])
    workers = [max(record["ranks"]) + 1 for record in RunFolder(made.run_folder).metrics.read()]
    assert [count for count, _ in itertools.groupby(workers)] == [2, 1, 2]
    undisturbed = run(alone, address=cluster.address)
    cluster.shutdown()
    assert result["weights_sha256"] == undisturbed["weights_sha256"]
    assert steps_of(result) == steps_of(undisturbed)
    (gone,) = losses(result)
    assert gone["kind"] == "node lost"
    told_everywhere(result, gone, errors)


def test_clocks_and_hostnames_do_not_enter_results(alone: dict[str, Any], home: Path, packed: Path, tmp_path: Path) -> None:
    """Every Python process of the run believes in another host's name and in a day ten years from now."""
    (tmp_path / "sitecustomize.py").write_text(
        "import platform, socket, time\n"
        "now = time.time\n"
        "time.time = lambda: now() + 10 * 365 * 86400\n"
        "platform.node = socket.gethostname = lambda: 'elsewhere'\n"
    )
    made = config(home, packed, "elsewhere")
    process = start(made, home, None, os.environ | {"PYTHONPATH": str(tmp_path)})
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert same(result, alone)
    begun_ms = MlflowClient(made.tracking.uri).get_run(result["run_id"]).info.start_time
    assert begun_ms / 1000 > time.time() + 9 * 365 * 86400, "the other day was not believed in"


def test_a_worker_that_hangs_is_replaced(
    alone: dict[str, Any], home: Path, packed: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = config(home, packed, "hung", checkpoint_every=2, collective_timeout_s=10)
    stopped: list[psutil.Process] = []

    def hang() -> None:
        stopped.append(workers_of(psutil.Process())[0])
        stopped[0].suspend()

    at_checkpoint(Path(made.run_folder), 6, hang)
    result = run(made, address=address)
    assert stopped
    assert same(result, alone)
    assert len(RunFolder(result["run_folder"]).restarts()) == 1
    (hung,) = losses(result)
    assert (hung["kind"], hung["pid"]) == ("hung", stopped[0].pid)
    told_everywhere(result, hung, capfd.readouterr().err)


def test_a_worker_told_to_end_leaves_a_checkpoint(
    alone: dict[str, Any], home: Path, packed: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
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
    (again,) = RunFolder(result["run_folder"]).restarts()
    assert 0 < again < STEPS
    (died,) = losses(result)
    assert (died["kind"], died["signal"], died["checkpoint"]) == ("died", "SIGTERM", f"step-{again:06d}")
    told_everywhere(result, died, capfd.readouterr().err)


def test_a_worker_that_the_kernel_kills_for_lack_of_memory_is_told_apart(
    small_memory: Callable[[int], None],
    alone: dict[str, Any],
    home: Path,
    packed: Path,
    address: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made, killed = config(home, packed, "memory", checkpoint_every=2), []

    def confine() -> None:
        killed.append(workers_of(psutil.Process())[0].pid)
        small_memory(killed[0])

    at_checkpoint(Path(made.run_folder), 6, confine)
    result = run(made, address=address)
    assert same(result, alone)
    (event,) = losses(result)
    assert (event["kind"], event["pid"], event["signal"]) == ("out of memory", killed[0], "SIGKILL")
    told_everywhere(result, event, capfd.readouterr().err)


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
    with pytest.raises(RunError, match=r"cannot be written: .*No space left on device.*\nmake room.*continues from step-0000\d\d"):
        run(made, address=address)
    newest = RunFolder(run_folder).newest_checkpoint()
    assert newest is not None
    (small_disk / "filler").unlink()
    result = run(made, resume=True, address=address)
    assert same(result, alone)
    assert newest.step in RunFolder(run_folder).restarts()


def test_a_run_folder_that_cannot_be_written(home: Path, packed: Path, address: str, small_disk: Path) -> None:
    """Nothing is begun: neither a run in MLflow nor workers."""
    run_folder = small_disk / "run"
    made = config(home, packed, "read-only", checkpoint_every=4).model_copy(update={"run_folder": str(run_folder)})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match=r"cannot be written: .*Read-only file system"):
        run(made, address=address)
    assert not run_folder.exists()


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
    assert RunFolder(result["run_folder"]).restarts()[-1] >= 6
    assert MlflowClient(made.tracking.uri).get_run(result["run_id"]).info.status == "FINISHED"


def lasting(made: Config) -> Config:
    """The same run with twelve times the steps."""
    return made.model_copy(update={"outer": made.outer.model_copy(update={"steps": 12 * STEPS})})


def has_reached(made: Config, step: int) -> None:
    """Wait until the run has a checkpoint of at least `step`."""
    waiting = at_checkpoint(Path(made.run_folder), step, lambda: None)
    waiting.join(timeout=240)
    assert not waiting.is_alive(), f"no checkpoint of step {step}"


def start(made: Config, home: Path, address: str | None, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """The command line's `train`, in a process of its own, with a Ray of its own if no address is given."""
    path = home / f"{Path(made.run_folder).name}.yaml"
    path.write_text(made.to_yaml())
    command = [sys.executable, "-m", "distmeta", "train", str(path), "--json", *(["--address", address] if address else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
