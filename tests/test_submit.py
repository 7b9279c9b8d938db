"""Jobs: what is shipped and what is not, an address that does not answer, and a real job's log and exit code."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import free_port
from ray.cluster_utils import Cluster
from ray.dashboard.modules.version import CURRENT_VERSION

from distmeta.cli import cluster
from distmeta.config import Config, locations, validate
from distmeta.errors import ClusterError, ConfigError, Stopped
from distmeta.registry.source import source_tags
from distmeta.scale import job
from distmeta.scale import submit as there
from distmeta.scale.shipment import pack_job
from distmeta.scale.submit import check_locations, client, follow, list_jobs, logs, run_folder_of, stop, submit
from distmeta.training.run_folder import CONFIG


def config(**changes: Any) -> Config:
    return validate({"run_folder": "/shared/run", "data": {"shards": "s3://bucket/omniglot"}} | changes, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"run_folder": "runs/x"},
            r"run_folder=runs/x is relative: in a job it would be in a folder that is removed with the job\ngive an absolute",
        ),
        ({"data": {"shards": "data/omniglot"}}, "data.shards=data/omniglot is relative"),
        ({"data": {"shards": "s3://b/omniglot", "cache": {"folder": "cache"}}}, "data.cache.folder=cache is relative"),
        ({"tracking": {"uri": "sqlite:///mlflow.db"}}, "tracking.uri=sqlite:///mlflow.db is relative"),
        ({"tracking": {"uri": "mlruns"}}, "tracking.uri=mlruns is relative"),
    ],
)
def test_what_a_job_would_lose_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_locations(locations(config(**changes)))
    for uri in ("http://mlflow:5000", "sqlite:////shared/mlflow.db", "file:///shared/mlruns", "/shared/mlruns", "postgresql://db/mlflow"):
        check_locations(locations(config(tracking={"uri": uri})))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "/shared/images", "--dataset", "folder", "--out", "packed"], "--out=packed is relative"),
        (["pack", "images", "--dataset", "folder", "--out", "/shared/packed"], "SOURCE=images is relative"),
        (["pack", "--dataset", "mini-imagenet", "/shared/images", "--splits", "csv", "--out", "/shared/x"], "--splits=csv is relative"),
        (["pack", "--include", "csv", "--dataset", "folder", "/shared/images", "--out", "csv/x"], "--out=csv/x is relative"),
        (["evaluate", "data/omniglot", "--model", "models:/m/1"], "SHARDS=data/omniglot is relative"),
        (
            ["evaluate", "/shared/omniglot", "--model", "models:/m/1", "--tracking-uri", "sqlite:///m.db"],
            "--tracking-uri=sqlite:///m.db is",
        ),
        (["pack", "/shared/images", "--dataset", "folder"], "Missing option '--out'"),
    ],
)
def test_every_location_of_a_verb_is_checked_before_anything_is_sent(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    run = [sys.executable, "-m", "distmeta", "submit", *arguments, "--address", "http://127.0.0.1:9"]
    refused = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_what_is_shipped_may_be_read_by_its_name(tmp_path: Path) -> None:
    check_locations({"--splits": "csv/5way", "SOURCE": "s3://images"}, [tmp_path / "csv"])


class _Head(BaseHTTPRequestHandler):
    """Answers as a dashboard does when a client connects."""

    def do_GET(self) -> None:
        answer = {"version": CURRENT_VERSION, "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_address_that_is_given_comes_before_the_environments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Head) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert client(address).get_address() == address
        assert os.environ[name] == "http://127.0.0.1:9"
        server.shutdown()


class _Jobs(_Head):
    """Answers as a head does that knows these jobs."""

    def do_GET(self) -> None:
        if not self.path.startswith("/api/jobs"):
            super().do_GET()
            return
        ours = {"verb": "train", "run_folder": "s3://b/r", "who": "ada@lab", "distmeta": "0.1.0"}
        jobs = [
            {
                "submission_id": "old",
                "start_time": 1_700_000_000_000,
                "end_time": 1_700_000_065_000,
                "metadata": ours,
                "status": "SUCCEEDED",
            },
            {"submission_id": "other", "start_time": int(1.8e12), "status": "RUNNING"},
            {"submission_id": "new", "status": "PENDING", "metadata": ours},
            {"job_id": "01000000", "type": "DRIVER", "status": "RUNNING"},
        ]
        text = json.dumps([{"type": "SUBMISSION", "entrypoint": "python -m x"} | job for job in jobs]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text)


def test_jobs_are_listed_with_verb_run_folder_start_duration_and_who(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setenv("COLUMNS", "200")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Jobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        rows = list_jobs(address)
        cluster.jobs("list", None, address)
        server.shutdown()
    assert [row["id"] for row in rows] == ["new", "other", "old"]
    assert rows[2] == {
        "id": "old",
        "status": "SUCCEEDED",
        "verb": "train",
        "run_folder": "s3://b/r",
        "began": 1.7e9,
        "ended": 1.7e9 + 65,
        "who": "ada@lab",
        "command": "python -m x",
    }
    table = capsys.readouterr().out
    assert re.search(r"old +│ SUCCEEDED +│ train +│ s3://b/r +│ 2023-11-14 22:13 +│ 0:01:05 +│ ada@lab", table)
    assert re.search(r"other +│ RUNNING +│ python -m x", table)
    assert re.search(r"new +│ PENDING +│ train +│ s3://b/r +│ +│ +│ ada@lab", table)


def test_a_job_says_what_it_is_and_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    places = {"run_folder": "/shared/runs/1", "--out": "/elsewhere"}
    metadata = there._metadata("train", places)
    assert (metadata["verb"], metadata["run_folder"]) == ("train", "/shared/runs/1")
    assert metadata["who"].endswith(f"@{socket.gethostname()}")
    monkeypatch.setattr(there, "getuser", nobody)
    assert there._metadata("pack", {"--out": "/elsewhere"})["run_folder"] == "/elsewhere"
    assert there._metadata("pack", {})["who"] == f"{os.getuid()}@{socket.gethostname()}"


class _Guarded(_Head):
    """Answers as a dashboard does that wants a token."""

    def do_GET(self) -> None:
        self.send_error(401, "Unauthorized")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "-a", "é", "a\n", "x" * 101])
def test_a_name_that_urls_and_files_cannot_hold_is_refused_before_anything_is_asked(name: str) -> None:
    """Ray takes it; the job then fails without a log, and cannot be stopped or removed."""
    with pytest.raises(ConfigError, match="cannot be a job's id"):
        submit("http://127.0.0.1:9", ["train"], config(), [], name)


class _Unaware(_Head):
    """Answers as a head does that knows no job, also when a log is to be followed."""

    def do_GET(self) -> None:
        if self.path == "/api/version":
            super().do_GET()
        else:
            self.send_error(404, "Job x does not exist")


def test_following_a_job_that_there_is_not_ends_in_a_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    failed: list[Any] = []
    previous, threading.excepthook = threading.excepthook, failed.append
    try:
        with ThreadingHTTPServer(("127.0.0.1", 0), _Unaware) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(ClusterError, match="there is no job x"):
                follow(f"http://127.0.0.1:{server.server_port}", "x", io.StringIO(), lambda: False)
            there._copy_log(client(f"http://127.0.0.1:{server.server_port}"), "x", io.StringIO())
            server.shutdown()
    finally:
        threading.excepthook = previous
    assert failed == []


def test_a_forgotten_token_is_named() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(
            ClusterError, match=r"the Ray cluster at http://127.0.0.1:\d+ wants its token\nset RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ):
            list_jobs(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_proxy_that_stands_before_the_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ClusterError, match=r"\nhttp_proxy=http://127.0.0.1:9 was asked for it; set no_proxy=head if") as refused:
        client("http://head:8265")
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    with pytest.raises(ClusterError, match="is the head running"):
        client("http://127.0.0.1:9")


def test_a_job_without_an_mlflow_of_its_own_needs_that_of_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI is not set on the cluster's nodes" in (job.tracking_fault() or "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "MLFLOW_TRACKING_URI=sqlite:///mlflow.db on the cluster's nodes is relative" in (job.tracking_fault() or "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    assert job.tracking_fault() is None


@pytest.mark.parametrize(
    ("arguments", "changes", "place"),
    [
        ([], {"tracking": {"uri": "https://me:hunter2@mlflow"}}, "tracking.uri"),
        ([], {"data": {"shards": "http://me:hunter2@host/omniglot"}}, "data.shards"),
        ([], {"data": {"shards": "pipe:curl -u me:hunter2 https://host/{name}"}}, "data.shards"),
        (["evaluate", "http://me:hunter2@host/omniglot"], {}, "http://host/omniglot"),
        (["evaluate", "x", "--tracking-uri", "https://host?token=hunter2"], {}, "https://host"),
    ],
)
def test_a_secret_in_a_job_is_refused_before_anything_is_asked(arguments: list[str], changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=rf"{place}.* holds a secret, which a job would show") as refused:
        submit("http://127.0.0.1:9", arguments or ["train"], config(**changes), [])
    assert "hunter2" not in str(refused.value)


def test_the_package_travels_with_its_metadata_and_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "net.py").write_text("width = 3")
    folder = tmp_path / "job"
    folder.mkdir()
    pack_job(folder, config(), [mine])
    assert (folder / "mine" / "net.py").read_text() == "width = 3"
    assert validate(__import__("yaml").safe_load((folder / CONFIG).read_text()), "test") == config()
    assert (folder / "distmeta" / "scale" / "job.py").exists()
    assert list(folder.glob("distmeta-*.dist-info/METADATA")), "importlib.metadata would not find distmeta"
    facts = json.loads((folder / job.FACTS).read_text())
    assert set(facts["versions"]) == set(job.COMPARED)
    assert facts["source"] == source_tags()
    assert not any(b"hunter2" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_an_installed_wheel_travels_as_it_was_built(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "job"
    for made in (site, folder):
        made.mkdir()
    pack_job(site, None, [])
    built = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    record = next(site.glob("distmeta-*.dist-info/RECORD"))
    noted = [f"{record.parent.name}/direct_url.json", "distmeta/__pycache__/cli.pyc", "../../bin/distmeta"]  # as pip does
    for name in noted[:2]:
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text("of this machine")
    record.write_text(record.read_text() + "".join(f"{name},,\n" for name in noted))
    code = f"from pathlib import Path; from distmeta.scale.shipment import pack_job; pack_job(Path({str(folder)!r}), None, [])"
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == built
    assert (folder / "distmeta/scale/job.py").read_bytes() == (site / "distmeta/scale/job.py").read_bytes()


def test_data_and_large_files_are_never_shipped(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a packed dataset; data is read from its location"):
        pack_job(tmp_path, None, [packed.parent])
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    small.write_bytes(b"x" * 2_000_000)
    with large.open("wb") as file:
        file.truncate(110_000_000)
    with pytest.raises(ConfigError, match=r"more than 105 MB: .*large.bin 110 MB, .*small.bin 2 MB"):
        pack_job(tmp_path / "job", None, [small, large])
    with pytest.raises(ConfigError, match=r"absent does not exist"):
        pack_job(tmp_path / "job", None, [tmp_path / "absent"])


def test_an_address_that_does_not_answer_is_told_within_ten_seconds() -> None:
    with socket.socket() as listening:  # takes connections, never answers
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        for port in (1, listening.getsockname()[1]):
            began = time.monotonic()
            with pytest.raises(ClusterError, match=rf"no Ray cluster answers at http://127.0.0.1:{port}.*\nis the head running"):
                client(f"http://127.0.0.1:{port}")
            assert time.monotonic() - began < 10
    with pytest.raises(ConfigError, match="is not a dashboard's address"):
        client("head:8265")


def test_versions_that_differ_are_named() -> None:
    here = {name: job.installed(name) or "" for name in job.COMPARED}
    assert job.differences(here) == []
    assert job.differences(here | {"torch": "1.0"}) == [f"torch 1.0 → {here['torch']}"]
    assert job.missing() == []


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    binaries = Path(__import__("sys").executable).parent
    previous = os.environ["PATH"]
    os.environ["PATH"] = f"{binaries}:{previous}"  # a job's `python`
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    head = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": True, **ports}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["PATH"] = previous
    yield f"http://{cluster.head_node.webui_url}"
    cluster.shutdown()


@pytest.mark.slow
def test_a_job_runs_what_was_shipped_and_ends_with_its_exit_code(dashboard: str, tmp_path: Path) -> None:
    """One job that the verb refuses, by its own words; a name in use; one that is stopped."""
    out = io.StringIO()
    first = submit(dashboard, ["train", CONFIG], config(data={"shards": "/nowhere/shards"}), [], "first")
    assert follow(dashboard, first, out, lambda: False) == 1
    assert "distmeta: /nowhere/shards is not a packed dataset" in out.getvalue()
    assert "/nowhere/shards is not a packed dataset" in logs(dashboard, first)
    with pytest.raises(ClusterError, match=r"there is a job first at .* already"):
        submit(dashboard, ["train", CONFIG], config(), [], "first")
    second = submit(dashboard, ["train", CONFIG], config(), [], "second")
    stop(dashboard, second)
    with pytest.raises(Stopped, match="job second was stopped"):
        follow(dashboard, second, io.StringIO(), lambda: False)
    assert {row["id"]: row["status"] for row in list_jobs(dashboard)} == {"first": "FAILED", "second": "STOPPED"}
    assert run_folder_of(dashboard, "first") == config().run_folder
    with pytest.raises(ClusterError, match="there is no job third"):
        run_folder_of(dashboard, "third")
    with pytest.raises(ClusterError, match="there is no job third"):
        logs(dashboard, "third")
