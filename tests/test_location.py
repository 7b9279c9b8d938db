"""Reading a dataset from afar: passing errors are outlived, lasting ones named at once, and nothing waits without end."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from http_server import Served, serve

from distmeta.assembly.build import fetch_weights
from distmeta.data.episodes import Task
from distmeta.data.location import Location, Reading, may_pass
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DataError

READING = Reading(timeout_s=5, attempts=3)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.data.location._LONGEST_WAIT_S", 0)


@pytest.fixture
def served(packed: Path) -> Iterator[Served]:
    with serve(packed) as server:
        yield server


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "truncate", "cut"])
def test_passing_errors_are_outlived(served: Served, dataset: Dataset, fault: int | str) -> None:
    info = dataset.manifest.shards[0]
    served.faults[info.name] = [fault, fault]
    assert Dataset(served.url, READING).fetch(info).content[:] == dataset.fetch(info).content[:]
    assert served.requests[info.name] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, r"cannot be read: 500, .*"),
        ("reset", r"cannot be read: .*"),
        ("truncate", r"cannot be read: .*"),
        ("cut", r"has \d+ bytes; the manifest says \d+"),
    ],
)
def test_errors_that_do_not_pass_name_shard_and_attempts(served: Served, dataset: Dataset, fault: int | str, reason: str) -> None:
    info = dataset.manifest.shards[0]
    served.faults[info.name] = [fault] * 9
    with pytest.raises(DataError, match=rf"{info.name} {reason} \(3 attempts\)\n"):
        Dataset(served.url, READING).fetch(info)
    assert served.requests[info.name] == (6 if fault == "reset" else 3)  # aiohttp itself tries twice when a kept connection breaks


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (404, r"^init_from=.*/w.pt does not exist\n"),
        (403, r"/w.pt cannot be read: 403"),
        (500, r"/w.pt cannot be read: 500, .* \(3 attempts\)\n"),
        ("reset", r"/w.pt cannot be read: (?!.*does not exist).* \(3 attempts\)\n"),
    ],
)
def test_a_file_of_weights_that_cannot_be_had_is_named_with_the_reason(tmp_path: Path, fault: int | str, message: str) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    with serve(tmp_path) as server:
        server.faults["w.pt"] = [fault] * 20
        with pytest.raises(DataError, match=message):
            fetch_weights(f"{server.url}/w.pt", tmp_path, READING)


def test_a_folder_is_not_a_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory\ngive the path or URL of a file of weights"):
        fetch_weights(str(tmp_path), tmp_path, READING)


@pytest.mark.parametrize(("fault", "message"), [(404, "is missing"), (403, "cannot be read: 403"), ("flip", "does not match its SHA-256")])
def test_lasting_errors_are_not_tried_again(served: Served, dataset: Dataset, fault: int | str, message: str) -> None:
    info = dataset.manifest.shards[0]
    served.faults[info.name] = [fault] * 9
    with pytest.raises(DataError, match=f"{info.name} {message}"):
        Dataset(served.url, READING).fetch(info)
    assert served.requests[info.name] == 1


def test_a_stalled_connection_is_cut(served: Served, dataset: Dataset) -> None:
    info = dataset.manifest.shards[0]
    remote = Dataset(served.url, Reading(timeout_s=1.5, attempts=2))
    served.faults[info.name] = ["stall"]
    assert remote.fetch(info).content[:] == dataset.fetch(info).content[:]
    served.faults[info.name] = ["stall"] * 9
    with pytest.raises(DataError, match=rf"{info.name} cannot be read: no answer within 1.5 s \(2 attempts\)"):
        remote.fetch(info)


def test_a_stalled_manifest_and_one_that_is_not_there(served: Served) -> None:
    served.faults["manifest.json"] = ["stall"] * 9
    with pytest.raises(DataError, match=r"manifest.json cannot be read: no answer"):
        Dataset(served.url, Reading(timeout_s=0.2, attempts=1))
    served.faults["manifest.json"] = [404]
    with pytest.raises(DataError, match="is not a packed dataset"):
        Dataset(served.url, READING)


def test_nobody_listens() -> None:
    with pytest.raises(DataError, match=r"manifest.json cannot be read: .*2 attempts"):
        Dataset("http://127.0.0.1:9", Reading(timeout_s=1, attempts=2))


def test_a_failing_shard_ends_the_stream_with_its_name(served: Served, dataset: Dataset) -> None:
    for info in dataset.shards("train"):
        served.faults[info.name] = [500] * 9
    stream = EpisodeStream(Dataset(served.url, READING), "train", Task(3, 1, 2), 0)
    with pytest.raises(DataError, match=r"train-00000\d.tar cannot be read: 500"):
        next(stream.training([0]))


def test_a_stream_outlives_passing_errors_with_the_same_episodes(served: Served, dataset: Dataset) -> None:
    for info in dataset.shards("train"):
        served.faults[info.name] = [500, "truncate"]
    remote = EpisodeStream(Dataset(served.url, READING), "train", Task(3, 1, 2), 0).training([0, 1])
    local = EpisodeStream(dataset, "train", Task(3, 1, 2), 0).training([0, 1])
    for _ in range(10):
        assert next(remote).support_images.equal(next(local).support_images)


def test_the_manifest_of_another_dataset(dataset: Dataset, packed: Path, tmp_path: Path) -> None:
    """Shards beside a manifest that is not theirs are refused one by one: names agree, SHA-256 do not."""
    for info in dataset.manifest.shards:
        (tmp_path / info.name).write_bytes(bytes(info.bytes))
    (tmp_path / "manifest.json").write_bytes((packed / "manifest.json").read_bytes())
    with pytest.raises(DataError, match="does not match its SHA-256"):
        Dataset(str(tmp_path)).fetch(dataset.manifest.shards[0])


def test_a_shell_command_is_a_location(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    piped = Dataset(f"pipe:cat {packed}/{{name}}", READING)
    info = piped.manifest.shards[0]
    assert piped.manifest == dataset.manifest
    assert piped.fetch(info).content[:] == dataset.fetch(info).content[:]
    assert piped.size(info) == info.bytes
    with pytest.raises(DataError, match="does not say which file"):
        Dataset(f"pipe:cat {packed}/manifest.json")


def test_pipe_failures(packed: Path) -> None:
    with pytest.raises(DataError, match=r"the command ended with status 3: last words \(2 attempts\)"):
        Dataset("pipe:echo first >&2; echo last words >&2; exit 3 # {name}", Reading(attempts=2))
    with pytest.raises(DataError, match="cannot be read: Expecting value"):
        Dataset("pipe:echo no JSON; # {name}", READING)
    counter = f"pipe:test -e {packed}/../second || {{ touch {packed}/../second; exit 1; }}; cat {packed}/{{name}}"
    assert Dataset(counter, READING).manifest.shards


def test_a_pipe_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(DataError, match=r"no answer within 3 s"):
        Dataset(f"pipe:sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' | cat # {{name}}", Reading(timeout_s=3, attempts=1))
    assert time.monotonic() - before < 60
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):  # a killed child may take a moment to be reaped
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("the command's child still runs")


def test_a_url_whose_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs://bucket/data cannot be read: .*\npip install 'gcsfs'"):
        Dataset("gs://bucket/data")
    with pytest.raises(DataError, match=r"nosuch://x cannot be read: .*\ngive a folder"):
        Dataset("nosuch://x")


def test_s3_with_credentials_from_the_environment(packed: Path, dataset: Dataset, bucket: Any) -> None:
    for path in packed.iterdir():
        bucket.put_object(Bucket="bucket", Key=f"data/{path.name}", Body=path.read_bytes())
    remote = Dataset("s3://bucket/data", READING)
    local = EpisodeStream(dataset, "train", Task(3, 1, 2), 0).training([0])
    assert next(EpisodeStream(remote, "train", Task(3, 1, 2), 0).training([0])).query_images.equal(next(local).query_images)
    assert remote.size(remote.manifest.shards[0]) == dataset.manifest.shards[0].bytes
    with pytest.raises(DataError, match="s3://bucket/none is not a packed dataset"):
        Dataset("s3://bucket/none", READING)
    bucket.delete_object(Bucket="bucket", Key=f"data/{remote.manifest.shards[0].name}")
    with pytest.raises(DataError, match="is missing"):
        remote.fetch(remote.manifest.shards[0])


def test_s3_without_credentials_or_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"s3://bucket/data/manifest.json cannot be read"):
        Dataset("s3://bucket/data", Reading(timeout_s=1, attempts=2))
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_may_pass() -> None:
    class Answer(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    assert [status for status in (400, 401, 403, 404, 408, 410, 429, 500, 502, 503, 504) if may_pass(Answer(status))] == [
        *(408, 429, 500, 502, 503, 504)
    ]
    assert may_pass(TimeoutError())
    assert may_pass(ConnectionResetError())
    assert not may_pass(FileNotFoundError())
    assert not may_pass(PermissionError())
    assert not may_pass(ValueError())


def test_local_paths_are_not_urls(packed: Path) -> None:
    assert Location(str(packed), READING).local("x") == packed / "x"
    assert Location(f"file://{packed}", READING).local("x") == packed / "x"
    assert Location("http://127.0.0.1/x/", READING).local("x") is None
