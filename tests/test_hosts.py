"""One run over four hosts with a network between them: delay, loss and a partition change no bit of it."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failures import at_checkpoint
from hosts import Hosts, missing
from ray_hosts import ENVIRONMENT, RayHosts
from test_run import STEPS, config

from distmeta.config import Config
from distmeta.scale.run import run
from distmeta.training.run_folder import RunFolder
from distmeta.training.stored import LOST

pytestmark = pytest.mark.slow

HOSTS = 4
PARTITION_S = 15  # longer than a collective may take, shorter than Ray waits before it gives a node up


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if lacking := missing():
        pytest.skip(lacking)
    with Hosts(HOSTS) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cluster(short_folder: Path, hosts: Hosts) -> RayHosts:
    return RayHosts(hosts, short_folder)


@pytest.fixture(scope="module")
def alone(home: Path, packed: Path, address: str) -> dict[str, Any]:
    """The run on one worker of this host, left alone."""
    return run(config(home, packed, "alone", workers=1), address=address)


def train(cluster: RayHosts, made: Config) -> tuple[dict[str, Any], str]:
    """The result of `distmeta train` on the first host, and what it said."""
    path = cluster.folder / f"{Path(made.run_folder).name}.yaml"
    path.write_text(made.to_yaml())
    command = cluster.run("train", str(path), "--json", f"--address={cluster.head}")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def over_all(home: Path, packed: Path, name: str, **train: Any) -> Config:
    return config(home, packed, name, workers=HOSTS, cpus_per_worker=1, collective_timeout_s=10, **train)


def same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    steps = [record["step"] for record in RunFolder(result["run_folder"]).metrics.read()]
    return (result["weights_sha256"], result["test"], steps) == (alone["weights_sha256"], alone["test"], list(range(1, STEPS + 1)))


def test_delay_and_loss_change_no_bit(alone: dict[str, Any], home: Path, packed: Path, hosts: Hosts, cluster: RayHosts) -> None:
    hosts.set(delay_ms=5, loss=0.01)
    result, _ = train(cluster, over_all(home, packed, "far"))
    hosts.set()
    assert same(result, alone)
    (started,) = [event for event in RunFolder(result["run_folder"]).events.read() if event["kind"] == "start"]
    assert sorted(worker["ip"] for worker in started["workers"]) == [hosts.address(number) for number in range(1, HOSTS + 1)]


def test_a_run_survives_a_partition(alone: dict[str, Any], home: Path, packed: Path, hosts: Hosts, cluster: RayHosts) -> None:
    made = over_all(home, packed, "parted", checkpoint_every=2)

    def part() -> None:
        hosts.set(cut=[HOSTS])
        healing = threading.Timer(PARTITION_S, hosts.set)
        healing.start()

    at_checkpoint(Path(made.run_folder), STEPS // 4, part)
    result, said = train(cluster, made)
    assert same(result, alone)
    assert [event["kind"] for event in RunFolder(made.run_folder).events.read() if event["kind"] in LOST], said
