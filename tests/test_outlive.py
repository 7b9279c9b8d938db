"""A run whose process is killed is ended in MLflow all the same; one that somebody continues is left alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from registered import config

from distmeta.registry import tracking
from distmeta.registry.outlive import end_orphan
from distmeta.training.lease import Lease
from distmeta.training.run_folder import RunFolder

DRIVER = """
import signal, sys
from distmeta.registry import tracking
from distmeta.training.run_folder import RunFolder
uri, path = sys.argv[1:]
with tracking.ended(uri, RunFolder(path)):
    print("begun", flush=True)
    {then}
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def began(path: Path, uri: str, tags: dict[str, str] | None = None) -> tuple[RunFolder, str]:
    path.mkdir()
    folder = RunFolder(path)
    folder.write_description(config(path, uri), {"dataset": "patterns", "fingerprint": "f" * 64})
    return folder, tracking.start_run(config(path, uri), folder, tags or {})


def driver(uri: str, folder: RunFolder, then: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", DRIVER.format(then=then), uri, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_killed_drivers_run_is_ended_within_a_minute_with_those_below_it(uri: str, tmp_path: Path) -> None:
    folder, run_id = began(tmp_path / "sweep", uri)
    _, below = began(tmp_path / "trial", uri, {"mlflow.parentRunId": run_id})
    _, other = began(tmp_path / "other", uri)
    process = driver(uri, folder, "signal.pause()")
    process.send_signal(signal.SIGKILL)
    mlflow, until = MlflowClient(uri), time.monotonic() + 60
    while mlflow.get_run(below).info.status != "KILLED":
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)
    run = mlflow.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.end_time is not None
    assert mlflow.get_run(other).info.status == "RUNNING"
    assert [(event["kind"], event["reason"]) for event in folder.events.read()] == [("ended", "its driver was killed")]
    assert run.data.tags["last_event"] == "ended: its driver was killed"
    process.wait()


def test_a_driver_that_ends_by_itself_is_not_called_killed(uri: str, tmp_path: Path) -> None:
    folder, run_id = began(tmp_path / "run", uri)
    process = driver(uri, folder, "pass")
    assert process.wait() == 0
    failed = driver(uri, folder, "raise ValueError")
    assert failed.wait() == 1
    assert folder.events.read() == []
    assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"


def test_a_run_that_was_resumed_meanwhile_is_left_alone(uri: str, tmp_path: Path) -> None:
    folder, run_id = began(tmp_path / "run", uri)
    with Lease(folder.path, print):
        end_orphan(uri, str(folder))
    assert MlflowClient(uri).get_run(run_id).info.status == "RUNNING"
    end_orphan(uri, str(folder))
    assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"


def test_a_run_that_has_ended_keeps_its_status(uri: str, tmp_path: Path) -> None:
    folder, run_id = began(tmp_path / "run", uri)
    tracking.end_run(uri, run_id, "FINISHED")
    end_orphan(uri, str(folder))
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
