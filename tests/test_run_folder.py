"""A run folder keeps the same promises on a disk and in object storage (a real S3 protocol server on the loopback)."""

import contextlib
import errno
import gc
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ray.train import ControllerError, WorkerGroupError

from distmeta.config import validate
from distmeta.errors import ClusterError, ConfigError, RunError
from distmeta.scale.fit import Fit, failure
from distmeta.training import checkpoint as checkpoints
from distmeta.training.metrics_folder import MetricsWriter
from distmeta.training.model_folder import ModelFolder
from distmeta.training.run_folder import RunFolder
from distmeta.training.sealed import SEAL, SealedFolder
from distmeta.training.storage import appending, write_whole

PARAMS = {"weight": torch.arange(6.0)}
ABOUT = {"model": {"name": "mlp"}, "learner": {"name": "maml"}, "norm": "none"}
INDEX = "index of somebody else's"


@pytest.fixture(params=["disk", "object storage"])
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    if request.param == "disk":
        return RunFolder(tmp_path / "run")
    request.getfixturevalue("bucket")
    return RunFolder("s3://bucket/runs/run")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def commit(run_folder: RunFolder, step: int, scratch: Path, whole: bool = True) -> None:
    """A checkpoint of this step, as Ray Train commits it."""
    local = scratch / f"{run_folder.name}-{step}"
    checkpoints.save(checkpoints.Checkpoint(step, PARAMS, {"m": torch.ones(2)}, {"best_step": step}), local, checkpoints.machine(1))
    if not whole:
        (local / "progress.json").write_text("cut")
    run_folder.checkpoint(step).copy(SealedFolder(local))


def test_it_is_the_same_folder_for_all_who_name_it(run_folder: RunFolder) -> None:
    run_folder.check_writable()
    assert run_folder.is_empty
    made = validate({"run_folder": str(run_folder), "data": {"functions": "sinusoid"}}, "test")
    run_folder.write_description(made, {"dataset": "sinusoid", "fingerprint": "f"})
    again = RunFolder(str(run_folder))
    assert again.read_config() == made
    assert again.read_dataset()["fingerprint"] == "f"
    again.write_description(made.model_copy(update={"seed": 3}), {"dataset": "sinusoid", "fingerprint": "g"})
    assert (run_folder.read_config().seed, run_folder.read_dataset()["fingerprint"]) == (3, "g")
    again.remove()
    assert not run_folder.holds_run
    assert run_folder.is_empty
    again.remove()


def test_everything_that_is_written_is_read_back(run_folder: RunFolder) -> None:
    run_folder.check_writable()
    assert not run_folder.has_ended
    result = {"steps": 3, "best_step": 2, "weights_sha256": "0", "test": {"accuracy": 0.5}}
    run_folder.write_result(result, [[0.25, 0.75]])
    assert (run_folder.has_ended, run_folder.read_result(), run_folder.read_test_episodes()) == (True, result, [[0.25, 0.75]])
    assert not run_folder.has_mlflow_run
    run_folder.write_mlflow({"uri": "u", "run_id": "r"})
    assert run_folder.read_mlflow() == {"uri": "u", "run_id": "r"}
    for number in (0, 1):
        run_folder.trial(number).write_trial({"number": number, "state": "running", "reason": "", "params": {}})
    assert sorted(record["number"] for record in run_folder.read_trials()) == [0, 1]
    trial = run_folder.trial(1)
    assert trial.read_failure() is None
    trial.write_failure(RunError("not finite", ""))
    assert trial.read_failure() == "not finite"
    trial.forget_failure()
    trial.forget_failure()
    assert trial.read_failure() is None
    assert run_folder.write_best_config("a: 1").read_text() == "a: 1"
    assert json.loads(run_folder.write_table({"trials": []}).read_text()) == {"trials": []}


READS: dict[str, tuple[str, Callable[[RunFolder], object], str]] = {
    "config": ("config.yaml", RunFolder.read_config, "holds no run: .*\ngive the run_folder of a run"),
    "dataset": ("dataset.json", RunFolder.read_dataset, "holds no run: .*\ngive the run_folder of a run"),
    "result": ("result.json", RunFolder.read_result, "holds no finished run: .*\ngive the run_folder of a run that ended"),
    "MLflow": ("mlflow.json", RunFolder.read_mlflow, "has no MLflow run: .*\nstart it: distmeta train CONFIG --resume"),
    "model": ("best/model.json", lambda held: held.best.read_description(), "holds no model: .*\ngive the folder of a run that ended"),
}


@pytest.mark.parametrize("what", READS)
def test_what_is_missing_damaged_or_from_a_newer_version_is_said(what: str, run_folder: RunFolder) -> None:
    """With the file's path, and a remedy; never as another error than RunError."""
    name, read, missing = READS[what]
    with pytest.raises(RunError, match=missing):
        read(run_folder)
    run_folder.check_writable()
    for text, said in (("{", "damaged|cannot be read"), ('{"of_a_newer": "version"}', "cannot be read by distmeta|lacks")):
        if name.startswith("best"):
            run_folder.best.save(PARAMS, ABOUT)
        write_whole(run_folder.path / name, text)
        with pytest.raises(RunError, match=said) as caught:
            read(run_folder)
        assert name in caught.value.message
        assert caught.value.remedy


def test_a_damaged_metrics_file_is_named(run_folder: RunFolder) -> None:
    run_folder.check_writable()
    MetricsWriter(run_folder.metrics, 0)
    run_folder.metrics.write(0, 1, [{"step": 1}])
    write_whole(run_folder.path / "metrics" / "000000-000001.jsonl", '{"step": 1')
    with pytest.raises(RunError, match=r"000000-000001\.jsonl is damaged"):
        list(run_folder.metrics.read())


def test_the_newest_whole_checkpoint_is_taken_and_taken_over(run_folder: RunFolder, tmp_path: Path) -> None:
    assert run_folder.newest_checkpoint() is None
    assert run_folder.reached() == "its beginning"
    for step in (2, 40, 100):
        commit(run_folder, step, tmp_path)
    newest = run_folder.newest_checkpoint()
    assert newest is not None
    assert (newest.name, newest.step, run_folder.reached()) == ("step-000100", 100, "step-000100")
    found = newest.load()
    assert (found.step, found.progress) == (100, {"best_step": 100})
    assert found.meta_params["weight"].equal(PARAMS["weight"])
    assert newest.written_on() == checkpoints.machine(1)
    follower = RunFolder(run_folder.path.with_name("follower"))
    follower.checkpoint(100).copy(newest)
    assert follower.checkpoint(100).is_whole
    (newest.path / "progress.json").write_text("{}")
    (run_folder.checkpoint(40).path / SEAL).unlink()
    older = run_folder.newest_checkpoint()
    assert older is not None
    assert older.name == "step-000002"
    for broken in (newest.load, newest.written_on):
        with pytest.raises(RunError, match=r"checkpoint .*step-000100 cannot be read: .*\nremove it"):
            broken()


def test_old_and_torn_checkpoints_go(run_folder: RunFolder, tmp_path: Path) -> None:
    run_folder.thin_out(2, INDEX)
    commit(run_folder, 10, tmp_path, whole=False)
    run_folder.thin_out(2, INDEX)
    assert names(run_folder.checkpoints) == ["step-000010"], "nothing to resume from: nothing is removed"
    for step in (20, 30, 40, 50):
        commit(run_folder, step, tmp_path, whole=step != 40)
    for name in ("note.json", INDEX):
        write_whole(run_folder.checkpoints / name, "{}")
    run_folder.thin_out(2, INDEX)
    assert names(run_folder.checkpoints) == ["note.json", "step-000030", "step-000050"]


def test_one_best_model_counts_and_others_go(run_folder: RunFolder) -> None:
    for step in (1, 2, 2, 2, 7):  # steps are repeated after a failure
        run_folder.save_best(step, PARAMS, ABOUT | {"step": step})
        assert run_folder.best.is_whole
        assert run_folder.best.read_description()["step"] == step
        assert run_folder.best.load_params()["weight"].equal(PARAMS["weight"])
    assert names(run_folder.path) == ["best"]
    assert names(run_folder.path / "best") == ["best.json", "step-000007"]


def test_the_best_model_of_a_run_before_distmeta_0_2_counts_until_there_is_a_better_one(run_folder: RunFolder) -> None:
    ModelFolder(run_folder.path / "best").save(PARAMS, ABOUT | {"step": 3})
    assert run_folder.best.is_whole
    assert run_folder.best.read_description()["step"] == 3
    run_folder.save_best(5, PARAMS, ABOUT | {"step": 5})
    assert run_folder.best.read_description()["step"] == 5
    assert names(run_folder.path / "best") == ["best.json", "step-000005"]


class Killed(Exception):
    """The process ended here."""


def before_each_write(kept: str, act: Callable[[str], None], patched: pytest.MonkeyPatch) -> None:
    """Call `act` before anything is changed on the disk or in the bucket, with the name of what is written."""
    if kept == "object storage":
        from aiobotocore.client import AioBaseClient

        ask = AioBaseClient._make_api_call

        async def asking(client: Any, operation: str, request: dict[str, Any]) -> Any:
            if operation.startswith(("Put", "Delete", "Copy", "Create")):
                act(Path(request.get("Key", operation)).name)
            return await ask(client, operation, request)

        patched.setattr(AioBaseClient, "_make_api_call", asking)
        return

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*arguments: Any, **named: Any) -> Any:
            act(change.__name__)
            return change(*arguments, **named)

        return changing

    for where, name in (
        (Path, "write_text"),
        (Path, "write_bytes"),
        (Path, "replace"),
        (Path, "unlink"),
        (os, "rename"),
        (shutil, "rmtree"),
    ):
        patched.setattr(where, name, watched(getattr(where, name)))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("kept", ["disk", "object storage"])
def test_whenever_a_kill_comes_the_best_model_is_whole(
    kept: str, repeated: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed before each change of what is stored, one after another."""
    if kept == "object storage":
        request.getfixturevalue("bucket")
    run_folder = RunFolder(str(tmp_path / "run") if kept == "disk" else "s3://bucket/run")
    first, last = (2, 2) if repeated else (2, 4)
    run_folder.save_best(first, PARAMS, ABOUT | {"step": first, "attempt": 0})
    for kill in range(1, 40):
        changes, ended = itertools.count(1), False

        def dying(_: str, changes: Iterator[int] = changes, kill: int = kill) -> None:
            if next(changes) >= kill:
                raise Killed

        with monkeypatch.context() as patched:
            before_each_write(kept, dying, patched)
            with contextlib.suppress(Killed):
                run_folder.save_best(last, PARAMS, ABOUT | {"step": last, "attempt": kill})
                ended = True
            gc.collect()  # s3fs's files would still upload when they are collected
        assert run_folder.best.is_whole, f"killed before change {kill}"
        assert run_folder.best.read_description()["step"] in (first, last)
        if ended:
            break
    assert 3 < kill < 39, "it was killed nowhere, or never ended"
    assert run_folder.best.read_description()["attempt"] == kill


def test_what_was_there_stays_if_filling_fails(run_folder: RunFolder) -> None:
    fetched = run_folder.init_from
    fetched.save(PARAMS, ABOUT)

    def fill() -> None:
        with fetched.filling() as new:
            (new / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert fetched.is_whole
    assert "half" not in names(fetched.path)


def test_the_seal_is_written_last(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no renaming, a reader must never find a seal on what is not whole."""
    fetched = RunFolder("s3://bucket/run").beside(0)
    fetched.save(PARAMS, ABOUT)
    written: list[str] = []
    with monkeypatch.context() as patched:
        before_each_write("object storage", written.append, patched)
        fetched.save(PARAMS, ABOUT)
    assert written == ["DeleteObjects", "meta_params.safetensors", "model.json", SEAL]
    assert fetched.is_whole


def test_metrics_and_starts_survive_a_restart(run_folder: RunFolder) -> None:
    run_folder.check_writable()
    assert run_folder.restarts() == []
    for start in (0, 4):
        run_folder.note_start(start)
        writer = MetricsWriter(run_folder.metrics, start)
        for step in range(start + 1, 9):
            writer.add({"step": step, "start": start})
            if step % 4 == 0:
                writer.flush(step)
    found = [(record["step"], record["start"]) for record in run_folder.metrics.read()]
    assert found == [(i, 0 if i <= 4 else 4) for i in range(1, 9)]
    assert run_folder.restarts() == [4]


def test_a_log_grows(run_folder: RunFolder) -> None:
    for line in ("one", "two"):
        with appending(run_folder.log) as file:
            file.write(f"{line}\n".encode())
            assert file.fileno() > 0, "Ray's daemons write to it"
    assert run_folder.log.read_text() == "one\ntwo\n"


def test_places_that_take_nothing_are_refused(bucket: Any) -> None:
    with pytest.raises(ConfigError, match=r"s3://nobucket/run cannot be written: .*bucket does not exist"):
        RunFolder("s3://nobucket/run").check_writable()
    assert [found["Name"] for found in bucket.list_buckets()["Buckets"]] == ["bucket"]
    for url in ("http://127.0.0.1:1/run", "nosuch://x/run", "gs://bucket/run"):
        with pytest.raises(ConfigError, match=f"run_folder={url} cannot be used"):
            RunFolder(url)


def test_storage_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="run_folder s3://bucket/run cannot be written"):
        RunFolder("s3://bucket/run").check_writable()
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
        assert re.match(rf"training failed.*: \[Errno {number}\] no\nsee .*log.txt; --resume continues from its beginning", str(found))
    else:
        assert isinstance(found, RunError)
        assert re.match(rf"the run cannot be written: \[Errno {number}\] no\nfree space or .*continues from its beginning", str(found))
