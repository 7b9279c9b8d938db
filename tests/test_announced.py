"""Every loss of a worker is named alike, and soon, in all five places: terminal, job log, events, MLflow and the report."""

import html
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from failures import at_checkpoint
from hosts import Hosts, missing
from mlflow import MlflowClient
from ray_hosts import ENVIRONMENT, RayHosts
from test_run import config

from distmeta.config import Config
from distmeta.training.events import sentence
from distmeta.training.run_folder import RunFolder
from distmeta.training.stored import LOST

pytestmark = pytest.mark.slow

WITHIN_S = 10.0
TIMEOUT_S = 10  # train.collective_timeout_s
JOB = "announced"
WORKER, DRIVER = "ray::RayTrainWorker", "-m distmeta train"
PLACES = ("terminal", "job log", "events", "MLflow", "report")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if lacking := missing():
        pytest.skip(lacking)
    with Hosts(3) as hosts:
        yield hosts


class Watched:
    """The submitted run, as a person sees it in each of the five places."""

    def __init__(self, cluster: RayHosts, made: Config, terminal: Path, follower: "subprocess.Popen[bytes]") -> None:
        self.folder, self._terminal, self._follower = RunFolder(made.run_folder), terminal, follower
        self._log = cluster.node_folder(1) / "session_latest" / "logs" / f"job-driver-{JOB}.log"
        self._mlflow = MlflowClient(made.tracking.uri)

    def run(self) -> Any:
        return self._mlflow.get_run(self.folder.read_mlflow()["run_id"])

    def losses(self) -> list[dict[str, Any]]:
        return [event for event in self.folder.events.read() if event["kind"] in LOST]

    def shows(self, place: str) -> str:
        if place == "terminal":
            return self._terminal.read_text()
        if place == "job log":
            return self._log.read_text()
        if place == "events":
            return "\n".join(map(sentence, self.folder.events.read()))
        if place == "MLflow":
            return str(self.run().data.tags.get("last_lost_worker"))
        return html.unescape(self.folder.report.read_text()) if self.folder.report.exists() else ""

    def trains(self, starts: int) -> None:
        """Wait until workers have started so often, and have written a checkpoint since."""
        until = time.monotonic() + 300
        while sum(event["kind"] == "start" for event in self.folder.events.read()) < starts:
            assert self._follower.poll() is None, self._terminal.read_text()
            assert time.monotonic() < until, self._terminal.read_text()
            time.sleep(0.2)
        newest = self.folder.newest_checkpoint()
        step = int(newest.name.removeprefix("step-")) if newest else 0
        at_checkpoint(self.folder.path, step + 1, lambda: None).join(timeout=240)

    def arrivals(self, before: int) -> tuple[dict[str, Any], dict[str, float]]:
        """The loss after the first `before`, and when it could be read in each place, in seconds since 1970."""
        until = time.monotonic() + 90
        while len(self.losses()) <= before:
            assert time.monotonic() < until, "no loss was recorded"
            time.sleep(0.1)
        said, seen = sentence(self.losses()[before]), dict[str, float]()
        while len(seen) < len(PLACES) and time.monotonic() < until:
            seen |= {place: time.time() for place in PLACES if place not in seen and said in self.shows(place)}
            time.sleep(0.1)
        assert not set(PLACES) - seen.keys(), f"{said} is not in {set(PLACES) - seen.keys()}"
        return self.losses()[before], seen


def test_every_loss_is_named_alike_in_five_places_within_ten_seconds(
    hosts: Hosts, home: Path, packed: Path, short_folder: Path, small_memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One submitted run on two hosts suffers kill -9, a kill for lack of memory, a hang and a cut-off node; then its driver is killed."""
    made = config(home, packed, JOB, cpus_per_worker=1, checkpoint_every=5, max_failures=8, collective_timeout_s=TIMEOUT_S)
    made = made.model_copy(update={"outer": made.outer.model_copy(update={"steps": 1_000_000})})
    (home / "announced.yaml").write_text(made.to_yaml())
    cluster = RayHosts(hosts, short_folder, head_cpus=0, dashboard=True)

    def worker() -> Any:
        (found,) = cluster.processes(3, WORKER)
        return found

    faults: dict[str, Callable[[], None]] = {
        "died": lambda: worker().kill(),
        "out of memory": lambda: small_memory(worker().pid),
        "hung": lambda: worker().suspend(),
        "node lost": lambda: hosts.set(cut=[3]),
    }
    with (home / "terminal.txt").open("w") as out:
        submit = cluster.run("submit", "train", str(home / "announced.yaml"), "--address", cluster.dashboard, "--name", JOB)
        follower = subprocess.Popen(submit, stdout=out, stderr=out, env=ENVIRONMENT)
    watched = Watched(cluster, made, home / "terminal.txt", follower)
    rows = []
    for number, (kind, fault) in enumerate(faults.items()):
        watched.trains(number + 1)
        fault()
        began = time.time()
        event, seen = watched.arrivals(number)
        assert (event["kind"], event["node"]) == (kind, "host-3")
        later = {place: at - event["time"] for place, at in seen.items()}
        rows.append(f"{kind}: detected after {event['time'] - began:.1f} s; " + ", ".join(f"{p} {s:+.1f} s" for p, s in later.items()))
        assert max(later.values()) <= WITHIN_S, rows[-1]
    (driver,) = [process for process in cluster.processes(1, DRIVER) if "submit" not in process.cmdline()]
    driver.kill()
    began, until = time.time(), time.monotonic() + 60
    while watched.run().info.status != "KILLED":
        assert time.monotonic() < until, "MLflow still shows the killed driver's run as running"
        time.sleep(0.2)
    rows.append(f"driver killed: its MLflow run ended after {time.time() - began:.1f} s")
    assert watched.shows("events").endswith("ended: its driver was killed")
    assert follower.wait(timeout=120) != 0
    with capsys.disabled():
        print("", *rows, sep="\n")
