"""The registry holds what was put in: versions never change, the best is champion whoever publishes at once, tags of others are data."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from registered import finished_run, publish

from distmeta import cli
from distmeta.errors import RegistryError, RunError, Unanswered
from distmeta.registry import champion, listing, store, tracking, versions


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def files(version: Any) -> dict[str, bytes]:
    source = Path(version.source.removeprefix("file://"))
    return {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_a_version_stays_as_it_was_when_its_run_is_published_again(uri: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", uri)
    client = MlflowClient(uri)
    versions.publish(uri, run, "again")
    before = files(client.get_model_version("again", "1"))
    result = json.loads((run.path / "result.json").read_text())
    (run.path / "result.json").write_text(json.dumps(result | {"test": result["test"] | {"accuracy": 0.99}}))
    versions.publish(uri, run, "again")
    assert files(client.get_model_version("again", "1")) == before
    assert files(client.get_model_version("again", "2")) != before
    mlflow.set_tracking_uri(uri)
    try:
        for number in (1, 2):
            versions.load_model(uri, f"models:/again/{number}")
            mlflow.pyfunc.load_model(f"models:/again/{number}")
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("file", ["meta_params.safetensors", "model.json"])
def test_a_flipped_byte_in_best_is_not_published(file: str, uri: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", uri)
    content = bytearray((run.best.path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run.best.path / file).write_bytes(content)
    with pytest.raises(RunError, match="is damaged: its files are not those"):
        versions.publish(uri, run, "flipped")
    assert not [row for row in listing.list_models(uri) if row["uri"].startswith("models:/flipped/")]


@pytest.mark.parametrize("scores", [(0.5, 0.6), (0.6, 0.5), (0.4, 0.6, 0.5)])
def test_of_overlapping_publishes_the_best_is_champion(
    scores: tuple[float, ...], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody has made its version before anybody looks who is champion, and the worse ones set the alias last."""
    name = "overlap-" + "-".join(str(score)[2:] for score in scores)
    runs = [finished_run(tmp_path / str(i), uri, score) for i, score in enumerate(scores)]
    made, taken = threading.Barrier(len(scores)), threading.Barrier(len(scores))
    waited: set[int] = set()
    original = champion.versions_of

    def look(client: MlflowClient, of: str | None = None) -> Any:
        first = threading.get_ident() not in waited
        if first:
            waited.add(threading.get_ident())
            made.wait(300)
        found = list(original(client, of))
        if first:  # all have seen the same; now they act one after another
            taken.wait(300)
        return found

    monkeypatch.setattr(champion, "versions_of", look)
    one_at_a_time, make = threading.Lock(), versions._add_version

    def add(*arguments: Any) -> Any:
        with one_at_a_time:  # MLflow's saving is not made for threads
            return make(*arguments)

    monkeypatch.setattr(versions, "_add_version", add)
    with ThreadPoolExecutor(len(scores)) as pool:
        published = list(pool.map(lambda run: versions.publish(uri, run, name), runs))
    best = published[max(range(len(scores)), key=lambda i: scores[i])]
    assert str(MlflowClient(uri).get_registered_model(name).aliases["champion"]) == best.version
    assert best.champion


def test_a_champion_that_somebody_chose_is_beaten_by_what_is_better_alone(uri: str, tmp_path: Path) -> None:
    for i, score in enumerate((0.5, 0.7)):
        publish(uri, tmp_path / str(i), "chosen", score)
    versions.promote(uri, "models:/chosen/1", "champion")
    third = publish(uri, tmp_path / "2", "chosen", 0.4)
    assert (third.champion, third.held_by) == (False, "1"), "version 2 is better, but somebody preferred 1"
    assert publish(uri, tmp_path / "3", "chosen", 0.6).champion


def test_publish_says_who_is_champion(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for score, said in ((0.6, "published models:/won/1, the champion"), (0.5, "published models:/won/2; the champion is version 1")):
        run = finished_run(tmp_path / str(score), uri, score)
        monkeypatch.setattr("sys.argv", ["distmeta", "publish", str(run), "--name", "won", "--tracking-uri", uri])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert said in capsys.readouterr().err


def test_versions_by_others_and_odd_tags_do_not_break_the_list(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(uri, tmp_path / "run", "odd")
    client = MlflowClient(uri)
    run_id = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    client.create_registered_model("it's theirs")
    odd: list[dict[str, str]] = [
        {},
        {"accuracy": "NaN", "way": "five", "shot": "1e99"},
        {"accuracy": "{}", "ci95": "[1]", "mse_by_step": '{"x": 1}'},
        {"mse_by_step": "3", "validation_score": "much"},
        {"dataset": "\x1b[2J\x1b]0;owned\x07", "learner": "\u202eevil"},
        {"mse_by_step": '{"0": 1, "1": 0.5}'},
    ]
    for tags in odd:
        client.create_model_version("it's theirs", source, run_id, tags=tags | {"sha256:model.json": "0" * 64})
    client.create_model_version("it's theirs", source, run_id)
    rows = listing.matching(listing.list_models(uri), "it's*", None)
    assert len(rows) == len(odd), "the one without our tags is somebody else's"
    assert {row["way"] for row in rows} == {None}
    for form in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["distmeta", "models", "--tracking-uri", uri, *form])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        out, _ = capsys.readouterr()
        assert "it's theirs" in out
        assert "\x1b" not in out
        assert "\u202e" not in out
    client.set_registered_model_alias("odd", "champion", 1)
    client.set_model_version_tag("odd", "1", "validation_score", "much")
    assert not publish(uri, tmp_path / "next", "odd", 0.9).champion, "not comparable is not better"


def test_a_registry_of_more_than_a_page_is_listed_whole(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGE", 3)
    for i in range(2):
        publish(uri, tmp_path / str(i), f"page-{i}")
    client = MlflowClient(uri)
    for i in range(8):
        client.create_registered_model(f"aaa-{i}")
    assert len(list(listing.registered_models(client))) >= 10
    assert {f"models:/page-{i}/1" for i in range(2)} <= {row["uri"] for row in listing.list_models(uri)}


def test_a_version_that_a_server_names_as_a_path_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(uri, tmp_path / "run", "server")
    original = MlflowClient.get_model_version

    def lie(self: MlflowClient, name: str, version: str) -> Any:
        found = original(self, name, version)
        found._version = "../../../tmp/x"
        return found

    monkeypatch.setattr(MlflowClient, "get_model_version", lie)
    with pytest.raises(RegistryError, match=r"MLflow answered with version '\.\./\.\./\.\./tmp/x' of 'server'"):
        versions.look_up(uri, "models:/server/1")


MAKES = "import sys; from distmeta.registry.listing import list_models; print(len(list_models(sys.argv[1])))"


def test_three_commands_that_meet_a_new_database_all_end_well(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKES, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    commands = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in commands:
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "0\n"), errors
    assert not [path for path in tmp_path.iterdir() if path.name != "mlflow.db"]


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    new = f"sqlite:///{tmp_path / 'mlflow.db'}"
    listing.list_models(new)
    store._checked.discard(new)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(2, other.rollback).start()
        assert listing.list_models(new) == []


def test_a_database_that_stays_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUSY_S", 0.5)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unanswered, match="in use for 0 s by another command\ntry again"):
            listing.list_models(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.parametrize("kind", ["not a database", "a folder that is a file", "a folder"])
def test_a_database_that_cannot_be_used_is_named_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_text("no database at all" * 100)
    before = time.monotonic()
    at = path / "mlflow.db" if kind == "a folder that is a file" else path
    with pytest.raises(RegistryError, match=r"mlflow.db cannot be used: .*\nwork in a folder that can be written, or"):
        listing.list_models(f"sqlite:///{at}")
    assert time.monotonic() - before < 60, "MLflow itself tries for two minutes"


def test_a_deleted_experiment_is_named_and_the_remedy_works(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    identity = tracking.check_experiment(uri, "mine")
    MlflowClient(uri).delete_experiment(identity)
    with pytest.raises(RegistryError, match=rf"experiment mine at .* is deleted\nmlflow experiments restore --experiment-id {identity}"):
        tracking.check_experiment(uri, "mine")
    assert tracking.check_experiment(uri, "another") != identity
    MlflowClient(uri).restore_experiment(identity)
    assert tracking.check_experiment(uri, "mine") == identity


def test_artifacts_on_a_path_of_the_servers_machine_are_refused(tmp_path: Path) -> None:
    assert store.unwritable("http://mlflow.example:5000", "/srv/mlflow/artifacts") == "it is a path of mlflow.example"
    assert store.unwritable("http://mlflow.example:5000", "mlflow-artifacts:/1") == ""
    assert store.unwritable("http://mlflow.example:5000", "s3://bucket/x") == ""
    assert store.unwritable("http://mlflow.example:5000", tmp_path.as_uri()) == "", "shared storage"
    assert store.unwritable("http://127.0.0.1:5000", (tmp_path / "new" / "folder").as_uri()) == ""
    (tmp_path / "file").write_text("")
    assert store.unwritable("http://127.0.0.1:5000", (tmp_path / "file" / "x").as_uri())
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_to_begin_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def fail(*_: object, **__: object) -> None:
        raise OSError("no room for artifacts")

    monkeypatch.setattr(MlflowClient, "log_text", fail)
    with pytest.raises(RegistryError, match="no room for artifacts"):
        finished_run(tmp_path / "run", uri)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("distmeta").experiment_id])
    assert run.info.status == "FAILED"
