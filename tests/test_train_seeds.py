"""One config trained once for each of several seeds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import registered
from mlflow import MlflowClient

from distmeta import cli
from distmeta.assembly.sync import sync
from distmeta.cli.options import parse_seeds
from distmeta.config import Config, validate
from distmeta.errors import ConfigError, RunError
from distmeta.registry.versions import look_up, publish
from distmeta.report.outcomes import outcomes
from distmeta.report.table import tabulate
from distmeta.scale.run import run
from distmeta.scale.train_seeds import train_seeds
from distmeta.training.measurement import Measurement
from distmeta.training.run_folder import RunFolder


def quiet(text: str) -> None:
    """What is said is not looked at."""


@pytest.mark.parametrize("text", ["", "0", "0,0", "0,1,", "a,b", "-1,2", "0.5,1", "1-3"])
def test_what_does_not_name_several_seeds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_numbers_between_commas() -> None:
    assert parse_seeds("3, 1,20") == [3, 1, 20]


def config(folder: Path, packed: Path, **top: Any) -> Config:
    return validate(
        {
            "run_folder": str(folder / "seeds"),
            "data": {"shards": str(packed), "way": 3, "queries": 3, "eval": {"queries": 3, "episodes": 20, "val_episodes": 6}},
            "model": {"filters": 4},
            "learner": {"name": "protonet"},
            "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 2},
            "train": {"cpus_per_worker": 0.5, "checkpoint_every": 2, "validate_every": 2, "device": "cpu"},
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        }
        | top,
        "test",
    )


@pytest.mark.parametrize("search", ["random", "pbt"])
def test_a_sweep_over_seeds_is_refused_with_what_to_do_instead(search: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.space names seed") as refused:
        config(tmp_path, tmp_path, sweep={"space": {"seed": {"choice": [0, 1]}}, "search": search})
    assert "distmeta train CONFIG --seeds 0,1,2" in refused.value.remedy


def test_each_seed_gets_a_folder_the_parents_id_and_one_version_of_what_it_starts_from(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training: what the runs are asked to do, and what becomes of their tests."""
    uri, asked = f"sqlite:///{tmp_path / 'mlflow.db'}", []
    published = registered.publish(uri, tmp_path / "origin", "origin")

    def trained(made: Config, resume: bool, address: str | None, other: bool, tags: dict[str, str]) -> dict[str, Any]:
        asked.append((made.seed, made.run_folder, made.init_from, tags["training_seed"], tags["mlflow.parentRunId"]))
        folder = RunFolder(made.run_folder)
        if not folder.has_ended:
            registered.finished_run(
                folder.path, uri, 0.4 + 0.1 * made.seed, figures=registered.by_episode(0.4 + 0.1 * made.seed, made.seed)
            )
        return {"run_id": "x", "run_folder": made.run_folder} | folder.read_result()

    monkeypatch.setattr("distmeta.scale.train_seeds.run", trained)
    made = config(tmp_path, packed, init_from="models:/origin@champion")
    found = train_seeds(made, [2, 0], False, None, False, quiet)
    folder = RunFolder(made.run_folder)
    fixed = f"models:/origin/{published.version}"
    parent = found["run_id"]
    assert asked == [(seed, str(folder.of_seed(seed)), fixed, str(seed), parent) for seed in (2, 0)]
    rows = [np.array(folder.of_seed(seed).read_test_episodes())[:, 0] for seed in (2, 0)]
    assert found["over_seeds"]["values"][0] == pytest.approx(np.mean(rows))
    client = MlflowClient(uri)
    assert client.get_run(parent).info.status == "FINISHED"
    registered.publish(uri, tmp_path / "better", "origin", 0.9)
    again = train_seeds(made, [2, 0, 1], True, None, False, quiet)
    assert {origin for _, _, origin, *_ in asked} == {fixed}, "though the alias has moved on"
    assert (again["run_id"], again["seeds"]) == (parent, [2, 0, 1])


def test_a_seed_that_fails_is_named_and_the_parent_ends_as_failed(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> dict[str, Any]:
        raise RunError("the meta-gradient was not finite", "lower learner.inner_lr")

    monkeypatch.setattr("distmeta.scale.train_seeds.run", failing)
    made = config(tmp_path, packed)
    with pytest.raises(RunError, match="seed 4: the meta-gradient was not finite"):
        train_seeds(made, [4, 5], False, None, False, quiet)
    run_id = RunFolder(made.run_folder).read_mlflow()["run_id"]
    assert MlflowClient(made.tracking.uri).get_run(run_id).info.status == "FAILED"


@pytest.fixture(scope="module")
def made(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config(tmp_path_factory.mktemp("home"), packed)


@pytest.fixture(scope="module")
def answer(made: Config, address: str) -> dict[str, Any]:
    return train_seeds(made, [0, 7], False, address, False, quiet)


def test_each_seed_is_the_run_that_it_is_alone(answer: dict[str, Any], made: Config, address: str) -> None:
    alone = run(made.model_copy(update={"run_folder": f"{made.run_folder}-7", "seed": 7}), address=address)
    assert [one["training_seed"] for one in answer["runs"]] == [0, 7]
    models = [look_up(made.tracking.uri or "", one["model"]) for one in answer["runs"]]
    assert [model.run_id for model in models] == [one["run_id"] for one in answer["runs"]]
    assert answer["runs"][1]["weights_sha256"] == alone["weights_sha256"] != answer["runs"][0]["weights_sha256"]
    assert answer["runs"][1]["test"] == alone["test"]
    result = RunFolder(f"{made.run_folder}-7").read_result()
    assert (result["learner"], result["dataset"], result["training_seed"]) == ("protonet", "patterns", 7)


def test_the_mean_has_an_interval_over_seeds_and_one_over_episodes(answer: dict[str, Any]) -> None:
    means = [one["test"]["accuracy"] for one in answer["runs"]]
    over_seeds, over_episodes = (Measurement(**answer[kind]) for kind in ("over_seeds", "over_episodes"))
    assert over_seeds.values[0] == pytest.approx(sum(means) / 2) == over_episodes.values[0]
    assert over_seeds.ci95[0] == pytest.approx(12.706204736 * abs(means[0] - means[1]) / 2, rel=1e-6)
    assert json.loads(Path(answer["run_folder"], "seeds.json").read_text())["over_seeds"] == answer["over_seeds"]


def test_mlflow_shows_a_parent_with_a_child_for_each_seed(answer: dict[str, Any], made: Config) -> None:
    client = MlflowClient(made.tracking.uri)
    parent = client.get_run(answer["run_id"])
    assert (parent.info.status, parent.data.tags["kind"]) == ("FINISHED", "seeds")
    assert parent.data.metrics["test/accuracy/transductive/mean"] == pytest.approx(answer["over_seeds"]["values"][0])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{answer['run_id']}'")
    assert {child.data.tags["training_seed"]: child.info.run_id for child in children} == {
        str(one["training_seed"]): one["run_id"] for one in answer["runs"]
    }
    assert {child.data.params["seed"] for child in children} == {"0", "7"}


def test_a_folder_of_seeds_makes_one_cell_of_a_table(answer: dict[str, Any], made: Config) -> None:
    (cell,) = tabulate(list(outcomes(answer["run_folder"], str(made.tracking.uri))), ["learner"], ["shot"]).cells
    assert (cell.row, cell.seeds) == (("protonet",), (0, 7))
    assert cell.ci95("seeds") == pytest.approx(answer["over_seeds"]["ci95"][0])


def test_a_resume_repeats_no_seed_that_ended_and_takes_further_ones(answer: dict[str, Any], made: Config, address: str) -> None:
    folder = RunFolder(made.run_folder)
    shutil.rmtree(folder.of_seed(7).path)  # as if it had been killed before its second seed began
    before = folder.of_seed(0).best.path.stat().st_mtime_ns
    again = train_seeds(made, [0, 7, 2], True, address, False, quiet)
    assert [one["weights_sha256"] for one in again["runs"][:2]] == [one["weights_sha256"] for one in answer["runs"]]
    assert again["runs"][0] == answer["runs"][0]
    assert folder.of_seed(0).best.path.stat().st_mtime_ns == before
    assert (again["run_id"], again["seeds"]) == (answer["run_id"], [0, 7, 2])


def test_folders_of_one_and_of_several_seeds_are_not_taken_for_each_other(answer: dict[str, Any], made: Config) -> None:
    with pytest.raises(ConfigError, match="holds runs of seeds") as refused:
        run(made, resume=True)
    assert "--seeds 0,7" in refused.value.remedy
    alone = made.model_copy(update={"run_folder": str(RunFolder(made.run_folder).of_seed(0))})
    with pytest.raises(ConfigError, match="holds a run of one seed") as refused:
        train_seeds(alone, [0, 7], True, None, False, quiet)
    assert "leave --seeds out" in refused.value.remedy
    with pytest.raises(RunError, match="runs of several seeds"):
        publish(str(made.tracking.uri), RunFolder(made.run_folder))
    with pytest.raises(RunError, match="runs of several seeds"):
        sync(RunFolder(made.run_folder))


def test_the_command_line_takes_seeds_itself_and_on_behalf_of_a_job(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"{{run_folder: {tmp_path / 'r'}, data: {{shards: {packed}, way: 3, queries: 2}}}}")
    seen: list[list[int]] = []

    def trained(config: Config, seeds: list[int], *rest: object) -> dict[str, Any]:
        seen.append(seeds)
        return {"seeds": seeds}

    monkeypatch.setattr("distmeta.scale.train_seeds.train_seeds", trained)
    monkeypatch.setattr("sys.argv", ["distmeta", "train", "c.yaml", "--seeds", "0,2", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (seen, json.loads(capsys.readouterr().out)) == ([[0, 2]], {"seeds": [0, 2]})
    submitted: list[list[str]] = []
    monkeypatch.setattr("distmeta.scale.submit.submit", lambda address, arguments, *rest: submitted.append(arguments) or "job")
    for seeds, code in (("0,2", 0), ("0,0", 2)):
        arguments = ["submit", "train", "c.yaml", "--address", "http://nowhere:1", "--detach", "--seeds", seeds]
        monkeypatch.setattr("sys.argv", ["distmeta", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
    assert submitted == [["train", "config.yaml", "--seeds", "0,2"]]
