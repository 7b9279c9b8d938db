"""A run or sweep that is refused, interrupted or fails leaves what it found as it was, says what it waits for, and ends in MLflow."""

import ast
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from registered import finished_run
from safetensors.torch import save_file
from test_run import config

import distmeta
from distmeta.assembly.origins import fetch_models
from distmeta.assembly.run import Run
from distmeta.config import Change, Config, change_of, validate, with_values
from distmeta.errors import ClusterError, ConfigError, RegistryError
from distmeta.registry import tracking
from distmeta.scale import places
from distmeta.scale import run as runs
from distmeta.scale.progress import STARTING
from distmeta.sweep import driver
from distmeta.training.run_folder import RunFolder


class Refused(Exception):
    pass


@pytest.mark.parametrize("existed", [True, False])
def test_a_folder_of_the_users_outlives_a_run_that_was_refused(existed: bool, packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path, packed, "mine")
    folder = Path(made.run_folder)
    if existed:
        folder.mkdir()

    def begin() -> None:
        (folder / "log.txt").write_text("begun")
        (folder / "initial").mkdir()
        raise Refused

    with pytest.raises(Refused), runs.opened(Run.of(made), resume=False):
        begin()
    assert folder.exists() == existed
    assert not existed or list(folder.iterdir()) == []


def test_a_deleted_experiment_is_named_before_ray_starts(packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path, packed, "mine")
    assert made.tracking.uri is not None
    MlflowClient(made.tracking.uri).delete_experiment(tracking.check_experiment(made.tracking.uri, "distmeta"))
    with pytest.raises(RegistryError, match=r"experiment distmeta at .* is deleted"):
        runs.run(made, address="nowhere:1")  # Ray's refusal would be another error
    assert not Path(made.run_folder).exists()


def test_a_run_for_which_ray_does_not_start_is_not_left_running(packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path, packed, "mine")
    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        runs.run(made, address="127.0.0.1:9")
    assert made.tracking.uri is not None
    assert statuses(made.tracking.uri) == []


def statuses(uri: str) -> list[str]:
    client = MlflowClient(uri)
    return [run.info.status for run in client.search_runs([each.experiment_id for each in client.search_experiments()])]


@pytest.mark.parametrize("where", ["trials", "winner", "pictures", "promotion"])
def test_a_sweep_that_fails_anywhere_leaves_no_run_in_mlflow_running(
    where: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = validate(config(tmp_path, packed, "sweep").model_dump() | {"sweep": {"space": {"outer.lr": {"choice": [0.1]}}}}, "test")
    assert made.tracking.uri is not None

    def fail(*_: object, **__: object) -> None:
        raise ClusterError("it fails", "try again")

    def trials(this: Run, *_: object) -> None:
        this.write_description()
        tracking.start_run(this.config, this.folder, this.tags())
        if where == "trials":
            fail()

    monkeypatch.setattr(driver, "_run_trials", trials)
    monkeypatch.setattr(driver, "_winner", fail if where == "winner" else lambda records: records.trials)
    monkeypatch.setattr(driver, "_describe", fail if where == "pictures" else lambda *_: {})
    monkeypatch.setattr(driver, "_conclude", fail)
    with pytest.raises(ClusterError, match="it fails"):
        driver.sweep(made)
    assert statuses(made.tracking.uri) == ["FAILED"]


@pytest.mark.parametrize(("sent", "left"), [(False, "KILLED"), (True, "FINISHED")])
def test_a_run_that_is_stopped_while_it_is_published_is_not_left_running(
    sent: bool, left: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow calls finished stays so."""
    made = config(tmp_path, packed, "mine")
    assert made.tracking.uri is not None

    def trained(this: Run, *_: object) -> None:
        this.write_description()
        tracking.start_run(this.config, this.folder, this.tags())

    def stopped(folder: RunFolder, uri: str, *_: object) -> None:
        if sent:
            tracking.end_run(uri, folder.read_mlflow()["run_id"], "FINISHED")
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_train", trained)
    monkeypatch.setattr(runs, "conclude", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run(made)
    assert statuses(made.tracking.uri) == [left]


ENDED = """
import os, signal, sys
from pathlib import Path
from distmeta import terminal
terminal.prepare()
from distmeta.registry import tracking
from distmeta.training.run_folder import RunFolder
with tracking.ended(sys.argv[1], RunFolder(Path(sys.argv[2]))):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_a_command_that_is_told_to_end_ends_its_run_in_mlflow(tmp_path: Path) -> None:
    """SIGTERM, as `jobs stop` and Slurm send it, at any time: while Ray starts, a model is published or a sweep's winner is tested."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = finished_run(tmp_path / "run", uri)
    done = subprocess.run([sys.executable, "-c", ENDED, uri, str(run.path)], capture_output=True, text=True, timeout=300)
    assert "KeyboardInterrupt" in done.stderr
    assert statuses(uri) == ["KILLED"]


def test_connecting_to_ray_keeps_the_way_in_which_sigterm_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from distmeta.scale import cluster

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cluster.ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="x"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with cluster.connected(None):
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_says_what_it_waits_for_and_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(job: str, placed: bool) -> places.Group:
        return places.Group(id=job, job=job, controller="", orphaned=False, placed=placed, amounts=Counter({"CPU": 2.0}))

    found: list[places.Group] = []
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(places, "groups", lambda: found)
    monkeypatch.setattr(places, "own_job", lambda: "01")
    monkeypatch.setattr(places, "jobs", lambda: [{"JobID": "02", "DriverPid": 7, "DriverIPAddress": "host"}])
    phases = iter([STARTING, STARTING, STARTING, "training", "training"])
    chronicle: Any = SimpleNamespace(follow=lambda: {"phase": next(phases), "step": 0}, keep_logs=lambda: None)

    def watch(fit: Any, look: Any, stop: Any) -> None:
        for groups in ([], [group("01", placed=False), group("02", placed=True)], [group("01", placed=True)], []):
            found[:] = groups
            look()

    monkeypatch.setattr(runs, "watch", watch)
    display: Any = SimpleNamespace(show=shown.append, say=shown.append)
    runs._watch(SimpleNamespace(), None, display, chronicle, lambda: runs._awaited({"CPU": 1.0}, 2))  # type: ignore[arg-type]
    assert [status["phase"] for status in shown] == [
        f"{STARTING}: waits for Ray Train",
        f"{STARTING}: waits for 2 CPU (job 02 (process 7 on host) holds 2 CPU)",
        f"{STARTING}: waits for its workers to start",
        "training",
    ]


def remedy_of(module: str, words: str) -> str:
    """The remedy in this module of the package that holds these words."""
    tree = ast.parse((Path(distmeta.__file__).parent / module).read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    (found,) = [text for text in texts if words in text]
    return found


def begun(tmp_path: Path, packed: Path) -> Config:
    made = config(tmp_path, packed, "run")
    Path(made.run_folder).mkdir()
    Run.of(made).write_description()
    return made


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("training/loop.py", "lower learner.inner_lr"),
        ("data/reader.py", "raise data.max_bad_fraction"),
        ("registry/versions.py", "train again with a"),
    ],
)
def test_what_a_remedy_wants_changed_is_taken_as_it_says(module: str, words: str, packed: Path, tmp_path: Path) -> None:
    """Either the same folder is resumed with the changed key, or the remedy asks for a new run_folder."""
    made, remedy = begun(tmp_path, packed), remedy_of(module, words)
    keys = re.findall(r"\b((?:learner|outer|data)\.[a-z_]+)", remedy)
    assert keys
    for key in keys:
        changed = with_values(made, {key: 0.05}, "test")
        if "--set run_folder=NEW" in remedy:
            assert "--resume" not in remedy
            runs.check_run_folder(Run.of(with_values(changed, {"run_folder": str(tmp_path / "new")}, "test")), resume=False)
            with pytest.raises(ConfigError, match=f"holds another run: .*{key}"):
                runs.check_run_folder(Run.of(changed), resume=True)
        else:
            assert "--resume" in remedy
            assert change_of(key) is Change.ON_RESUME
            runs.check_run_folder(Run.of(changed), resume=True)


def test_weights_that_are_not_finite_are_no_beginning(packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path, packed, "run")
    weights = {name: value.clone().contiguous() for name, value in Run.of(made).learner.initial_params().items()}
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "w.safetensors")
    this = Run.of(with_values(made, {"init_from": str(tmp_path / "w.safetensors")}, "test"))
    with pytest.raises(ConfigError, match=r"init_from=.*w.safetensors holds values that are not finite \(NaN or infinity\)"):
        fetch_models(this, "")


def test_ray_does_not_upload_the_working_folder_under_uv_run() -> None:
    code = "import distmeta.scale.cluster, ray, ray._private.ray_constants as c; print(c.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


def test_both_ways_out_of_a_folder_that_holds_a_run_work(packed: Path, tmp_path: Path) -> None:
    made = begun(tmp_path, packed)
    with pytest.raises(ConfigError, match=r"holds a run already, .*\ncontinue it with --resume, or give --set run_folder=NEW"):
        runs.check_run_folder(Run.of(made), resume=False)
    runs.check_run_folder(Run.of(made), resume=True)
    runs.check_run_folder(Run.of(with_values(made, {"run_folder": str(tmp_path / "NEW")}, "test")), resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds other files\ngive --set run_folder=NEW"):
        runs.check_run_folder(Run.of(with_values(made, {"run_folder": str(tmp_path / "mine")}, "test")), resume=False)


def test_a_folder_of_several_seeds_is_resumed_as_the_remedy_says(packed: Path, tmp_path: Path) -> None:
    made = begun(tmp_path, packed)
    RunFolder(made.run_folder).write_seeds({"seeds": [0, 3]})
    with pytest.raises(ConfigError, match=r"holds runs of seeds 0,3\nadd --seeds 0,3, or give --set run_folder=NEW"):
        runs.check_run_folder(Run.of(made), resume=True)
    runs.check_run_folder(Run.of(made), resume=True, several_seeds=True)


@pytest.mark.parametrize(
    "settings",
    [{}, {"search": "pbt", "trials": 4, "grace": 7}, {"grace": 99}, {"scheduler": "none"}],
    ids=["no validation before the last step", "a generation that ends without one", "a grace beyond the last step", "nothing wrong"],
)
def test_a_sweep_whose_remedies_are_followed_is_taken(settings: dict[str, Any], packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path, packed, "sweep", validate_every=40 if not settings else 10)
    content = made.model_dump() | {"sweep": {"space": {"outer.lr": {"uniform": [0.1, 0.2]}}} | settings}
    for _ in range(4):
        try:
            driver._as_sweep(validate(content, "test"))
            return
        except ConfigError as error:
            for key, value in re.findall(
                r"(train\.validate_every|sweep\.grace|sweep\.scheduler)=?(?: to a multiple of )?(\w+)", error.remedy
            ):
                section, last = key.split(".")
                content[section] = content[section] | {last: int(value) if value.isdigit() else value}
                break
            if "set both below" in error.remedy:
                content["sweep"] = content["sweep"] | {"grace": None}
    pytest.fail(f"its remedies lead nowhere: {content['sweep']}, {content['train']}")
