"""MLflow goes away, answers late, or acts and does not answer: nothing waits for it, and afterwards it holds everything once."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import validation
from mlflow import MlflowClient
from mlflow_http import Flaky, flaky_server
from registered import config, finished_run
from test_run import config as run_config

from distmeta import cli
from distmeta.assembly.sync import conclude, sync
from distmeta.config import Config
from distmeta.errors import RegistryError, RunError, Unanswered
from distmeta.registry import store, tracking
from distmeta.scale.run import run
from distmeta.training.metrics_folder import MetricsWriter
from distmeta.training.run_folder import RunFolder

EACH = 5  # steps in a metrics file


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flaky]:
    with flaky_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def server(module_server: Flaky) -> Iterator[Flaky]:
    module_server.asked.clear()
    yield module_server
    module_server.faults.clear()
    module_server.latency_s = 0.0
    module_server.away = False


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that looks, and tries again, at once."""
    monkeypatch.setattr(tracking, "_EVERY_S", 0.01)
    monkeypatch.setattr(tracking, "_LONGEST_PAUSE_S", 0.02)


def began(folder: Path, server: Flaky) -> str:
    """A run that has just begun in MLflow, its folder without metrics."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config(folder, server.uri).to_yaml())
    return tracking.start_run(config(folder, server.uri), RunFolder(folder), {})


def write(folder: Path, after: int, attempt: int = 0) -> None:
    """The metrics file of the next steps; times differ between attempts, as they do when steps are repeated."""
    writer = MetricsWriter(RunFolder(folder).metrics, after)
    for step in range(after + 1, after + EACH + 1):
        writer.add({"step": step, "outer_lr": 0.1, "meta_loss": 1 / step, "time/adapt": step + attempt / 8, "validation": validation(0.5)})
    writer.flush(after + EACH)


def points(server: Flaky, run_id: str, steps: int) -> None:
    """MLflow holds each step of each metric once."""
    mlflow = MlflowClient(server.uri)
    for key in ("outer_lr", "meta_loss", "time_adapt", "validation/score"):
        found = [metric.step for metric in mlflow.get_metric_history(run_id, key)]
        assert found == list(range(1, steps + 1)), f"{key}: a step is missing, or there twice"


def test_mlflow_draws_what_changes_times_last_and_the_node_over_the_time_of_day() -> None:
    record = {"step": 3, "meta_loss": 0.5, "time/adapt": 0.25, "validation": validation(0.5)}
    record |= {"sampled_at": 1.7e9, "system/cpu_utilization_percentage": 7.0}
    metrics = {metric.key: metric for metric in tracking.metrics_of(record)}
    assert (metrics["system/cpu_utilization_percentage"].timestamp, metrics["meta_loss"].timestamp) == (1_700_000_000_000, 3)
    keys = set(metrics)
    assert "sampled_at" not in keys
    assert max(key for key in keys if "/" not in key) == "time_adapt"
    assert keys >= {
        "meta_loss",
        "time_adapt",
        "system/cpu_utilization_percentage",
        "validation/score",
        "validation/accuracy_inductive",
    }
    assert not any(key.startswith("time/") for key in keys)
    assert not keys & {f"validation/{name}" for name in ("way", "shot", "queries", "episodes", "seed", "inner_steps")}


def wait_for(done: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(4))
def test_each_step_is_there_once_whatever_fails_on_the_way(seed: int, server: Flaky, tmp_path: Path) -> None:
    chance = random.Random(seed)
    run_id = began(tmp_path / "run", server)
    kinds: list[str | None] = ["fail", "lost", None]
    server.faults = {call: chance.choices(kinds, k=12) for call in ("log-batch", "get-history")}
    with tracking.Mirror(server.uri, run_id, RunFolder(tmp_path / "run")):
        for number in range(8):
            write(tmp_path / "run", number * EACH)
            asked = len(server.asked)
            wait_for(lambda asked=asked: len(server.asked) > asked + chance.randrange(3))
            server.away = number in (4, 5)
    server.faults.clear()
    assert tracking.send_metrics(server.uri, run_id, RunFolder(tmp_path / "run")) == 8 * EACH
    points(server, run_id, 8 * EACH)
    assert tracking.send_metrics(server.uri, run_id, RunFolder(tmp_path / "run")) == 8 * EACH
    points(server, run_id, 8 * EACH)


@pytest.mark.usefixtures("hasty")
def test_what_mlflow_took_without_saying_so_is_not_sent_again(server: Flaky, tmp_path: Path) -> None:
    """The answer is lost, then a worker fails, and the steps are repeated with other times."""
    run_id = began(tmp_path / "run", server)
    server.faults = {"log-batch": ["lost", *["fail"] * 1000]}
    write(tmp_path / "run", 0)
    with tracking.Mirror(server.uri, run_id, RunFolder(tmp_path / "run")):
        wait_for(lambda: len(server.faults["log-batch"]) <= 1000)
        write(tmp_path / "run", 0, attempt=1)
        write(tmp_path / "run", EACH, attempt=1)
        server.faults.clear()
        wait_for(lambda: len(MlflowClient(server.uri).get_metric_history(run_id, "outer_lr")) == 2 * EACH)
    points(server, run_id, 2 * EACH)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_never_answers_is_not_waited_for(server: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setattr(tracking, "_END_S", 0.05)
    run_id = began(tmp_path / "run", server)
    write(tmp_path / "run", 0)
    server.faults = {"log-batch": ["hold"]}
    with tracking.Mirror(server.uri, run_id, RunFolder(tmp_path / "run")) as mirror:
        wait_for(lambda: not server.faults["log-batch"])
    assert mirror._thread.is_alive(), "it waited"
    server.released.set()
    assert tracking.send_metrics(server.uri, run_id, RunFolder(tmp_path / "run")) == EACH
    points(server, run_id, EACH)


@pytest.mark.slow
def test_a_server_that_answers_after_10_seconds_gets_everything(server: Flaky, tmp_path: Path) -> None:
    run_id = began(tmp_path / "run", server)
    server.latency_s = 10.0
    with tracking.Mirror(server.uri, run_id, RunFolder(tmp_path / "run")):
        for number in range(3):
            write(tmp_path / "run", number * EACH)  # never waits
        wait_for(lambda: sum("log-batch" in path for path in server.asked) == 2)
    assert tracking.send_metrics(server.uri, run_id, RunFolder(tmp_path / "run")) == 3 * EACH
    server.latency_s = 0.0
    points(server, run_id, 3 * EACH)
    assert sum("log-batch" in path for path in server.asked) == 2, "a late answer was taken for none"


def ended(folder: Path, server: Flaky) -> str:
    """A finished run whose metrics, figures, report and model MLflow lacks."""
    finished_run(folder, server.uri, test={"random_init": 0.3, "random_init_ci95": 0.01})
    (folder / "config.yaml").write_text(config(folder, server.uri).to_yaml())
    (folder / "dataset.json").write_text(json.dumps({"dataset": "patterns", "fingerprint": "f" * 64}))
    for number in range(2):
        write(folder, number * EACH)
    return json.loads((folder / "mlflow.json").read_text())["run_id"]


@pytest.mark.parametrize(
    ("call", "fault", "left"),
    [
        ("runs/log-batch", "lost", "metrics, the test's figures, report, end of the run, model"),
        ("runs/set-tag", "fail", "the test's figures, report, end of the run, model"),
        ("model-versions/create", "fail", "model"),
        ("model-versions/create", "lost", "model"),
        ("registered-models/alias", "lost", "model"),
    ],
)
def test_an_end_that_is_cut_off_anywhere_is_completed_by_sync_and_nothing_is_there_twice(
    call: str, fault: str, left: str, server: Flaky, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{call.replace('/', '-')}-{fault}"
    run_folder = tmp_path / "run"
    run_id = ended(run_folder, server)
    server.faults = {call: [fault]}
    with pytest.raises(Unanswered, match=rf"is complete in {run_folder}, but MLflow lacks: {left}\n.*distmeta sync {run_folder} sends"):
        conclude(RunFolder(run_folder), server.uri, name)
    assert (run_folder / "report.html").exists()
    held = (run_folder / "config.yaml").read_text().replace("model: null", f"model: {name}")
    (run_folder / "config.yaml").write_text(held)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sent = sync(RunFolder(run_folder))
    assert sent["model"] == f"models:/{name}/1"
    asked = len(server.asked)
    assert sync(RunFolder(run_folder)) == sent
    assert len(server.asked) == asked, "asked for more"
    points(server, run_id, 2 * EACH)
    mlflow = MlflowClient(server.uri)
    assert [version.run_id for version in mlflow.search_model_versions(f"name = '{name}'")] == [run_id]
    held_run = mlflow.get_run(run_id)
    assert (held_run.info.status, held_run.data.tags["best_step"]) == ("FINISHED", "10")
    assert [metric.step for metric in mlflow.get_metric_history(run_id, "test/accuracy")] == [10]
    assert "report.html" in {file.path for file in mlflow.list_artifacts(run_id)}


def test_a_run_that_has_not_ended_sends_its_metrics(
    server: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = began(tmp_path / "run", server)
    write(tmp_path / "run", 0)
    monkeypatch.setattr("sys.argv", ["distmeta", "sync", str(tmp_path / "run"), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run_id": run_id, "run_folder": str(tmp_path / "run"), "steps": EACH, "model": None}
    assert err.endswith("the run has not ended; distmeta train CONFIG --resume continues it\n")
    points(server, run_id, EACH)


def test_what_cannot_be_synced_is_refused(server: Flaky, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent holds no run: .*\ngive the run_folder of a run"):
        sync(RunFolder(tmp_path / "absent"))
    began(tmp_path / "run", server)
    record = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    (tmp_path / "run" / "mlflow.json").write_text(json.dumps(record | {"run_id": "0" * 32}))
    with pytest.raises(RegistryError, match="not found"):
        sync(RunFolder(tmp_path / "run"), server.uri)
    (tmp_path / "run" / "mlflow.json").unlink()
    with pytest.raises(RunError, match=r"run has no MLflow run: .*\nstart it: distmeta train CONFIG --resume"):
        sync(RunFolder(tmp_path / "run"))
    for broken in ("", "[]", "{}", json.dumps({"run_id": record["run_id"]})):
        (tmp_path / "run" / "mlflow.json").write_text(broken)
        with pytest.raises(RunError, match="has no MLflow run"):
            sync(RunFolder(tmp_path / "run"))
    swept = config(tmp_path / "run", server.uri).model_dump() | {"sweep": {"space": {"learner.inner_lr": {"choice": [0.1, 0.2]}}}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(swept))
    with pytest.raises(RunError, match=r"run holds a sweep, not a run\ngive one of its trials: .*run/trials/"):
        sync(RunFolder(tmp_path / "run"))


def test_credentials_come_from_the_environment(server: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began(tmp_path / "run", server)
    assert tracking.recorded_uri(RunFolder(tmp_path / "run")) == server.uri
    with_password = server.uri.replace("//", "//me:secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
    assert tracking.recorded_uri(RunFolder(tmp_path / "run")) == with_password
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking.recorded_uri(RunFolder(tmp_path / "run")) == server.uri


def away(made: Config, server: Flaky) -> Config:
    return made.model_copy(update={"tracking": made.tracking.model_copy(update={"uri": server.uri})})


def test_a_run_is_refused_while_mlflow_is_away_before_anything_is_launched(server: Flaky, packed: Path, tmp_path: Path) -> None:
    server.away = True
    made = away(run_config(tmp_path, packed, "new"), server)
    with pytest.raises(Unanswered, match=rf"MLflow at {server.uri}: .*\ncheck tracking.uri"):
        run(made, address="nowhere:1")  # it would be another error
    assert not Path(made.run_folder).exists()


def test_a_run_that_mlflow_has_begins_again_without_it(server: Flaky, tmp_path: Path) -> None:
    run_id = began(tmp_path / "run", server)
    server.away = True
    made: Any = config(tmp_path / "run", server.uri)
    assert tracking.start_run(made, RunFolder(tmp_path / "run"), {}) == run_id
    server.away = False
    MlflowClient(server.uri).delete_run(run_id)
    with pytest.raises(RegistryError, match="deleted"):
        tracking.start_run(made, RunFolder(tmp_path / "run"), {})


def test_a_server_that_drips_for_ever_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LONGEST_S", 0.2)
    monkeypatch.setattr(store, "check", lambda uri: None)
    with (
        pytest.raises(Unanswered, match=r"MLflow at http://127.0.0.1:9: no whole answer within 0 s"),
        tracking.answers("http://127.0.0.1:9"),
    ):
        threading.Event().wait(20)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
