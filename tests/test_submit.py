"""Jobs: what is shipped and what is not, an address that does not answer, and a real job's log and exit code."""

import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from ray.cluster_utils import Cluster

from distmeta.config import Config, validate
from distmeta.errors import ClusterError, ConfigError, Stopped
from distmeta.scale import job
from distmeta.scale.submit import CONFIG, check_reachable, client, follow, list_jobs, logs, pack_job, stop, submit


def config(**changes: Any) -> Config:
    return validate({"run_folder": "/shared/run", "data": {"shards": "s3://bucket/omniglot"}} | changes, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"run_folder": "runs/x"},
            r"run_folder=runs/x is relative: in a job it would lie in a folder that goes with the job\ngive an absolute",
        ),
        ({"data": {"shards": "data/omniglot"}}, "data.shards=data/omniglot is relative"),
    ],
)
def test_what_a_job_would_lose_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_reachable(config(**changes))
    check_reachable(config())


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
    assert set(json.loads((folder / job.VERSIONS).read_text())) == set(job.COMPARED)
    assert not any(b"hunter2" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_data_and_large_files_are_never_shipped(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a packed dataset; data is read from where it lies"):
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
    with pytest.raises(ConfigError, match="is no dashboard's address"):
        client("head:8265")


def test_versions_that_differ_are_named() -> None:
    here = {name: job.found(name) or "" for name in job.COMPARED}
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
    assert "distmeta: /nowhere/shards is no packed dataset" in out.getvalue()
    assert "/nowhere/shards is no packed dataset" in logs(dashboard, first)
    with pytest.raises(ClusterError, match=r"there is a job first at .* already"):
        submit(dashboard, ["train", CONFIG], config(), [], "first")
    second = submit(dashboard, ["train", CONFIG], config(), [], "second")
    stop(dashboard, second)
    with pytest.raises(Stopped, match="job second was stopped"):
        follow(dashboard, second, io.StringIO(), lambda: False)
    assert {row["id"]: row["status"] for row in list_jobs(dashboard)} == {"first": "FAILED", "second": "STOPPED"}
    with pytest.raises(ClusterError, match="there is no job third"):
        logs(dashboard, "third")
