"""The cache that workers of a node share: each shard downloaded once, the limit kept, nothing in use removed, and no trouble of its own."""

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import Served, serve

from distmeta.data.cache import OWN_FOLDER, ShardCache, StoredBytes
from distmeta.data.location import Location, Reading
from distmeta.data.shards import Dataset
from distmeta.errors import DataError

LIMIT = 1 << 30


@pytest.fixture
def served(packed: Path) -> Iterator[Served]:
    with serve(packed, latency_s=0.05) as server:
        yield server


def shards(folder: Path) -> set[str]:
    return {path.name for path in (folder / OWN_FOLDER).iterdir() if path.suffix not in (".lock", ".part", ".TAG")}


def sha(letter: str) -> str:
    """What stands for the SHA-256 of a file."""
    return letter * 64


READER = """
import sys, time
from pathlib import Path
from distmeta.data.cache import ShardCache

def download(to):
    with open(sys.argv[2], "a") as log:
        log.write(to.name[0])
    for part in range(10):
        with to.open("ab") as file:
            file.write(bytes(10))
        time.sleep(0.01)

cache = ShardCache(Path(sys.argv[1]), 300)
for name in "abcabc":
    assert cache.get(name * 64, 100, download, check=lambda content: len(content) == 100)[:] == bytes(100)
"""


def test_processes_that_read_at_once_download_each_shard_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", READER, str(tmp_path / "cache"), str(tmp_path / "downloads")]
    readers = [subprocess.Popen(command) for _ in range(3)]
    assert [reader.wait() for reader in readers] == [0, 0, 0]
    assert sorted((tmp_path / "downloads").read_text()) == ["a", "b", "c"]


def test_a_second_reader_asks_the_server_for_nothing(served: Served, dataset: Dataset, tmp_path: Path) -> None:
    for _ in range(2):
        remote = Dataset(served.url, cache=ShardCache(tmp_path, LIMIT))
        assert all(remote.fetch(info).content[:] == dataset.fetch(info).content[:] for info in dataset.manifest.shards)
    assert {served.requests[info.name] for info in dataset.manifest.shards} == {1}
    assert shards(tmp_path) == {info.sha256 for info in dataset.manifest.shards}


def stored(cache: ShardCache, name: str, size: int = 100) -> StoredBytes | None:
    return cache.get(sha(name), size, download=lambda to: to.write_bytes(bytes(size)) and None, check=lambda content: len(content) == size)


def test_the_one_used_least_recently_goes_and_none_in_use(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 300)
    in_use = stored(cache, "a")
    for name in "bca":  # each in use only while it is asked for
        stored(cache, name)
        time.sleep(0.01)
    stored(cache, "b")
    assert stored(cache, "d") is not None
    assert shards(tmp_path) == set(map(sha, "abd"))
    held = [stored(cache, name) for name in "bd"]
    assert stored(cache, "e") is None, "all are in use"
    assert shards(tmp_path) == set(map(sha, "abd"))
    del in_use
    assert stored(cache, "e") is not None
    assert shards(tmp_path) == set(map(sha, "bde"))
    assert all(content is not None and content[:] == bytes(100) for content in held)


def test_what_a_killed_download_left_is_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 200)
    assert stored(cache, "a") is not None
    for name in "bd":
        (tmp_path / OWN_FOLDER / f"{sha(name)}.100.part").write_bytes(b"half")
    assert stored(cache, "b") is not None
    assert stored(cache, "c") is not None
    assert shards(tmp_path) == set(map(sha, "bc"))
    assert not list(tmp_path.rglob("*.part"))


def test_nothing_of_anybody_else_is_counted_or_removed(tmp_path: Path) -> None:
    theirs = {tmp_path / name: b"x" * 400 for name in ("thesis.doc", sha("f"), f"{sha('e')}.9.part", "a.lock")}
    for path, content in theirs.items():
        path.write_bytes(content)
    (tmp_path / "photos").mkdir()
    cache = ShardCache(tmp_path, 200)
    for name in "abcd":
        assert stored(cache, name) is not None
    assert len(shards(tmp_path)) == 2
    inside = tmp_path / OWN_FOLDER / "letter.txt"
    inside.write_bytes(b"x" * 400)
    assert stored(cache, "e") is not None
    assert inside.exists()
    assert all(path.read_bytes() == content for path, content in theirs.items())
    assert (tmp_path / "photos").is_dir()


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / OWN_FOLDER).mkdir()
    (tmp_path / OWN_FOLDER / "letter.txt").write_text("dear")
    with pytest.raises(OSError, match=r"holds files but no CACHEDIR\.TAG, so it is not a cache of distmeta"):
        stored(ShardCache(tmp_path, 200), "a")
    assert [path.name for path in (tmp_path / OWN_FOLDER).iterdir()] == ["letter.txt"]


def test_a_damaged_file_is_downloaded_again(served: Served, dataset: Dataset, tmp_path: Path) -> None:
    info = dataset.manifest.shards[0]
    Dataset(served.url, cache=ShardCache(tmp_path, LIMIT)).fetch(info)
    (tmp_path / OWN_FOLDER / info.sha256).write_bytes(bytes(info.bytes))
    assert Dataset(served.url, cache=ShardCache(tmp_path, LIMIT)).fetch(info).content[:] == dataset.fetch(info).content[:]
    assert served.requests[info.name] == 2


def test_a_failing_download_leaves_nothing_and_says_why(served: Served, dataset: Dataset, tmp_path: Path) -> None:
    info = dataset.manifest.shards[0]
    for fault, message in ((404, "is missing"), (403, "cannot be read: 403"), ("flip", "does not match")):
        served.faults[info.name] = [fault]
        with pytest.raises(DataError, match=f"{info.name} {message}"):
            Dataset(served.url, cache=ShardCache(tmp_path, LIMIT)).fetch(info)
        assert shards(tmp_path) == set()
        assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("limit", [LIMIT, 1000])
def test_without_room_it_goes_on_without_cache_and_says_so_once(
    served: Served, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: int
) -> None:
    """A disk that fills up while a shard arrives, and a limit smaller than a shard."""

    def download(self: Location, name: str, size: int, to: Path) -> None:
        if limit == LIMIT and to.is_relative_to(tmp_path / "cache"):
            to.write_bytes(b"begun")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, name, size, to)

    original = Location.download
    monkeypatch.setattr(Location, "download", download)
    remote = Dataset(served.url, Reading(), ShardCache(tmp_path / "cache", limit))
    with caplog.at_level(logging.WARNING):
        for info in dataset.manifest.shards:
            assert remote.fetch(info).content[:] == dataset.fetch(info).content[:]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["continuing without the shard cache"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_with_no_disk_at_all_shards_stay_in_memory(served: Served, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Location, name: str, size: int, to: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Location, "download", download)
    info = dataset.manifest.shards[0]
    content = Dataset(served.url).fetch(info).content
    assert isinstance(content, bytes)
    assert content == dataset.fetch(info).content[:]


def test_a_folder_that_cannot_be_written(served: Served, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    info = dataset.manifest.shards[0]
    remote = Dataset(served.url, cache=ShardCache(tmp_path / "file" / "cache", LIMIT))
    assert remote.fetch(info).content[:] == dataset.fetch(info).content[:]
    assert "continuing without the shard cache" in caplog.text


def test_without_a_cache_nothing_stays(served: Served, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shard = Dataset(served.url).fetch(dataset.manifest.shards[0])
    assert shard.image(0) == dataset.fetch(dataset.manifest.shards[0]).image(0)
    assert list(tmp_path.iterdir()) == []
