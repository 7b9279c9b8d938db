"""What workers tell Ray's metrics: the figures, their labels, and that every panel of the dashboard shows them, over a real Prometheus."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import torch
from conftest import free_port
from http_server import serve
from test_run import config

from distmeta.data.cache import ShardCache
from distmeta.data.shards import Dataset
from distmeta.data.traffic import TRAFFIC
from distmeta.scale import metrics
from distmeta.scale.metrics import COUNTERS, GAUGES, WorkerMetrics
from distmeta.scale.node_use import NodeUse
from distmeta.training.devices import device_of
from distmeta.training.labels import labels, title
from distmeta.training.run_folder import RunFolder

CLUSTER = Path(__file__).parent.parent / "cluster"
DASHBOARD = json.loads((CLUSTER / "grafana" / "distmeta.json").read_text())
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = set(re.findall(r"ray_distmeta_\w+", " ".join(expression for _, expression in EXPRESSIONS)))
    assert shown == {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


def test_a_run_and_its_trial_are_named_as_their_folders_say() -> None:
    sweep = RunFolder("/runs/wide")
    assert (labels(sweep), title(sweep)) == (("wide", ""), "wide")
    assert (labels(sweep.trial(12)), title(sweep.trial(12))) == (("wide", "12"), "wide trial 12")
    assert labels(sweep.of_seed(3)) == ("wide/seed-3", "")
    assert labels(sweep.retrained(1, 500)) == ("wide/trial-001-500-steps", "")
    assert labels(sweep.compared(1).of_seed(0)) == ("wide/trial-001/seed-0", "")
    assert labels(RunFolder("s3://bucket/seeds/mine")) == ("mine", "")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """What Ray was told: (name, values of its labels) → a counter's sum, a gauge's last value."""
    held: dict[tuple[str, ...], float] = defaultdict(float)

    class Fake:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name, self._keys = name, tag_keys
            assert description

        def set_default_tags(self, tags: dict[str, str]) -> "Fake":
            self._tags = tags
            return self

        def _key(self, tags: dict[str, str] | None) -> tuple[str, ...]:
            given = self._tags | (tags or {})
            assert set(given) == set(self._keys), "Ray wants a value for every label"
            return (self._name, *(given[key] for key in self._keys))

        def inc(self, amount: float, tags: dict[str, str] | None) -> None:
            assert amount > 0, "Ray refuses others"
            held[self._key(tags)] += amount

        def set(self, value: float, tags: dict[str, str] | None) -> None:
            held[self._key(tags)] = value

    monkeypatch.setattr(metrics, "Counter", Fake)
    monkeypatch.setattr(metrics, "Gauge", Fake)
    return held


CPU = torch.device("cpu")


def test_counts_add_up_over_steps_and_levels_are_the_last(told: dict[tuple[str, ...], float], dataset: Dataset) -> None:
    watched = WorkerMetrics(RunFolder("/runs/wide/trials/trial-004"), 0, device_of(CPU), episodes=3)
    watched.begin(planned_steps=40, restarts=2)
    before = TRAFFIC.so_far()
    for step in range(1, 6):
        watched.add({"step": step, "meta_loss": 1 / step, "time/adapt": 0.5, "time/data": 0.25})
    dataset.fetch(dataset.shards("train")[0])
    watched.add({"step": 6, "bad_slot": 1, "validation": {"score": 0.75}})
    watched.tell()
    of = {key: value for key, value in told.items() if key[1:4] == ("wide", "4", "0")}
    assert of == told
    expected = {"steps": 6, "episodes": 18, "last_step": 6, "planned_steps": 40, "restarts": 2, "meta_loss": 0.2}
    expected |= {"validation_score": 0.75, "skipped_steps": 1}
    assert {name: told[f"distmeta_{name}", "wide", "4", "0"] for name in expected} == expected
    assert told["distmeta_step_seconds", "wide", "4", "0", "adapt"] == 2.5
    assert told["distmeta_step_seconds", "wide", "4", "0", "data"] == 1.25
    assert told["distmeta_shards", "wide", "4", "0", "local"] == before["shards_local"] + 1
    assert told["distmeta_memory_bytes", "wide", "4", "0", "cpu"] > 1e6


def test_other_ranks_tell_only_what_is_their_own(told: dict[tuple[str, ...], float]) -> None:
    watched = WorkerMetrics(RunFolder("/runs/wide"), 1, device_of(CPU), episodes=3)
    watched.add({"step": 1, "meta_loss": 2.0, "validation": {"score": 0.5}})
    watched.tell()
    names = {key[0] for key in told}
    assert names >= {"distmeta_steps", "distmeta_episodes", "distmeta_memory_bytes", "distmeta_bad_images"}
    assert not names & {"distmeta_meta_loss", "distmeta_validation_score", "distmeta_last_step"}


def test_shards_are_counted_by_where_they_came_from(packed: Path, tmp_path: Path) -> None:
    with serve(packed) as server:
        for kind in ("shards_download", "shards_cache"):
            dataset = Dataset(server.url, cache=ShardCache(tmp_path, 1 << 30))
            info, before = dataset.shards("train")[0], TRAFFIC.so_far()
            dataset.fetch(info)
            counted = TRAFFIC.so_far() - before
            assert {name: counted[name] for name in counted if name.startswith("shards")} == {kind: 1}
            assert counted["downloaded_bytes"] == (info.bytes if kind == "shards_download" else 0)


def test_a_node_is_sampled_now_and_then_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    use = NodeUse(CPU)
    assert use.sample() == {}, "one was taken just now"
    monkeypatch.setattr("distmeta.scale.node_use._EVERY_S", -1.0)
    sample = use.sample()
    theirs: set[str] = set()
    for monitor in (CPUMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    assert sample.pop("sampled_at") > 1e9
    assert set(sample) <= theirs
    assert all(value >= 0 for value in sample.values())


@pytest.fixture
def prometheus() -> str:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("there is no program `prometheus` here")
    return found


class Head(NamedTuple):
    """A Ray cluster's address, its dashboard's port, and its temporary folder, where it lists its nodes for Prometheus."""

    address: str
    dashboard: int
    folder: Path


@pytest.fixture
def head(short_folder: Path) -> Iterator[Head]:
    from ray.cluster_utils import Cluster

    ports = {"dashboard_port": free_port(), "metrics_export_port": free_port()}
    quick = {"_system_config": {"metrics_report_interval_ms": 1000}}
    node = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": True, "temp_dir": str(short_folder)}
    cluster = Cluster(initialize_head=True, head_node_args=node | ports | quick)
    yield Head(cluster.address, ports["dashboard_port"], short_folder)
    cluster.shutdown()


def read(port: int, path: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as page:
        return json.load(page)["data"]


def answer(port: int, expression: str) -> list[dict[str, Any]]:
    """What Prometheus computes for an expression now."""
    expression = expression.replace("$__rate_interval", "30s").replace("$run", ".*").replace("$trial", ".*")
    result: list[dict[str, Any]] = read(port, f"/api/v1/query?{urlencode({'query': expression})}")["result"]
    return result


@pytest.mark.slow
def test_every_panel_shows_data_while_a_run_trains(prometheus: str, head: Head, home: Path, packed: Path, tmp_path: Path) -> None:
    made = config(home, packed, "watched", checkpoint_every=50, validate_every=50)
    endless = made.model_copy(update={"outer": made.outer.model_copy(update={"steps": 1_000_000})})
    (home / "watched.yaml").write_text(endless.to_yaml())
    settings = (CLUSTER / "prometheus" / "prometheus.yml").read_text()
    assert "/tmp/ray/" in settings
    (tmp_path / "prometheus.yml").write_text(settings.replace("/tmp/ray/", f"{head.folder}/").replace("10s", "1s"))
    port = free_port()
    options = {
        "config.file": tmp_path / "prometheus.yml",
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([prometheus, *(f"--{name}={value}" for name, value in options.items())], stdout=log, stderr=log)
        command = [sys.executable, "-m", "distmeta", "train", str(home / "watched.yaml"), "--address", head.address]
        train = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        empty, until = EXPRESSIONS, time.monotonic() + 240
        while empty:
            assert train.poll() is None, train.communicate()[0]
            assert time.monotonic() < until, f"no data: {empty}"
            time.sleep(1)
            if server_answers(port):
                empty = [(panel, expression) for panel, expression in empty if not answer(port, expression)]
        (loss,) = answer(port, "ray_distmeta_meta_loss")
        assert (loss["metric"]["run"], loss["metric"].get("trial", ""), loss["metric"]["rank"]) == ("watched", "", "0")
        steps = {series["metric"]["rank"] for series in answer(port, "ray_distmeta_steps_total")}
        assert steps == {"0", "1"}
        actors = {actor["reprName"] for actor in read(head.dashboard, "/logical/actors")["actors"].values()}
        assert actors >= {"watched worker", "watched board"}
    finally:
        train.send_signal(signal.SIGTERM)
        train.communicate(timeout=120)
        server.terminate()
        server.wait()


def server_answers(port: int) -> bool:
    try:
        urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
    except OSError:
        return False
    return True
