"""A run folder keeps the same promises on a disk and in object storage (a real S3 protocol server on the loopback)."""

import errno
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ray.train import ControllerError, WorkerGroupError

from distmeta.config import validate
from distmeta.errors import ClusterError, ConfigError, RunError
from distmeta.scale.fit import Fit, failure
from distmeta.training import checkpoint as checkpoints
from distmeta.training.checkpoint import SEAL
from distmeta.training.folder import appending, check_writable, folder_at, remove, replacing, write_whole
from distmeta.training.metrics import MetricsWriter, note_start, read_metrics, restarts

PARAMS = {"weight": torch.arange(6.0)}


@pytest.fixture(params=["disk", "object storage"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "disk":
        return tmp_path / "run"
    request.getfixturevalue("bucket")
    return folder_at("s3://bucket/runs/run")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_the_same_folder_for_all_who_name_it(run_folder: Path) -> None:
    check_writable(run_folder)
    write_whole(run_folder / "config.yaml", "a")
    again = folder_at(str(run_folder))
    assert (again / "config.yaml").read_text() == "a"
    write_whole(again / "config.yaml", "b")
    assert (run_folder / "config.yaml").read_text() == "b"
    remove(again)
    assert not (run_folder / "config.yaml").exists()
    remove(again)


def test_the_newest_whole_checkpoint_is_taken_and_taken_over(run_folder: Path, tmp_path: Path) -> None:
    assert checkpoints.newest(run_folder) is None
    for step in (2, 40, 100):
        checkpoints.save(checkpoints.Checkpoint(step, PARAMS, {"m": torch.ones(2)}, {"best_step": step}), tmp_path / str(step), threads=1)
        with replacing(run_folder / "checkpoints" / checkpoints.folder_name(step), SEAL) as new:
            for file in (tmp_path / str(step)).iterdir():
                (new / file.name).write_bytes(file.read_bytes())
    newest = checkpoints.newest(run_folder)
    assert newest is not None
    assert newest.name == "step-000100"
    found = checkpoints.load(newest)
    assert (found.step, found.progress) == (100, {"best_step": 100})
    assert found.meta_params["weight"].equal(PARAMS["weight"])
    checkpoints.take_over(newest, run_folder.with_name("follower"))
    assert checkpoints.is_whole(run_folder.with_name("follower") / "checkpoints" / "step-000100")
    (newest / "progress.json").write_text("{}")
    (run_folder / "checkpoints" / "step-000040" / SEAL).unlink()
    older = checkpoints.newest(run_folder)
    assert older is not None
    assert older.name == "step-000002"


def test_best_is_replaced_whole(run_folder: Path) -> None:
    for step in (1, 2):
        checkpoints.save_best(PARAMS, {"step": step}, run_folder)
        assert checkpoints.is_whole(run_folder / "best")
        assert json.loads((run_folder / "best" / "model.json").read_text())["step"] == step
    assert names(run_folder) == ["best"]


def test_what_was_there_stays_if_filling_fails(run_folder: Path) -> None:
    checkpoints.save_best(PARAMS, {"step": 1}, run_folder)

    def fill() -> None:
        with replacing(run_folder / "best", SEAL) as new:
            (new / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert checkpoints.is_whole(run_folder / "best")
    assert "half" not in names(run_folder / "best")


def test_the_last_file_comes_last(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no renaming, a reader must never find a seal on what is not whole."""
    best = folder_at("s3://bucket/run") / "best"
    checkpoints.save_best(PARAMS, {"step": 1}, best.parent)
    filesystem = best.fs  # type: ignore[attr-defined]
    asked = []

    def put(path: str, value: bytes, **_: Any) -> None:
        asked.append((Path(path).name, checkpoints.is_whole(best)))
        return original(path, value)

    original = filesystem.pipe_file
    monkeypatch.setattr(type(filesystem), "pipe_file", lambda _, path, value, **more: put(path, value))
    checkpoints.save_best(PARAMS, {"step": 2}, best.parent)
    assert {name for name, _ in asked} <= {"meta_params.safetensors", "model.json", SEAL}
    assert not any(whole for _, whole in asked)
    assert checkpoints.is_whole(best)


def test_metrics_and_starts(run_folder: Path) -> None:
    check_writable(run_folder)
    for start in (0, 4):
        note_start(run_folder, start)
        writer = MetricsWriter(run_folder, start)
        for step in range(start + 1, 9):
            writer.add({"step": step, "start": start})
            if step % 4 == 0:
                writer.flush(step)
    assert [(record["step"], record["start"]) for record in read_metrics(run_folder)] == [(i, 0 if i <= 4 else 4) for i in range(1, 9)]
    assert restarts(run_folder) == [4]


def test_old_and_torn_checkpoints_go(run_folder: Path, tmp_path: Path) -> None:
    def save(step: int, whole: bool) -> None:
        checkpoints.save(checkpoints.Checkpoint(step, PARAMS, {}, {}), tmp_path / str(step), threads=1)
        with replacing(run_folder / "checkpoints" / checkpoints.folder_name(step), SEAL) as new:
            for file in (tmp_path / str(step)).iterdir():
                (new / file.name).write_bytes(file.read_bytes()[: None if whole else 9])

    checkpoints.thin_out(run_folder, 2)
    save(10, whole=False)
    checkpoints.thin_out(run_folder, 2)
    assert names(run_folder / "checkpoints") == ["step-000010"], "nothing to go on from: nothing is removed"
    for step in (20, 30, 40, 50):
        save(step, whole=step != 40)
    write_whole(run_folder / "checkpoints" / "note.json", "{}")
    checkpoints.thin_out(run_folder, 2)
    assert names(run_folder / "checkpoints") == ["note.json", "step-000030", "step-000050"]


def test_a_log_grows(run_folder: Path) -> None:
    for line in ("one", "two"):
        with appending(run_folder / "log.txt") as file:
            file.write(f"{line}\n".encode())
            assert file.fileno() > 0, "Ray's daemons write to it"
    assert (run_folder / "log.txt").read_text() == "one\ntwo\n"


def test_places_that_take_nothing(bucket: Any) -> None:
    with pytest.raises(ConfigError, match=r"s3://nobucket/run cannot be written: .*bucket does not exist"):
        check_writable(folder_at("s3://nobucket/run"))
    assert [found["Name"] for found in bucket.list_buckets()["Buckets"]] == ["bucket"]
    for url in ("http://127.0.0.1:1/run", "nosuch://x/run", "gs://bucket/run"):
        with pytest.raises(ConfigError, match=f"run_folder={url} cannot be used"):
            folder_at(url)


def test_storage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="run_folder s3://bucket/run cannot be written"):
        check_writable(folder_at("s3://bucket/run"))
    s3fs.S3FileSystem.clear_instance_cache()


class Ended:
    """A fit that has ended with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ECONNRESET])
@pytest.mark.parametrize("of", [ControllerError, lambda error: WorkerGroupError("a worker failed", {0: error})])
def test_who_could_not_write_does_not_matter(number: int, of: Any, tmp_path: Path) -> None:
    """Ray's controller keeps its own file beside the checkpoints, and may be the first to meet a full disk."""
    made = validate({"run_folder": str(tmp_path / "run"), "data": {"functions": "sinusoid"}}, "test")
    found = failure(cast(Fit, Ended(of(OSError(number, "no")))), None, made)
    assert found is not None
    if number == errno.ECONNRESET:
        assert isinstance(found, ClusterError)
        assert re.match(rf"training failed.*: \[Errno {number}\] no\nsee .*log.txt; --resume goes on from its beginning", str(found))
    else:
        assert isinstance(found, RunError)
        assert re.match(rf"the run cannot be written: \[Errno {number}\] no\nmake room, .*goes on from its beginning", str(found))
