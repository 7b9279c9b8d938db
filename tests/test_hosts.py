"""One run over four hosts with a network between them: delay, loss and a partition change no bit of it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failures import at_checkpoint
from hosts import Hosts
from test_run import STEPS, config

from distmeta.config import Config
from distmeta.scale.run import run
from distmeta.training.run_folder import RunFolder
from distmeta.training.stored import LOST

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

HOSTS, PORT = 4, 6379
PARTITION_S = 15  # longer than a collective may take, shorter than Ray waits before it gives a node up


class Cluster:
    """A Ray cluster on all hosts, with one CPU on each; the first has the head."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.head = f"{hosts.address(1)}:{PORT}"
        self._start(1, "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}")
        for number in range(2, hosts.count + 1):
            self._start(number, f"--address={self.head}")

    def _start(self, number: int, *options: str) -> None:
        """Start a node on that host, and wait until it is there."""
        own = [f"--node-ip-address={self.hosts.address(number)}", "--num-cpus=1", "--object-store-memory=80000000"]
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options, *own]
        log = self.folder / f"host-{number}.log"
        with log.open("w") as out:
            process = subprocess.Popen(self.hosts.command(number, *ray), stdout=out, stderr=out, env=ENVIRONMENT)
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def train(self, made: Config) -> tuple[dict[str, Any], str]:
        """The result of `distmeta train` on the first host, and what it said."""
        path = self.folder / f"{Path(made.run_folder).name}.yaml"
        path.write_text(made.to_yaml())
        command = [sys.executable, "-m", "distmeta", "train", str(path), "--json", f"--address={self.head}"]
        done = subprocess.run(self.hosts.command(1, *command), capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr


ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    lacking = [name for name in ("setpriv", "unshare", "nsenter", "ip") if shutil.which(name) is None]
    if os.geteuid() or lacking or not Path("/dev/net/tun").exists():
        pytest.skip(f"needs root, /dev/net/tun, util-linux and iproute2 (missing: {', '.join(lacking) or 'root or /dev/net/tun'})")
    with Hosts(HOSTS) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cluster(hosts: Hosts) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # a short path, because Ray makes sockets in it
    yield Cluster(hosts, folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(home: Path, packed: Path, address: str) -> dict[str, Any]:
    """The run on one worker of this host, left alone."""
    return run(config(home, packed, "alone", workers=1), address=address)


def over_all(home: Path, packed: Path, name: str, **train: Any) -> Config:
    return config(home, packed, name, workers=HOSTS, cpus_per_worker=1, collective_timeout_s=10, **train)


def same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    steps = [record["step"] for record in RunFolder(result["run_folder"]).metrics.read()]
    return (result["weights_sha256"], result["test"], steps) == (alone["weights_sha256"], alone["test"], list(range(1, STEPS + 1)))


def test_delay_and_loss_change_no_bit(alone: dict[str, Any], home: Path, packed: Path, hosts: Hosts, cluster: Cluster) -> None:
    hosts.set(delay_ms=5, loss=0.01)
    result, _ = cluster.train(over_all(home, packed, "far"))
    hosts.set()
    assert same(result, alone)
    (started,) = [event for event in RunFolder(result["run_folder"]).events.read() if event["kind"] == "start"]
    assert sorted(worker["ip"] for worker in started["workers"]) == [hosts.address(number) for number in range(1, HOSTS + 1)]


def test_a_run_survives_a_partition(alone: dict[str, Any], home: Path, packed: Path, hosts: Hosts, cluster: Cluster) -> None:
    made = over_all(home, packed, "parted", checkpoint_every=2)

    def part() -> None:
        hosts.set(cut=[HOSTS])
        healing = threading.Timer(PARTITION_S, hosts.set)
        healing.start()

    at_checkpoint(Path(made.run_folder), STEPS // 4, part)
    result, said = cluster.train(made)
    assert same(result, alone)
    assert [event["kind"] for event in RunFolder(made.run_folder).events.read() if event["kind"] in LOST], said
