"""Publishing, listing, promoting, comparing and looking up, against a real MLflow store in SQLite."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from registered import DESCRIPTION, PROTONET, by_episode, finished_run, publish
from scipy.stats import ttest_rel

from distmeta import cli
from distmeta.errors import ConfigError, RegistryError, RunError
from distmeta.learners.params import weights_sha256
from distmeta.registry import listing, store, versions
from distmeta.registry.compare import compare, verdict
from distmeta.training.sealed import seal


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def published(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(uri, tmp_path_factory.mktemp("run"), "patterns-3way-1shot").uri


def source_of(uri: str, published: versions.Published) -> Path:
    return Path(MlflowClient(uri).get_model_version(published.name, published.version).source.removeprefix("file://"))


def test_champion_goes_to_the_best_inductive_validation_accuracy(uri: str, tmp_path: Path) -> None:
    published = [publish(uri, tmp_path / str(i), "race", accuracy) for i, accuracy in enumerate((0.5, 0.4, 0.6, 0.6))]
    assert [p.champion for p in published] == [True, False, True, False]
    assert MlflowClient(uri).get_model_version_by_alias("race", "champion").version == int(published[2].version)
    row = next(row for row in listing.list_models(uri) if row["uri"] == f"models:/race/{published[2].version}")
    test = json.loads((tmp_path / "2" / "result.json").read_text())["test"]
    assert (row["aliases"], row["accuracy"], row["ci95"]) == (["champion"], test["accuracy"], 0.01)


def test_a_published_address_leads_to_the_same_version_for_ever(uri: str, tmp_path: Path) -> None:
    """Each of these was the champion when it was published."""
    published = [publish(uri, tmp_path / str(i), "address", accuracy) for i, accuracy in enumerate((0.4, 0.5, 0.6))]
    assert all(one.champion for one in published)
    assert [versions.look_up(uri, one.uri).version for one in published] == [1, 2, 3]


def test_a_relative_address_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow alone would go on with the database of the folder where the process first used this address."""
    names = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        published = publish("sqlite:///relative.db", tmp_path / folder / "run", folder)
        assert versions.load_model("sqlite:///relative.db", published.uri)
        names.append([row["uri"] for row in listing.list_models("sqlite:///relative.db")])
    assert names == [["models:/here/1"], ["models:/there/1"]]


def test_an_address_that_mlflow_would_read_otherwise_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "why?").mkdir()
    (tmp_path / "b%20c").mkdir()
    assert store.absolute(f"sqlite:///{tmp_path}/x.db?timeout=5") == f"sqlite:///{tmp_path}/x.db?timeout=5"
    for uri in ("sqlite:///file:x.db?uri=true", "sqlite:///:memory:", "http://127.0.0.1:5000"):
        assert store.absolute(uri) == uri
    for folder in ("why?", "b%20c"):
        monkeypatch.chdir(tmp_path / folder)
        assert store.absolute("sqlite:///x.db") == "sqlite:///x.db"


def test_a_name_belongs_to_one_dataset_and_task(uri: str, published: str) -> None:
    name = "patterns-3way-1shot"
    versions.check_name(uri, name, DESCRIPTION)
    versions.check_name(uri, "fresh", DESCRIPTION | {"fingerprint": "0" * 64})
    with pytest.raises(
        ConfigError, match=r"holds models with fingerprint ffffffffffff; this run has fingerprint 000000000000\nchoose another"
    ):
        versions.check_name(uri, name, DESCRIPTION | {"fingerprint": "0" * 64})
    with pytest.raises(ConfigError, match="holds models with way 3; this run has way 5"):
        versions.check_name(uri, name, DESCRIPTION | {"task": {"way": 5, "shot": 1, "queries": 15}})
    for bad in ("", "../x", "a/b", "a b", "x" * 200, "-x'", "<b>", "é"):
        with pytest.raises(ConfigError, match="is not a model name"):
            versions.check_name(uri, bad, DESCRIPTION)


def test_a_run_is_published_again_under_another_name_and_promoted(uri: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", uri)
    first, second = (versions.publish(uri, run, "again", alias) for alias in (None, "candidate"))
    assert (first.champion, second.champion) == (True, False)
    held = MlflowClient(uri).get_registered_model("again").aliases
    assert {alias: int(number) for alias, number in held.items()} == {"champion": 1, "candidate": 2}
    assert versions.promote(uri, "models:/again@candidate", "champion") == "models:/again@champion"
    assert versions.look_up(uri, "models:/again@champion").version == int(second.version)
    for alias in ("", "latest", "v3", "a b"):
        with pytest.raises(ConfigError, match="is not an alias"):
            versions.promote(uri, "models:/again/1", alias)
    with pytest.raises(RegistryError, match="no version 9"):
        versions.promote(uri, "models:/again/9", "champion")
    held = (run.best.path / "model.json").read_text()
    (run.best.path / "model.json").write_text(held.replace('"validation_score"', '"of another version"'))
    with pytest.raises(RunError, match=r"is damaged: its files are not those that its checkpoint.json names\ncopy the run"):
        versions.publish(uri, run)
    seal(run.best.path)
    with pytest.raises(RunError, match="holds no finished run: it lacks 'validation_score'"):
        versions.publish(uri, run)
    (run.path / "result.json").unlink()
    with pytest.raises(RunError, match=r"holds no finished run: .*result.json"):
        versions.publish(uri, run)


def test_the_table_can_be_filtered(uri: str, tmp_path: Path) -> None:
    publish(uri, tmp_path / "a", "filter-a")
    publish(uri, tmp_path / "b", "filter-b", description=PROTONET)
    rows = listing.list_models(uri)

    def found(name: str | None = "filter-*", alias: str | None = None, **equal: Any) -> list[str]:
        return sorted(row["uri"] for row in listing.matching(rows, name, alias, **equal))

    assert found() == ["models:/filter-a/1", "models:/filter-b/1"]
    assert found(learner="protonet") == ["models:/filter-b/1"]
    assert found(learner="protonet", way=5) == []
    assert found(dataset="patterns", alias="champion", shot=1) == found()
    assert found(alias="candidate") == []
    assert len(found(name=None)) == len(rows)


@pytest.mark.parametrize(
    ("model_uri", "error", "message"),
    [
        ("models:/nobody@champion", RegistryError, r"no model 'nobody' is registered \(there are: .*patterns-3way-1shot"),
        ("models:/patterns-3way-1shot@winner", RegistryError, r"no alias 'winner' \(it has: champion\)"),
        ("models:/patterns-3way-1shot/77", RegistryError, r"no version 77"),
        ("patterns", ConfigError, r"is not a registry address\nwrite models:/NAME@ALIAS"),
        ("runs:/0123456789abcdef/model", RegistryError, r"no model of an MLflow run 0123456789abcdef is registered\n.*publish RUN_FOLDER"),
        ("runs:/0123456789abcdef", ConfigError, r"is not a registry address\n.*or runs:/RUN_ID/model"),
        ("runs:/0123456789abcdef/../model", ConfigError, "is not a registry address"),
        ("runs:/' OR name = 'patterns-3way-1shot/model", ConfigError, "is not a registry address"),
    ],
)
def test_names_that_are_not_there(model_uri: str, error: type[Exception], message: str, uri: str, published: str) -> None:
    with pytest.raises(error, match=message):
        versions.load_model(uri, model_uri)


def test_a_model_is_found_by_its_run(uri: str, tmp_path: Path) -> None:
    """The version that was published last, with its hashes; a version that somebody else made of the run's files is not looked at."""
    run = finished_run(tmp_path / "run", uri)
    run_id = run.read_mlflow()["run_id"]
    address = f"runs:/{run_id}/model"
    with pytest.raises(RegistryError, match=f"no model of an MLflow run {run_id} is registered"):
        versions.load_model(uri, address)
    versions.publish(uri, run, "by-run")
    published = versions.publish(uri, run, "by-run")
    client = MlflowClient(uri)
    client.create_registered_model("of-somebody-else")
    client.create_model_version("of-somebody-else", f"{client.get_run(run_id).info.artifact_uri}/model", run_id)
    found = versions.look_up(uri, address)
    assert (found.name, str(found.version)) == ("by-run", published.version)
    by_run, by_name = (versions.load_model(uri, name).meta_params for name in (address, published.uri))
    assert weights_sha256(by_run) == weights_sha256(by_name)
    assert compare(uri, address, published.uri)["difference"] == 0
    assert versions.promote(uri, address, "found") == "models:/by-run@found"
    (source_of(uri, published) / "artifacts" / "model.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"model.json of runs:/.* is not what was published"):
        versions.load_model(uri, address)


@pytest.mark.parametrize("file", ["meta_params.safetensors", "model.json", "test_episodes.json"])
def test_a_changed_artifact_is_refused(file: str, uri: str, tmp_path: Path) -> None:
    published = publish(uri, tmp_path / "run", f"tampered-{file[:4]}")
    changed = source_of(uri, published) / "artifacts" / file
    content = bytearray(changed.read_bytes())
    content[-2] ^= 1
    changed.write_bytes(content)
    with pytest.raises(RegistryError, match=rf"{file} of .* is not what was published.*\npublish it again: distmeta publish"):
        versions.load_model(uri, published.uri)


class _Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_nothing_received_is_executed(uri: str, tmp_path: Path) -> None:
    published = publish(uri, tmp_path / "run", "trapped")
    source, mark = source_of(uri, published), tmp_path / "mark"
    assert not [path for path in source.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")], "a pickle was published"
    for code in source.rglob("*.py"):
        code.write_text(f"open({str(mark)!r}, 'w')")
    for name in ("python_model.pkl", "artifacts/model.pkl", "code/distmeta/errors.pkl"):
        (source / name).write_bytes(pickle.dumps(_Trap(mark)))
    assert pickle.loads((source / "python_model.pkl").read_bytes()) is None
    assert mark.exists(), "the trap does not work"
    mark.unlink()
    versions.load_model(uri, published.uri)
    compare(uri, published.uri, published.uri)
    assert not mark.exists()


def test_a_model_of_somebody_else_is_refused(uri: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", uri)
    run_id = run.read_mlflow()["run_id"]
    client = MlflowClient(uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", f"{client.get_run(run_id).info.artifact_uri}/model", run_id)
    with pytest.raises(RegistryError, match="models:/foreign/1 was not published by distmeta"):
        versions.load_model(uri, "models:/foreign/1")
    assert not listing.matching(listing.list_models(uri), "foreign", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": {"name": "future"}}, r"uses learner 'future', which is not part of distmeta .*\nif it is your own class"),
        ({"model": DESCRIPTION["model"] | {"name": "os.system"}}, r"uses network 'os.system', which is not part of distmeta"),
        ({"learner": DESCRIPTION["learner"] | {"warp": 9}}, r"cannot be read: .*warp.*\nwas it published by a newer distmeta"),
        (
            {"model": DESCRIPTION["model"] | {"filters": 8}},
            r"the weights are not those of a Conv4 as it is now: \S+ is \(4, .*\) instead of \(8, ",
        ),
    ],
)
def test_what_a_newer_version_published_is_refused(change: dict[str, Any], message: str, uri: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", uri)
    best = run.best.path / "model.json"
    best.write_text(json.dumps(json.loads(best.read_text()) | change))
    seal(run.best.path)
    with pytest.raises(RegistryError, match=message):
        versions.load_model(uri, versions.publish(uri, run, "from-the-future").uri)


def test_compare_is_scipys_paired_test(uri: str, tmp_path: Path) -> None:
    figures = by_episode(0.6, seed=1), by_episode(0.7, seed=2)
    a, b = (publish(uri, tmp_path / str(i), "compared", figures=rows) for i, rows in enumerate(figures))
    addresses = [f"models:/compared/{version.version}" for version in (a, b)]
    found = compare(uri, *addresses)
    inductive = [np.array(rows)[:, 1] for rows in figures]
    test = ttest_rel(inductive[1], inductive[0])
    assert found["difference"] == pytest.approx(np.mean(inductive[1] - inductive[0]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found["p"] == pytest.approx(test.pvalue)
    assert found["episodes"] == 50
    assert verdict(found).startswith("B is better than A over 50 paired episodes: +")
    back = compare(uri, *reversed(addresses))
    assert back["difference"] == pytest.approx(-found["difference"])
    assert verdict(back).startswith("B is worse than A")
    same = compare(uri, addresses[0], addresses[0])
    assert (same["difference"], same["p"]) == (0, 1)
    assert verdict(same).startswith("no difference is shown")


def test_compare_refuses_other_episodes(uri: str, published: str, tmp_path: Path) -> None:
    other = publish(uri, tmp_path / "run", "other-seed", test={"seed": 7})
    with pytest.raises(RegistryError, match="were not tested on the same episodes: seed 0 and 7"):
        compare(uri, published, other.uri)


def test_compare_counts_a_smaller_error_as_better(uri: str, tmp_path: Path) -> None:
    functions = {"model": {"name": "mlp", "input_shape": [1], "outputs": 1, "norm": "none"}, "preprocessing": None}
    for i, error in enumerate((3.0, 2.0)):
        rows = (error + np.random.default_rng(i).random((40, 3))).tolist()
        mse = {str(step): value for step, value in enumerate(np.mean(rows, 0).tolist())}
        run = finished_run(tmp_path / str(i), uri, figures=rows, description=DESCRIPTION | functions, test={"mse_by_step": mse})
        versions.publish(uri, run, "functions")
    found = compare(uri, "models:/functions/1", "models:/functions/2")
    assert found["figure"] == "squared error"
    assert found["difference"] < 0
    assert verdict(found).startswith("B is better than A")
    with pytest.raises(RegistryError, match="reads no images: it was trained on patterns"):
        versions.load_model(uri, "models:/functions/1")


def test_mlflow_out_of_reach_is_said_in_seconds() -> None:
    with pytest.raises(RegistryError, match=r"MLflow at http://127.0.0.1:9/: .*\ncheck tracking.uri"):
        listing.list_models("http://user:secret@127.0.0.1:9/")


def test_models_publish_promote_and_compare_from_the_command_line(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["distmeta", *arguments, "--tracking-uri", uri])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        out, err = capsys.readouterr()
        return out, err

    runs = [finished_run(tmp_path / str(i), uri, figures=by_episode(0.4 + i / 5, seed=i)) for i in range(2)]
    for number, run in enumerate(runs, 1):
        out, _ = call("publish", str(run), "--name", "verbs", "--alias", f"try-{number}", "--json")
        assert json.loads(out) == {
            "model": f"models:/verbs/{number}",
            "version": str(number),
            "champion": number == 1,
        }
    assert call("promote", "models:/verbs@try-2")[1] == "models:/verbs@champion is now models:/verbs@try-2\n"
    rows = json.loads(call("models", "--name", "verbs", "--alias", "champion", "--json")[0])
    assert [(row["uri"], sorted(row["aliases"])) for row in rows] == [("models:/verbs/2", ["champion", "try-2"])]
    assert "models:/verbs/1" in call("models", "--name", "verb?")[0]
    found = json.loads(call("compare", "models:/verbs/1", "models:/verbs@champion", "--json")[0])
    assert found == compare(uri, "models:/verbs/1", "models:/verbs/2")
    assert call("compare", "models:/verbs/1", "models:/verbs/2")[0].splitlines()[-1] == verdict(found)
