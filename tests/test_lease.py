"""A run folder has one writer: a second one is refused, a dead one's place is taken, and an overtaken one commits nothing more."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from distmeta.errors import Overtaken, RunError
from distmeta.training import lease as leases
from distmeta.training.lease import Lease, check
from distmeta.training.storage import LEASE, folder_at, is_empty

FORK = multiprocessing.get_context("spawn")


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return folder_at("s3://bucket/run")
    return tmp_path


def hold(folder: str, held: Any) -> None:
    """What another process does: hold the lease until it is killed."""
    with Lease(folder_at(folder), print):
        held.set()
        signal.pause()


@pytest.fixture
def other(folder: Path) -> Any:
    """Another process that holds the lease."""
    held = FORK.Event()
    process = FORK.Process(target=hold, args=(str(folder), held), daemon=True)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_folder_has_one_holder(folder: Path) -> None:
    with Lease(folder, print) as first:
        check(first.claim)
        with pytest.raises(RunError, match=rf"is in use: process {os.getpid()} on .* writes it\nwait until that ends"):
            Lease(folder, print).__enter__()
        check(first.claim)
        assert is_empty(folder), "a lease alone is no run"
    assert not (folder / LEASE).exists()
    with pytest.raises(Overtaken):
        check(first.claim)
    with Lease(folder, print) as second:
        check(second.claim)


def test_a_second_process_is_refused_while_the_first_lives_and_not_when_it_was_killed(folder: Path, other: Any) -> None:
    said: list[str] = []
    with pytest.raises(RunError, match=f"is in use: process {other.pid} on"):
        Lease(folder, said.append).__enter__()
    os.kill(other.pid, signal.SIGSTOP)  # neither does one that stands still
    with pytest.raises(RunError, match=f"is in use: process {other.pid} on"):
        Lease(folder, said.append).__enter__()
    os.kill(other.pid, signal.SIGCONT)
    other.kill()
    other.join()
    with Lease(folder, said.append) as mine:
        check(mine.claim)
    assert not said, "nobody waits for a process of this machine that is known to be dead"


def elsewhere(file: Path, renewals: int) -> None:
    """The lease of a process on another machine."""
    content = {"owner": "theirs", "renewals": renewals, "host": "far", "machine": "far", "pid": 1, "started": 0.0}
    file.write_text(json.dumps(content))


def passing(monkeypatch: pytest.MonkeyPatch, each: Callable[[int], None]) -> None:
    """Let time pass without waiting; `each` is called after every look with its number."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        each(round(clock[0]))

    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(leases.time, "sleep", sleep)


def test_another_machines_lease_is_taken_over_after_a_minute_without_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, said, looks = folder / LEASE, [], []
    elsewhere(file, 5)
    passing(monkeypatch, looks.append)
    with Lease(folder, said.append) as mine:
        check(mine.claim)
        with pytest.raises(Overtaken, match="was taken over by process"):
            check(mine.claim._replace(owner="theirs"))
    assert looks[-2] == 60
    assert said == [f"{file} is held by process 1 on far; if it does not renew it in 60 s, it is taken over"]


def test_another_machines_lease_that_is_renewed_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / LEASE
    elsewhere(file, 5)
    passing(monkeypatch, lambda second: elsewhere(file, 6) if second == 9 else None)
    with pytest.raises(RunError, match="is in use: process 1 on far"):
        Lease(folder, lambda text: None).__enter__()
    assert json.loads(file.read_text())["owner"] == "theirs"


def test_of_two_that_take_over_at_once_one_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / LEASE
    elsewhere(file, 5)
    passing(monkeypatch, lambda second: elsewhere(file, 0) if second == 61 else None)  # after ours was written
    with pytest.raises(RunError, match="is in use"):
        Lease(folder, lambda text: None).__enter__()


def test_a_holder_renews_and_stops_when_it_was_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    file = tmp_path / LEASE
    with Lease(tmp_path, print) as mine:
        while json.loads(file.read_text())["renewals"] < 3:
            mine._end.wait(0.01)
        for _ in range(100):  # a renewal that is under way may write over the other's lease once
            elsewhere(file, 0)
            mine._thread.join(0.3)
            if not mine._thread.is_alive():
                break
        assert not mine._thread.is_alive()
        with pytest.raises(Overtaken, match="was taken over by process 1 on far: this process has stopped writing"):
            check(mine.claim)
    assert json.loads(file.read_text())["owner"] == "theirs", "the other's lease was removed"


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    held = leases._process(os.getpid())
    assert leases._lives_here(held)
    assert leases._died_here(held | {"started": psutil.Process().create_time() - 1000})
    assert not leases._died_here(held | {"machine": "far"})
