"""Which cluster a process takes for its own, and placement groups: who holds one, and when it is given back."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from conftest import free_port
from ray.cluster_utils import Cluster
from ray.util import placement_group
from test_sweep import config, wait_for

from distmeta.scale import places
from distmeta.scale.cluster import connected
from distmeta.scale.progress import STARTING
from distmeta.sweep import watchdog as watchdogs
from distmeta.sweep.records import Records
from distmeta.sweep.trials import load_trials
from distmeta.sweep.tuner import Running
from distmeta.sweep.watchdog import Watchdog
from distmeta.training.lease import Claim


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20, **ports})
    yield cluster.address
    cluster.shutdown()


@ray.remote(num_cpus=0)
class Asker:
    """An actor that can reserve a place, and start another such actor."""

    def address(self) -> str | None:
        return os.environ.get("RAY_ADDRESS")

    def gloo_interface(self) -> str | None:
        return os.environ.get("GLOO_SOCKET_IFNAME")

    def address_of_a_child(self) -> str | None:
        child = Asker.options(runtime_env={"env_vars": {"OTHER": "1"}}).remote()  # type: ignore[attr-defined]
        return ray.get(child.address.remote())

    def reserve(self, cpus: float) -> str:
        group = placement_group([{"CPU": cpus}])
        return group.id.hex()


def held(group_id: str) -> bool:
    return group_id in {group.id for group in places.groups()}


def test_every_process_of_a_run_is_told_its_cluster(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for outside in (None, "192.0.2.1:6379"):
        monkeypatch.setenv("RAY_ADDRESS", outside) if outside else monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with connected(address):
            asker = Asker.remote()  # type: ignore[attr-defined]
            told = ray.get([asker.address.remote(), asker.address_of_a_child.remote()])
            assert [*told, os.environ["RAY_ADDRESS"]] == [address] * 3
            interface = psutil.net_if_addrs()[ray.get(asker.gloo_interface.remote())]
            assert ray.util.get_node_ip_address() in {found.address for found in interface}
        assert os.environ.get("RAY_ADDRESS") == outside


def test_the_group_of_a_killed_actor_is_found_and_removed_and_no_other(address: str) -> None:
    with connected(address):
        going, killed = (Asker.remote() for _ in range(2))  # type: ignore[attr-defined]
        kept, lost, pending = ray.get([going.reserve.remote(1), killed.reserve.remote(1), killed.reserve.remote(2)])
        drivers = placement_group([{"CPU": 0.0, "node:__internal_head__": 0.001}]).id.hex()
        wait_for(lambda: {group.id for group in places.groups() if group.placed} == {kept, lost, drivers})
        assert not any(group.orphaned for group in places.groups())
        wait_for(lambda: places.free_places({"CPU": 1}) == 0)
        ray.kill(killed)
        wait_for(lambda: {group.id for group in places.groups() if group.orphaned} == {lost, pending})
        places.remove([lost, pending, "00" * 18])
        wait_for(lambda: places.free_places({"CPU": 1}) == 1)
        assert {group.id for group in places.groups()} == {kept, drivers}
        whole = [group for group in places.groups() if group.id == kept]
        assert (
            places.holders(whole, {}, ["CPU"]) == f"job {places.own_job()} (process {os.getpid()} on {address.split(':')[0]}) holds 1 CPU"
        )
        assert places.holders(whole, {whole[0].controller: "trial 3"}, ["CPU"]) == "trial 3 holds 1 CPU"
        assert places.holders(whole, {}, ["GPU"]) == ""
    with connected(address):
        wait_for(lambda: not places.groups())  # with its job everything of it ends


class Board:
    """Answers as a board does, without a process."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {"phase": STARTING, "step": 0}
        self.snapshot = SimpleNamespace(remote=lambda: (self.status, None))


def sent_driver(number: int) -> bytes:
    return ray.cloudpickle.dumps(SimpleNamespace(_actor_id=bytes([number])))


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two trials of a sweep on an imagined cluster: `groups` are its groups, `killed` the drivers that were killed."""
    base = config(tmp_path)
    base = base.model_copy(update={"train": base.train.model_copy(update={"start_timeout_s": 10.0})})
    records = Records(base)
    running = []
    for number in range(2):
        trial = records.next()
        assert trial is not None
        trial.save(records.folder)
        running.append(Running(trial, Board()))
        running[-1].board.status["driver"] = sent_driver(number)
    found = SimpleNamespace(groups=[], killed=[], said=[], removed=[], free=0, records=records, running=running)
    monkeypatch.setattr(places, "own_job", lambda: "01")
    monkeypatch.setattr(places, "groups", lambda: found.groups)
    monkeypatch.setattr(places, "remove", lambda ids: found.removed.extend(ids))
    monkeypatch.setattr(places, "creators", lambda job: {"controller 0": "00", "controller 1": "01"})
    monkeypatch.setattr(places, "free_places", lambda needs: found.free)
    monkeypatch.setattr(places, "jobs", lambda: [{"JobID": "02", "DriverPid": 7, "DriverIPAddress": "host"}])
    monkeypatch.setattr(watchdogs.ray, "get", lambda answers, timeout: answers)
    monkeypatch.setattr(watchdogs.ray, "kill", found.killed.append)
    source: Any = SimpleNamespace(running=running)
    found.watchdog = Watchdog(
        records=records, source=source, claim=Claim(str(records.folder), "me"), train=base.train, needs={"CPU": 1.0}, say=found.said.append
    )
    return found


def group(number: int, placed: bool, job: str = "01", orphaned: bool = False) -> places.Group:
    return places.Group(
        id=f"group {job} {number}",
        job=job,
        controller=f"controller {number}",
        orphaned=orphaned,
        placed=placed,
        amounts=Counter({"CPU": 1.0}),
    )


def test_what_a_trial_waits_for_is_said_with_who_holds_it(watched: Any) -> None:
    del watched.running[0].board.status["driver"]
    watched.watchdog._turn(1)
    assert watched.watchdog.waiting == {0: "waits for its process", 1: "waits for Ray Train"}
    watched.running[0].board.status.update(driver=sent_driver(0), phase="training")
    watched.groups = [group(0, placed=True), group(1, placed=False), group(5, placed=True, job="02")]
    watched.watchdog._turn(1)
    assert watched.watchdog.waiting == {1: "waits for 1 CPU (trial 0 holds 1 CPU, job 02 (process 7 on host) holds 1 CPU)"}
    watched.groups[1] = group(1, placed=True)
    watched.watchdog._turn(1)
    assert watched.watchdog.waiting == {1: "waits for its workers to start"}
    watched.running[1].board.status["phase"] = "loading data"
    watched.watchdog._turn(1)
    assert watched.watchdog.waiting == {}


def test_a_trial_that_does_not_start_is_restarted_once_and_then_fails_alone(watched: Any) -> None:
    watched.running[0].board.status["phase"] = "training"
    watched.groups, watched.free = [group(0, placed=True), group(1, placed=False)], 1
    driver = ray.cloudpickle.loads(watched.running[1].board.status["driver"])
    folder = watched.running[1].trial.folder(watched.records.folder)
    watched.groups[1:] = []
    watched.watchdog._turn(9)
    watched.groups.append(group(1, placed=False))
    watched.watchdog._turn(9)
    assert not watched.killed, "it got on meanwhile"
    watched.watchdog._turn(2)
    assert watched.killed == [driver]
    assert watched.said == ["trial 1 has not started in 10 s and is restarted: it waits for 1 CPU (trial 0 holds 1 CPU)"]
    assert folder.read_failure() is None
    watched.watchdog._turn(11)
    assert watched.killed == [driver] * 2
    assert folder.read_failure() == "not started in twice 10 s: it waits for 1 CPU (trial 0 holds 1 CPU)"
    watched.records.end(watched.running[1].trial, died=False)
    assert [(trial.state, trial.unplaced) for trial in load_trials(watched.records.folder)] == [("running", False), ("failed", True)]
    resumed = Records(watched.records.config)
    assert [resumed.next(), resumed.next()] == resumed.trials[:2], "what had no place is not tried again"


def test_a_trial_waits_for_as_long_as_another_of_its_sweep_trains_in_its_place(watched: Any) -> None:
    watched.running[0].board.status["phase"] = "training"
    watched.groups = [group(0, placed=True), group(1, placed=False)]
    watched.watchdog._turn(1)
    for _ in range(5):
        watched.watchdog._turn(100)
    assert not watched.killed
    watched.running[0].board.status["phase"] = STARTING  # nothing trains any more: others hold everything
    watched.groups = [group(0, placed=False), group(1, placed=False), group(5, placed=True, job="02")]
    watched.watchdog._turn(11)
    assert len(watched.killed) == 2


def test_a_sweep_ends_if_ray_starts_no_process_for_a_trial(watched: Any) -> None:
    del watched.running[0].board.status["driver"]
    watched.watchdog._turn(11)
    assert watched.watchdog.error.message == "Ray has not started a process for trial 0 in 11 s"


def test_groups_of_ended_trials_are_removed_and_all_are_recorded(watched: Any) -> None:
    watched.groups = [group(0, placed=True), group(1, placed=True, orphaned=True), group(2, placed=True, job="02", orphaned=True)]
    watched.watchdog._turn(1)
    assert watched.removed == ["group 01 1"]
    recorded = watched.records.folder.read_groups()
    assert recorded == ["group 01 0", "group 01 1"]
    watched.removed.clear()
    later = Watchdog(
        records=watched.records,
        source=watched.watchdog._source,
        claim=Claim("", "me"),
        train=watched.records.config.train,
        needs={"CPU": 1.0},
        say=print,
    )
    with later:
        assert set(watched.removed) >= set(recorded), "a resumed sweep leaves what an earlier session held"
    assert "group 02 2" not in watched.removed
