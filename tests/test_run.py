"""Whole runs on real Ray workers, over a real MLflow store: the same run on any number of workers, stopped or not."""

import html
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from conftest import free_port, png
from failures import at_checkpoint, workers_of
from mlflow import MlflowClient
from mlflow_http import flaky_server, start_server, stop_server
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.util import placement_group_table
from safetensors.torch import load_file
from test_library import examples

from distmeta.assembly.sync import sync
from distmeta.cli import main
from distmeta.config import Config, validate
from distmeta.data.shards import Dataset
from distmeta.errors import ClusterError, ConfigError, DataError, Overtaken, RegistryError, RunError, Stopped, Unanswered
from distmeta.learners.params import weights_sha256
from distmeta.models.native.library import KernelsUnavailable, library
from distmeta.registry.versions import load_model, publish
from distmeta.scale.evaluate import EpisodeSource, evaluate
from distmeta.scale.joining import check_machine
from distmeta.scale.run import run
from distmeta.training.checkpoint import machine
from distmeta.training.events import sentence
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import LEASE, write_whole

STEPS, SLOTS = 40, 8


def config(home: Path, packed: Path, name: str, **train: Any) -> Config:
    return validate(
        {
            "run_folder": str(home / name),
            "data": {
                "shards": str(packed),
                "way": 3,
                "shot": 1,
                "queries": 3,
                "eval": {"queries": 3, "episodes": 20, "val_episodes": 10},
            },
            "model": {"filters": 8},
            "learner": {"inner_lr": 0.2, "inner_steps": 2},
            "outer": {"lr": 0.01, "steps": STEPS, "meta_batch_size": SLOTS, "schedule": "cosine", "clip_norm": 10},
            "train": {"workers": 2, "cpus_per_worker": 0.5, "checkpoint_every": 10, "validate_every": 10, "device": "cpu"} | train,
            "tracking": {"uri": f"sqlite:///{home / 'mlflow.db'}"},
        },
        "test",
    )


@pytest.fixture(scope="module")
def alone(home: Path, packed: Path, address: str) -> dict[str, Any]:
    """The run on one worker, left alone: what all others must equal."""
    return run(config(home, packed, "alone", workers=1), address=address)


def owners(result: dict[str, Any]) -> list[list[int]]:
    """For each step, which rank computed each slot."""
    return [record["ranks"] for record in RunFolder(result["run_folder"]).metrics.read()]


def test_one_worker_learns(alone: dict[str, Any]) -> None:
    assert alone["steps"] == STEPS
    assert owners(alone) == [[0] * SLOTS] * STEPS
    assert alone["test"]["accuracy"] > alone["test"]["random_init"] + alone["test"]["ci95"]
    assert alone["test"]["episodes"] == 20


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_workers_ends_in_the_same_weights(
    workers: int, alone: dict[str, Any], home: Path, packed: Path, address: str
) -> None:
    result = run(config(home, packed, f"workers-{workers}", workers=workers), address=address)
    assert result["weights_sha256"] == alone["weights_sha256"]
    assert {**result["test"]} == {**alone["test"]}
    for ranks in owners(result):
        assert sorted(set(ranks)) == list(range(workers))
        assert ranks == sorted(ranks), "slots are dealt in contiguous blocks"
        assert len(ranks) == SLOTS


@pytest.mark.slow
def test_native_kernels_end_in_one_hash_on_one_to_four_workers_and_after_kills(home: Path, packed: Path, address: str) -> None:
    try:
        library("float32")
    except KernelsUnavailable as error:
        pytest.skip(error.message)

    def made(name: str, workers: int) -> Config:
        train = {"workers": workers, "kernels": "native", "checkpoint_every": 2, "max_failures": 2}
        return short(config(home, packed, name, **train), model={"filters": 16}, outer={"steps": 12})

    found: dict[Any, str] = {
        workers: run(made(f"native-{workers}", workers), address=address)["weights_sha256"] for workers in (1, 2, 3, 4)
    }
    interrupted, kills = made("native-killed", 2), []
    for step, victim in ((4, 0), (8, 1)):
        at_checkpoint(Path(interrupted.run_folder), step, lambda victim=victim: kills.append(workers_of(psutil.Process())[victim].kill()))
    found["killed"] = run(interrupted, address=address)["weights_sha256"]
    assert len(kills) == len(RunFolder(interrupted.run_folder).restarts()) == 2
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_a_run_kept_in_object_storage(alone: dict[str, Any], home: Path, packed: Path, bucket: Any) -> None:
    """A worker is killed; what is in the bucket is enough to continue, and to publish and report from."""
    made = config(home, packed, "x", checkpoint_every=5).model_copy(update={"run_folder": "s3://bucket/runs/far"})
    run_folder = RunFolder(made.run_folder)
    at_checkpoint(run_folder.path, 10, lambda: workers_of(psutil.Process())[1].kill())
    result = run(made)
    assert (result["weights_sha256"], result["test"]) == (alone["weights_sha256"], alone["test"])
    assert [record["step"] for record in run_folder.metrics.read()] == list(range(1, STEPS + 1))
    (again,) = run_folder.restarts()
    assert again >= 10
    held = {path.name for path in run_folder.path.iterdir()}
    assert {"config.yaml", "metrics", "checkpoints", "best", "result.json", "report.html", "log.txt"} <= held
    assert run(made, resume=True) == result, "it had ended"
    published = publish(f"sqlite:///{home / 'mlflow.db'}", run_folder, "far")
    assert load_model(f"sqlite:///{home / 'mlflow.db'}", published.uri)
    assert not (Path.cwd() / "s3:").exists()


def short(config: Config, **sections: dict[str, Any]) -> Config:
    """Six steps of something else."""
    content = config.model_dump(exclude_none=True)
    content["outer"] |= {"steps": 6}
    content["learner"] = {}
    for section, keys in sections.items():
        content[section] |= keys
    return validate(content, "test")


@pytest.mark.slow
def test_pretrain_publish_meta_train_from_the_registry(home: Path, packed: Path, address: str) -> None:
    """Classifier-Baseline on one and two workers with running statistics: the same bits; then Meta-Baseline and MAML begin with its body,
    and the test stands beside it."""
    pretrain = {"learner": {"name": "classifier-baseline", "images_per_slot": 6}, "model": {"norm": "running"}}
    name = {"tracking": {"model": "base"}}
    first, second = (
        run(short(config(home, packed, f"base-{workers}", workers=workers), **pretrain, **name), address=address) for workers in (1, 2)
    )
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["model"] == "models:/base/1"
    assert second["model"] == "models:/base/2"
    for learner in ("meta-baseline", "maml"):
        made = short(
            config(home, packed, f"from-base-{learner}"),
            learner={"name": learner},
            data={"eval": {"queries": 3, "episodes": 20, "val_episodes": 10, "beside": ["models:/base@champion", "models:/base/2"]}},
        )
        result = run(made.model_copy(update={"init_from": f"runs:/{first['run_id']}/model"}), address=address)
        started = load_file(Path(result["run_folder"]) / "init_from" / "meta_params.safetensors")
        assert weights_sha256(started) == json.loads((home / "base-1" / "result.json").read_text())["weights_sha256"]
        beside = result["test"]["beside"]
        assert beside["models:/base/2"]["accuracy"] == second["test"]["accuracy"] == beside["models:/base@champion"]["accuracy"]
        assert beside["models:/base/2"]["norm"] == "running"
        assert result["test"]["baseline"].startswith("not meta-trained, from runs:/")
        difference = result["test"]["accuracy"] - second["test"]["accuracy"]
        assert beside["models:/base/2"]["difference"] == pytest.approx(difference)
        model = load_model(f"sqlite:///{home / 'mlflow.db'}", result["model"])
        *_, found = evaluate(model, EpisodeSource(shards=str(packed), split="test", way=None, shot=None, queries=3, seed=0), 5, address)
        assert found is not None
        assert found.figures["baseline"] == "random initialisation, without the pretrained weights"
    wide = short(config(home, packed, "wide"), model={"filters": 9}).model_copy(update={"init_from": "models:/base@champion"})
    with pytest.raises(
        ConfigError, match=r"this network has blocks.0.conv.weight \(9, 1, 3, 3\); init_from=models:/base@champion has \(8, 1"
    ):
        run(wide, address=address)
    assert not Path(wide.run_folder).exists()


def test_regression_batched_by_vmap_on_any_number_of_workers(home: Path, packed: Path, address: str) -> None:
    functions = {
        "data": {"shards": None, "functions": "sinusoid", "way": 1, "shot": 5, "queries": 5},
        "model": {"name": "mlp", "norm": "none"},
        "learner": {"inner_lr": 0.01, "inner_steps": 1, "inner_steps_eval": 3},
    }
    results = []
    for workers in (1, 2):
        made = config(home, packed, f"sinusoid-{workers}", workers=workers).model_dump(exclude_none=True)
        made["model"] = {}
        for section, keys in functions.items():
            made[section] |= keys
        made["outer"]["steps"] = 20
        results.append(run(validate(made, "test"), address=address))
    first, second = results
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["test"] == second["test"]
    assert list(first["test"]["mse_by_step"]) == ["0", "1", "2", "3"]
    assert first["model"] == "models:/sinusoid-5shot/1"
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    curve = mlflow.get_metric_history(first["run_id"], "test/mse_by_step")
    assert {str(point.step): point.value for point in curve} == first["test"]["mse_by_step"]
    assert "adaptation.png" in {file.path for file in mlflow.list_artifacts(first["run_id"])}


OWN_NETWORK = """
import os
from pathlib import Path

from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, outputs, hidden):
        super().__init__()
        with Path(__file__).with_name("built_by").open("a") as built_by:
            built_by.write(f"{os.getpid()}\\n")
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, outputs)

    def forward(self, images):
        return self.head(self.body(images))
"""


def test_a_network_of_the_users_own(home: Path, packed: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given by import path from the working folder; workers find it, but what comes back from a registry never imports anything."""
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    content = short(config(home, packed, "own")).model_dump(exclude_none=True)
    content["model"] = {"name": "own_network.Net", "hidden": 7}
    content["tracking"]["model"] = "own"
    made = validate(content, "test")
    result = run(made, address=address)
    assert result["model"] == "models:/own/1"
    uri = made.tracking.uri or ""
    with pytest.raises(
        RegistryError, match=r"uses network 'own_network.Net', which is not part of distmeta .*\n.*--network own_network.Net"
    ):
        load_model(uri, "models:/own@champion")
    with pytest.raises(RegistryError, match=r"uses network 'own_network\.Net'"):
        load_model(uri, "models:/own@champion", ["another.Net"])
    monkeypatch.setattr("distmeta.scale.evaluate.PART", 2)
    (tmp_path / "built_by").unlink()
    found = evaluate(
        load_model(uri, "models:/own@champion", ["own_network.Net"]),
        EpisodeSource(shards=str(packed), split="test", way=None, shot=None, queries=3, seed=0),
        20,
        address,
        ["own_network.Net"],
    )
    *_, last = found
    assert last is not None
    assert last.figures == result["test"]
    built_by = Counter((tmp_path / "built_by").read_text().split())
    assert max(built_by.values()) <= 4, "built again for each of ten parts; the trained and the drawn network need two constructions each"


def test_ctrl_c_and_resume_end_in_the_same_weights(alone: dict[str, Any], home: Path, packed: Path, address: str) -> None:
    slow = config(home, packed, "stopped", checkpoint_every=1)  # a checkpoint at every step leaves time to stop in between
    run_folder = Path(slow.run_folder)
    at_checkpoint(run_folder, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match=rf"stopped as asked, at step-\d+ of {STEPS}\ngive --resume"):
        run(slow, address=address)
    stopped_at = [record["step"] for record in RunFolder(run_folder).metrics.read()][-1]
    assert 3 <= stopped_at < STEPS
    mlflow = MlflowClient(slow.tracking.uri)
    assert mlflow.get_run(json.loads((run_folder / "mlflow.json").read_text())["run_id"]).info.status == "KILLED"
    with pytest.raises(ConfigError, match=r"holds a run already, with checkpoint step-.*\ncontinue it with --resume"):
        run(slow, address=address)
    # On another number of workers, too; and though Ray's own list of checkpoints is torn.
    torn = run_folder / "checkpoints" / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    assert torn.exists()
    torn.write_text("")
    result = run(config(home, packed, "stopped", workers=1), resume=True, address=address)
    assert result["weights_sha256"] == alone["weights_sha256"]
    assert result["test"] == alone["test"]
    assert [record["step"] for record in RunFolder(run_folder).metrics.read()] == list(range(1, STEPS + 1))
    history = mlflow.get_metric_history(result["run_id"], "meta_loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1)), "MLflow shows a step twice, or lacks one"
    assert RunFolder(run_folder).restarts() == [stopped_at]
    # And once more: nothing is done twice.
    assert run(config(home, packed, "stopped"), resume=True, address=address) == result


@pytest.mark.slow
def test_a_run_that_was_overtaken_commits_nothing_more(home: Path, packed: Path, address: str) -> None:
    made = config(home, packed, "overtaken", checkpoint_every=1)
    run_folder = Path(made.run_folder)
    theirs = {"owner": "theirs", "renewals": 1, "host": "far", "machine": "far", "pid": 1, "started": 0.0}
    at_checkpoint(run_folder, 4, lambda: write_whole(run_folder / LEASE, json.dumps(theirs)))
    with pytest.raises(Overtaken, match="was taken over by process 1 on far"):
        run(made, address=address)
    newest = RunFolder(run_folder).newest_checkpoint()
    assert newest is not None
    assert newest.name < "step-000030", "checkpoints continued"
    assert not RunFolder(run_folder).has_ended
    assert json.loads((run_folder / LEASE).read_text()) == theirs
    record = RunFolder(run_folder).read_mlflow()
    assert MlflowClient(made.tracking.uri).get_run(record["run_id"]).info.status == "RUNNING", "it is the other process's run now"


@pytest.mark.slow
def test_a_run_outlives_its_terminal(home: Path, packed: Path) -> None:
    """Its reader leaves after a line, as `| head -1` does, and the terminal hangs up."""
    made = config(home, packed, "outlives")
    (home / "outlives.yaml").write_text(made.to_yaml())
    command = [sys.executable, "-m", "distmeta", "train", str(home / "outlives.yaml")]
    process = psutil.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout.readline().startswith("training ")
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(500) == 0
    finally:
        for one in [*process.children(recursive=True), process] if process.is_running() else []:
            one.kill()
    run_folder = RunFolder(made.run_folder)
    assert run_folder.has_ended
    assert MlflowClient(made.tracking.uri).get_run(run_folder.read_mlflow()["run_id"]).info.status == "FINISHED"


def test_a_killed_worker_is_replaced_and_the_weights_stay_the_same(
    alone: dict[str, Any], home: Path, packed: Path, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    killed, groups = [], list[str]()

    def kill_a_worker() -> None:
        groups.extend(group["name"] for group in placement_group_table().values() if group["state"] == "CREATED")
        victim = workers_of(psutil.Process())[-1]
        killed.append(victim.pid)
        victim.kill()

    interrupted = config(home, packed, "killed", checkpoint_every=1)
    at_checkpoint(Path(interrupted.run_folder), 4, kill_a_worker)
    result = run(interrupted, address=address)
    assert killed
    assert groups == ["killed"], "what Ray's dashboard calls the run's placement group"
    assert [step >= 4 for step in RunFolder(result["run_folder"]).restarts()] == [True], "continued once, from a checkpoint"
    assert result["weights_sha256"] == alone["weights_sha256"]
    run_folder = RunFolder(result["run_folder"])
    assert [record["step"] for record in run_folder.metrics.read()] == list(range(1, STEPS + 1))
    begun, died, again, finished = run_folder.events.read()
    assert [event["kind"] for event in (begun, died, again, finished)] == ["start", "died", "start", "finished"]
    assert (died["pid"], died["signal"], died["node"]) == (killed[0], "SIGKILL", socket.gethostname())
    assert {"rank": died["rank"], "pid": killed[0]}.items() <= begun["workers"][died["rank"]].items()
    assert again["checkpoint"] == f"step-{run_folder.restarts()[0]:06d}"
    told = sentence(died)
    assert told in capfd.readouterr().err
    assert MlflowClient(interrupted.tracking.uri).get_run(result["run_id"]).data.tags["last_lost_worker"] == told
    assert told in html.unescape(run_folder.report.read_text())


def test_workers_on_machines_of_two_kinds_are_refused() -> None:
    """Law 3 holds on one kind of machine; the check that every worker makes of its peers, and of the checkpoint's."""
    here = machine(1)
    check_machine(here, dict(here), "worker 1 runs on another kind of machine than worker 0")
    there = here | {"cpu_capability": "an older one", "torch": "1.0"}
    with pytest.raises(
        RunError, match=r"^worker 1 .* \(cpu_capability an older one → .*, torch 1.0 → .*\); equal bits cannot be guaranteed\nuse machines"
    ):
        check_machine(here, there, "worker 1 runs on another kind of machine than worker 0")


def tracked_at(uri: str, made: Config) -> Config:
    return made.model_copy(update={"tracking": made.tracking.model_copy(update={"uri": uri})})


@pytest.mark.slow
def test_a_run_goes_on_without_mlflow_and_is_synced_later(
    alone: dict[str, Any], home: Path, packed: Path, address: str, tmp_path: Path
) -> None:
    with flaky_server(tmp_path) as server:
        made = tracked_at(server.uri, config(home, packed, "away", checkpoint_every=1))
        run_folder = Path(made.run_folder)
        at_checkpoint(run_folder, 5, lambda: setattr(server, "away", True))
        with pytest.raises(Unanswered, match=rf"complete in {run_folder}, but MLflow lacks: .*model\n.*distmeta sync {run_folder}"):
            run(made, address=address)
        left = json.loads((run_folder / "result.json").read_text())
        assert (left["weights_sha256"], left["test"]) == (alone["weights_sha256"], alone["test"])
        server.away = False
        mlflow = MlflowClient(server.uri)
        run_id = json.loads((run_folder / "mlflow.json").read_text())["run_id"]
        assert len(mlflow.get_metric_history(run_id, "meta_loss")) < STEPS, "it was never away"
        sent = sync(RunFolder(run_folder))
        assert sent | {"run_id": 0, "run_folder": 0} == alone | {"run_id": 0, "run_folder": 0}
        for key in ("meta_loss", "time_adapt"):
            assert [metric.step for metric in mlflow.get_metric_history(run_id, key)] == list(range(1, STEPS + 1))
        assert run(made, resume=True, address=address) == sent
        assert len(mlflow.search_model_versions()) == 1


@pytest.mark.slow
def test_a_real_mlflow_server_stops_and_starts_again_in_mid_run(home: Path, packed: Path, address: str, tmp_path: Path) -> None:
    port, steps = free_port(), 150
    servers = [start_server(tmp_path, port)]
    try:
        made = tracked_at(f"http://127.0.0.1:{port}", config(home, packed, "outage", checkpoint_every=1, validate_every=100))
        made = made.model_copy(update={"outer": made.outer.model_copy(update={"steps": steps})})
        run_folder = Path(made.run_folder)
        at_checkpoint(run_folder, 8, lambda: stop_server(servers[0]))
        back = at_checkpoint(run_folder, 20, lambda: servers.append(start_server(tmp_path, port)))
        result = run(made, address=address)
        back.join()
        mlflow = MlflowClient(made.tracking.uri)
        for key in ("meta_loss", "time_adapt"):
            assert [metric.step for metric in mlflow.get_metric_history(result["run_id"], key)] == list(range(1, steps + 1))
        assert mlflow.get_run(result["run_id"]).info.status == "FINISHED"
        assert sync(RunFolder(run_folder)) == result
    finally:
        stop_server(servers[-1])


def test_what_mlflow_holds(alone: dict[str, Any], home: Path) -> None:
    mlflow = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    held = mlflow.get_run(alone["run_id"])
    assert held.info.status == "FINISHED"
    assert held.data.params["learner.inner_lr"] == "0.2"
    assert held.data.tags["weights_sha256"] == alone["weights_sha256"]
    assert held.data.metrics["test/accuracy"] == alone["test"]["accuracy"]
    assert {"fingerprint", "torch", "ray", "cpu_capability", "checkpoints"} <= set(held.data.tags)
    assert [m.step for m in mlflow.get_metric_history(alone["run_id"], "accuracy")] == list(range(1, STEPS + 1))
    assert [m.step for m in mlflow.get_metric_history(alone["run_id"], "validation/accuracy")] == [10, 20, 30, 40]
    assert "config.yaml" in {file.path for file in mlflow.list_artifacts(alone["run_id"])}


def test_evaluate_over_the_cluster_gives_the_runs_own_figures(
    alone: dict[str, Any], home: Path, packed: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmeta.scale.evaluate.PART", 7)  # parts that do not divide the 20 episodes
    model = load_model(f"sqlite:///{home / 'mlflow.db'}", alone["model"])
    *parts, found = evaluate(model, EpisodeSource(shards=str(packed), split="test", way=None, shot=None, queries=3, seed=0), 20, address)
    assert parts == [None, None, None]
    assert found is not None
    assert found.figures == alone["test"]
    assert found.fitted is None
    source = EpisodeSource(shards=str(packed), split="test", way=None, shot=2, queries=3, seed=0)
    *_, calibrated = evaluate(model, source, 20, address, calibrate_on=10)
    assert calibrated is not None
    assert calibrated.fitted is not None
    assert (calibrated.fitted["way"], calibrated.fitted["shot"], calibrated.fitted["episodes"]) == (3, 2, 10)
    assert calibrated.figures["calibration"]["temperature"] == calibrated.fitted["temperature"]
    with pytest.raises(DataError, match="has 4 classes but the model was trained for 3-way"):
        list(evaluate(model, EpisodeSource(shards=str(packed), split="test", way=4, shot=None, queries=3, seed=0), 20, address))


def test_what_cannot_be_placed_is_refused_with_the_arithmetic(home: Path, packed: Path, address: str) -> None:
    crowd = config(home, packed, "crowd", workers=5)
    with pytest.raises(
        ClusterError, match=r"train.workers=5 of 0.5 CPU each, but this cluster places 4 .*2 CPUs hold 4.*\nset train.workers=4"
    ):
        run(crowd, address=address)
    assert not Path(crowd.run_folder).exists(), "a refused run leaves a folder behind"
    with pytest.raises(ConfigError, match=r"train.device=cuda wants 2 GPUs but the cluster has 0"):
        run(config(home, packed, "gpu", device="cuda"), address=address)


def test_another_run_in_the_folder_is_refused(alone: dict[str, Any], home: Path, packed: Path) -> None:
    other = config(home, packed, "alone")
    other = other.model_copy(update={"outer": other.outer.model_copy(update={"lr": 0.5})})
    with pytest.raises(ConfigError, match=r"holds another run: outer.lr 0.01 → 0.5\ngive --set run_folder=NEW"):
        run(other, resume=True)
    (home / "notes").mkdir()
    (home / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds other files"):
        run(config(home, packed, "notes"))
    assert (home / "notes" / "mine.txt").read_text() == "precious"


def test_a_shard_lost_during_the_run_ends_it_with_its_name(home: Path, packed: Path, address: str, tmp_path: Path) -> None:
    """SlotVectors by one worker only; every worker stops, and Ray does not try again what cannot succeed."""
    shards = shutil.copytree(packed, tmp_path / "shards")
    (shards / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard .*train-000001.tar is missing\ncopy it again"):
        run(config(home, shards, "lost"), address=address)


@pytest.mark.slow
def test_the_network_and_images_of_the_python_page(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files and commands of docs/python.md as they stand there, with fewer steps."""
    (usage, source), (settings,), (commands,) = examples(), examples("yaml"), examples("")
    network = re.search(r"^class Net.*?(?=^\S+ = )", usage, re.DOTALL | re.MULTILINE)
    assert network is not None
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "networks.py").write_text(f"from torch import nn\n{network[0]}")
    (package / "animals.py").write_text(source)
    (tmp_path / "animals.yaml").write_text(settings)
    for i, animal in enumerate(("lynx", "puma", "otter", "mole", "wolf", "hare")):
        (tmp_path / "animals" / animal).mkdir(parents=True)
        for number in range(20):
            image = np.random.default_rng([i, number]).integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
            (tmp_path / "animals" / animal / f"{number}.png").write_bytes(png(image))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    fewer = ["outer.steps=3", "data.eval.episodes=10", "data.eval.val_episodes=5", "train.cpus_per_worker=0.5", "train.device=cpu"]
    more = {"pack": ["--processes", "1"], "train": ["--address", address, "--json", *(f"--set={key}" for key in fewer)]}
    said = {}
    for line in commands.replace("\\\n", "").splitlines():
        program, verb, *arguments = shlex.split(line)
        monkeypatch.setattr("sys.argv", [program, verb, *arguments, *more.get(verb, [])])
        with pytest.raises(SystemExit) as ended:
            main()
        said[verb], err = capsys.readouterr()
        assert ended.value.code == 0, err
    assert said["predict"].count(".jpg") == 4
    answer = json.loads(said["train"].splitlines()[-1])
    assert (answer["steps"], answer["model"]) == (3, "models:/my_package.animals.photos-2way-1shot/1")
    assert Dataset("data/animals").manifest.preprocessing.resize == "center-crop"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-c", "from distmeta.cli import main; main()", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_line_from_training_to_prediction(packed: Path, tmp_path: Path) -> None:
    """As a user would: a local Ray of its own, two workers, MLflow's default place; then the commands it names."""
    assert not ray.is_initialized()
    settings = config(tmp_path, packed, "run").model_dump(mode="json")
    settings["outer"]["steps"] = 10
    settings["tracking"]["uri"] = None
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    trained = command("train", "run.yaml", "--json", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout.splitlines()[-1])
    assert result["model"] == "models:/patterns-3way-1shot/1"
    assert {rank for ranks in owners(result) for rank in ranks} == {0, 1}
    listed = command("models", "--json", cwd=tmp_path)
    assert [(row["aliases"], row["accuracy"]) for row in json.loads(listed.stdout)] == [(["champion"], result["test"]["accuracy"])]
    exported = command("inspect", str(packed), "--way", "3", "--export", "episode", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    ask = ["predict", "--model", result["model"], "--support", "episode/support", "--query"]
    predictions = json.loads(command(*ask, "episode/query", "--json", cwd=tmp_path).stdout)
    assert len(predictions) == 9
    table = command(*ask, "episode/query", cwd=tmp_path)
    assert all(prediction["file"] in table.stdout for prediction in predictions)
    refused = command(*ask, "nowhere", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        "distmeta: nowhere holds no image to classify",
        "  give a folder of images, or - and their paths on standard input",
    ]
    usage = command("train", "run.yaml", "--set", "outer.stepz=3", cwd=tmp_path)
    assert usage.returncode == 2
    assert usage.stderr.splitlines()[1] == "  nearest valid keys: outer.steps"
