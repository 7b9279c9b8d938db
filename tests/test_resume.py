"""A pack that is killed, interrupted or out of disk continues where it stopped and ends in the same bytes; two never write one folder."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import options, patterns

import distmeta.data.encode as encode_module
from distmeta.data.pack import PackOptions, pack
from distmeta.data.sources import SourceImage
from distmeta.data.spool import Spool
from distmeta.errors import DataError

# Slow enough to be killed on the way, as a large source is; at image number `stall` it waits for that.
PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import options, patterns
import distmeta.data.encode
from distmeta.data.pack import pack

distmeta.data.encode._BATCH_IMAGES = 10

def slowly():
    for i, image in enumerate(patterns()):
        time.sleep(0.003 if i != int(sys.argv[3]) else 600)
        yield image

if __name__ == "__main__":
    pack(slowly(), Path(sys.argv[1]), options(), processes=int(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "_BATCH_IMAGES", 10)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def start(out: Path, processes: int, stall: int = -1, limit: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, str(out), str(processes), str(stall)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def work_of(out: Path) -> Path:
    return out.parent / f".{out.name}.packing"


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(processes: int, packed: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(processes)
    kept = 0
    for stall in (120, 240):
        process = start(out, processes, stall)
        while not (Spool.begun(work_of(out)) and (work_of(out) / "spool").stat().st_size > kept):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        kept = (work_of(out) / "spool").stat().st_size
        assert psutil.wait_procs(workers, timeout=20)[1] == []  # none is left behind
    assert pack(patterns(), out, options(), processes).skipped == []
    assert digests(out) == digests(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def stopped_after(n: int, error: BaseException) -> Iterator[SourceImage]:
    for i, image in enumerate(patterns()):
        if i == n:
            raise error
        yield image


@pytest.mark.parametrize("n", [11, 150, 299])
def test_what_is_encoded_is_not_encoded_again(n: int, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(stopped_after(n, KeyboardInterrupt()), tmp_path / "out", options())
    assert not (tmp_path / "out").exists()
    opened = []
    genuine = encode_module.decode_file
    monkeypatch.setattr(encode_module, "decode_file", lambda *arguments: (opened.append(arguments), genuine(*arguments))[1])
    pack(patterns(), tmp_path / "out", options())
    assert len(opened) == 300 - n // 10 * 10
    assert digests(tmp_path / "out") == digests(packed)


def begun(out: Path, n: int = 100) -> Path:
    with pytest.raises(KeyboardInterrupt):
        pack(stopped_after(n, KeyboardInterrupt()), out, options())
    return work_of(out)


@pytest.mark.parametrize("seed", range(8))
def test_a_work_folder_cut_or_damaged_anywhere_ends_in_the_same_bytes(seed: int, packed: Path, tmp_path: Path) -> None:
    work, chance = begun(tmp_path / "out"), random.Random(seed)
    path = work / ("spool", "journal")[seed % 2]
    content = bytearray(path.read_bytes())
    if seed % 4 < 2:
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    pack(patterns(), tmp_path / "out", options())
    assert digests(tmp_path / "out") == digests(packed)


@pytest.mark.parametrize("change", [{"image_size": 20}, {"image_format": "jpg"}, {"resize": "center-crop"}, {"seed": 1}])
def test_leftovers_of_other_options_are_not_used(change: dict[str, object], tmp_path: Path) -> None:
    begun(tmp_path / "out")
    pack(patterns(), tmp_path / "out", options(**change))
    pack(patterns(), tmp_path / "new", options(**change))
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_leftovers_serve_other_shards(tmp_path: Path) -> None:
    """What concerns dealing alone may change between a pack that was stopped and the one that continues."""
    begun(tmp_path / "out", 299)
    changed: PackOptions = options(classes_per_shard=4, images_per_class=4)
    pack(patterns(), tmp_path / "out", changed)
    pack(patterns(), tmp_path / "new", changed)
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


@pytest.mark.parametrize("changed", [0, 57, 99])
def test_what_was_encoded_of_another_source_is_not_mixed_in(changed: int, tmp_path: Path) -> None:
    """Whoever mends the source gives the same command again; only what still is as it was is taken from the leftovers."""
    begun(tmp_path / "out")
    other = list(patterns())
    other[changed] = other[changed]._replace(image=other[changed + 1].image)
    other = [image for image in other if image.class_name != "val-3"]
    pack(other, tmp_path / "out", options())
    pack(other, tmp_path / "new", options())
    assert digests(tmp_path / "out") == digests(tmp_path / "new")
    begun(tmp_path / "third")
    with pytest.raises(DataError, match="the source holds no training image"):
        pack(iter(()), tmp_path / "third", options())


@pytest.mark.parametrize("more", [-10, -1, 0, 1, 10])
def test_a_source_that_changed_after_all_was_encoded_is_packed_as_it_is(more: int, tmp_path: Path) -> None:
    """The pack stopped while it wrote shards; its leftovers must not stand in for a source that has more or fewer images by now."""

    def stop(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
        if what == "writing shards":
            raise KeyboardInterrupt
        return items

    images = list(patterns())
    first, then = images[: 300 - max(more, 0)], images[: 300 + min(more, 0)]
    with pytest.raises(KeyboardInterrupt):
        pack(first, tmp_path / "out", options(), track=stop)
    pack(then, tmp_path / "out", options())
    pack(then, tmp_path / "new", options())
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_a_running_pack_is_not_disturbed_and_a_killed_one_holds_no_lock(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, 1, 120)
    while not Spool.begun(work_of(out)):
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(DataError, match="another pack into"):
        pack(patterns(), out, options())
    process.kill()
    process.communicate()
    pack(patterns(), out, options())
    assert digests(out) == digests(packed)


def test_a_full_disk_is_said_and_the_pack_goes_on_when_there_is_room(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for size in (20_000, 60_000):  # in the spool, in a shard
        process = start(out, 1, limit=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))  # type: ignore[misc]
        _, err = process.communicate()
        assert process.returncode == 1
        assert f"packing into {out} stopped: [Errno 27] File too large" in err
        assert "the same command continues where it stopped" in err
        assert not out.exists()
    pack(patterns(), out, options())
    assert digests(out) == digests(packed)


def test_a_finished_pack_whose_work_folder_stayed_is_cleaned_up(packed: Path, tmp_path: Path) -> None:
    work = begun(tmp_path / "out")
    os.rename(work, tmp_path / "aside")
    pack(patterns(), tmp_path / "out", options())
    os.rename(tmp_path / "aside", work)  # as if the kill came between the folder's new name and the tidying up
    with pytest.raises(DataError, match="exists already"):
        pack(patterns(), tmp_path / "out", options())
    assert not work.exists()
    assert digests(tmp_path / "out") == digests(packed)
