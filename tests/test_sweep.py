"""Sweeps: what trials are proposed, which are stopped, what is recorded, and that nothing is lost or done twice, whoever is killed."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import scipy.stats
import torch
from conftest import free_port, validation
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from torch import nn

from distmeta.config import Config, SweepConfig, load_config, validate
from distmeta.data.episodes import Task
from distmeta.errors import ClusterError, ConfigError, RunError
from distmeta.learners import build_learner
from distmeta.learners.params import weights_sha256
from distmeta.seeds import generator
from distmeta.show import show_advance, show_advance_over_seeds
from distmeta.sweep.driver import _as_sweep, _describe, _winner, check_space, sweep
from distmeta.sweep.fresh import compare_over_seeds
from distmeta.sweep.population import Population, followed, near
from distmeta.sweep.records import Records
from distmeta.sweep.search import Search
from distmeta.sweep.trials import Point, Trial, load_trials, validations
from distmeta.sweep.tuner import Asha
from distmeta.sweep.view import TrialTable, _in_order, draw, parameters
from distmeta.training.accuracy import Accuracy
from distmeta.training.evaluate import Evaluation, Setting
from distmeta.training.run_folder import RunFolder
from distmeta.training.sealed import SEAL, seal

SPACE: dict[str, Any] = {"learner.inner_lr": {"loguniform": [0.01, 1.0]}, "learner.inner_steps": {"choice": [1, 2, 3]}}


def config(folder: Path, shards: Path | str = "x", steps: int = 12, space: dict[str, Any] | None = None, **settings: Any) -> Config:
    return validate(
        {
            "run_folder": str(folder / "sweep"),
            "data": {
                "shards": str(shards),
                "way": 3,
                "shot": 1,
                "queries": 3,
                "eval": {"queries": 3, "episodes": 20, "val_episodes": 10},
            },
            "model": {"filters": 8},
            "learner": {"inner_lr": 0.2, "inner_steps": 2},
            "outer": {"lr": 0.01, "steps": steps, "meta_batch_size": 2},
            "train": {"workers": 1, "validate_every": 2, "device": "cpu"},
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
            "sweep": {"space": space or SPACE, "trials": 4, "fresh_episodes": 20} | settings,
        },
        "test",
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learner": {"choice": [1]}}, "unknown key learner in sweep.space"),
        ({"learner.inner_lr": {"loguniform": [0, 1]}}, "both bounds of loguniform must be above 0"),
        ({"learner.inner_lr": {"uniform": [1, 1]}}, "the range is empty"),
        ({"learner.inner_lr": {"loguniform": [1, 0.1]}}, "the range is empty"),
        ({"learner.inner_steps": {"choice": []}}, "the range is empty"),
        ({"learner.inner_steps": {"choice": [1, 1]}}, "a choice appears twice"),
        ({"learner.inner_lr": {"uniform": [0, 1], "choice": [1]}}, "give one of uniform, loguniform, integers, choice"),
        ({"learner.inner_lr": {"log": [0, 1]}}, r"unknown key .*\nfor every key, give one of uniform, loguniform"),
        ({"train.workers": {"choice": [1, 2]}}, "sweep.space names train.workers in test, which must be equal in all trials"),
        ({"data.eval.seed": {"choice": [1, 2]}}, "which must be equal in all trials"),
    ],
)
def test_bad_spaces(space: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, space=space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learner.inner_steps": {"choice": [1, 0]}}, r"sweep.space.learner.inner_steps: learner.inner_steps=0: input should be greater"),
        ({"learner.inner_lr": {"uniform": [-1.0, 1.0]}}, r"sweep.space.learner.inner_lr: learner.inner_lr=-1.0: input should be greater"),
        ({"learner.iner_lr": {"choice": [1]}}, r"learner.iner_lr is not a setting of learner maml\n.*choose from: inner_lr"),
        ({"learner.temperature": {"uniform": [1, 2]}}, "temperature"),  # a setting of another learner
        ({"model.filtres": {"choice": [8, 16]}}, "filtres"),
    ],
)
def test_a_value_that_would_be_refused_in_a_trial_is_refused_before_the_first(
    space: dict[str, Any], message: str, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(config(tmp_path, packed, space=space))


def test_a_scheduler_that_would_never_hear_of_an_accuracy_is_refused(tmp_path: Path) -> None:
    rare = config(tmp_path)
    rare = rare.model_copy(update={"train": rare.train.model_copy(update={"validate_every": 12})})
    with pytest.raises(
        ConfigError, match=r"no accuracy is reported before step 12, the last .*validate_every=12.*\nset both below outer.steps"
    ):
        _as_sweep(rare)
    with pytest.raises(ConfigError, match=r"the config has no sweep.space"):
        _as_sweep(rare.model_copy(update={"sweep": None}))


MIXED = SweepConfig.model_validate(
    {"space": {"a": {"loguniform": [0.01, 1]}, "b": {"uniform": [2, 3]}, "c": {"integers": [1, 9]}, "d": {"choice": [[40, 40], [64]]}}}
)


@given(st.integers(0, 2**31), st.integers(0, 40))
def test_random_values_lie_in_their_ranges_and_depend_on_seed_and_number_alone(seed: int, number: int) -> None:
    fresh, used = Search(MIXED, seed), Search(MIXED, seed)
    used.propose(number + 1)
    found = fresh.propose(number)
    assert found == used.propose(number)
    assert 0.01 <= found["a"] <= 1
    assert 2 <= found["b"] <= 3
    assert found["c"] in range(1, 10)
    assert found["d"] in ([40, 40], [64])


def test_loguniform_is_even_in_the_logarithm() -> None:
    from scipy.stats import kstest

    search = Search(MIXED, 0)
    values = [search.propose(number)["a"] for number in range(400)]
    assert kstest([(math.log(value) - math.log(0.01)) / math.log(100) for value in values], "uniform").pvalue > 0.01


def test_the_grid_holds_every_combination_once() -> None:
    settings = SweepConfig.model_validate({"space": {"a": {"choice": [1, 2, 3]}, "b": {"choice": ["x", "y"]}}, "search": "grid"})
    assert settings.total == 7, "six points and trial 0"
    points = {tuple(Search(settings, 0).propose(number).values()) for number in range(6)}
    assert points == {(a, b) for a in (1, 2, 3) for b in ("x", "y")}
    with pytest.raises(ValueError, match="but a is a range"):
        SweepConfig.model_validate({"space": {"a": {"uniform": [1, 2]}}, "search": "grid"})


@pytest.mark.parametrize("resumed", [False, True])
def test_optuna_looks_where_earlier_trials_did_well(resumed: bool) -> None:
    """Also when those were in an earlier session."""
    settings = SweepConfig.model_validate({"space": {"a": {"loguniform": [0.001, 1]}}, "search": "optuna", "trials": 40})
    search = Search(settings, 0)

    def off(params: dict[str, Any]) -> float:
        return abs(math.log10(params["a"]) + 1)  # best at 0.1

    told = [(number, search.propose(number)) for number in range(25)]
    if resumed:
        search = Search(settings, 0)
    for number, params in told:
        search.learn(number, params, [Point(10, -off(params))], failed=False)
    later = [off(search.propose(number)) for number in range(25, 40)]
    assert sum(later) / 15 < 0.5 * sum(off(params) for _, params in told) / 25


def finished(sweep_folder: RunFolder, number: int, scores: list[float], steps: int = 12, state: str = "running", reason: str = "") -> Trial:
    """A trial's run folder, as a run leaves it that validated every second step."""
    trial = Trial(number, {"learner.inner_lr": 0.1 * (number + 1), "learner.inner_steps": 1}, state=state, reason=reason)  # type: ignore[arg-type]
    trial.began, trial.ended = 1000.0 * number, 1000.0 * number + 700
    folder = trial.folder(sweep_folder).path
    (folder / "metrics").mkdir(parents=True)
    if scores:
        lines = [json.dumps({"step": 2 * i, "validation": validation(score)}) for i, score in enumerate(scores, 1)]
        (folder / "metrics" / f"000000-{2 * len(scores):06d}.jsonl").write_text("\n".join(lines) + "\n")
    if 2 * len(scores) == steps:
        last = trial.folder(sweep_folder).checkpoint(steps).path
        last.mkdir(parents=True)
        seal(last)
    trial.save(sweep_folder)
    return trial


def test_records_are_taken_up_where_they_were_left(tmp_path: Path) -> None:
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    finished(folder, 0, [0.5] * 6, state="finished")
    interrupted = finished(folder, 1, [0.4, 0.5])
    finished(folder, 2, [0.3], state="stopped")
    records = Records(base)
    assert records.runs_left == 2
    taken = [records.next(), records.next()]
    assert taken[0] == interrupted, "what was interrupted comes first"
    assert taken[1] is not None
    assert (taken[1].number, records.next()) == (3, None)
    unbroken = Search(records.settings, base.seed).propose(2)  # trial 0 is the config itself
    assert taken[1].params == unbroken
    assert [trial.number for trial in load_trials(folder)] == [0, 1, 2]


def test_a_trial_whose_folder_was_removed_is_run_again(tmp_path: Path) -> None:
    """Not another one into the folder of the last: the next number is the one that is missing, with the values it had."""
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    for number in (0, 1, 2):
        finished(folder, number, [0.5] * 6, state="finished")
    shutil.rmtree(folder.trial(1).path)
    records = Records(base)
    taken = records.next()
    assert taken is not None
    assert (taken.number, taken.params) == (1, Search(records.settings, base.seed).propose(0))
    assert [trial.number for trial in records.trials] == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"number": 7},
        {"number": "../../x"},
        {"number": -1},
        {"number": None},
        {"state": "lost"},
        {"params": []},
        {"later": 1},
        {"until": "x"},
    ],
    ids=str,
)
def test_a_trials_record_by_somebody_else_is_refused_by_name(change: dict[str, Any], tmp_path: Path) -> None:
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    record = asdict(finished(folder, 0, [0.5] * 6))
    folder.trial(0).write_trial(record | change)
    with pytest.raises(RunError, match=r"trial-000/trial\.json cannot be read|does not understand"):
        Records(base)


def test_how_a_trial_ended_is_what_its_run_folder_says(tmp_path: Path) -> None:
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    trials = [finished(folder, 0, [0.5] * 6), finished(folder, 1, [0.4, 0.25]), finished(folder, 2, [0.3]), finished(folder, 3, [])]
    trials[2].folder(folder).write_failure(RunError("the meta-gradient was not finite", ""))
    records = Records(base)
    for trial, died in zip(records.trials, (False, False, False, True), strict=True):
        records.end(trial, died)
    assert [(trial.state, trial.reason) for trial in load_trials(folder)] == [
        ("finished", "all 12 steps"),
        ("stopped", "at step 4: 25.0 % is not among the best 1/3 there"),
        ("failed", "the meta-gradient was not finite"),
        ("failed", "its driver was lost 4 times"),
    ]
    late = trials[1].folder(folder).path / "metrics" / "000004-000006.jsonl"  # by a worker that outlived its trial
    late.write_text(json.dumps({"step": 6, "validation": validation(0.9)}) + "\n")
    assert load_trials(folder)[1].curve(folder) == [(2, 0.4), (4, 0.25)]


def test_a_trial_that_went_all_the_way_ranks_before_one_that_was_stopped(tmp_path: Path) -> None:
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    finished(folder, 0, [0.5] * 5 + [0.6], state="finished")
    finished(folder, 1, [0.9], state="stopped")
    finished(folder, 2, [0.7] * 6, state="finished")
    finished(folder, 3, [0.99], state="failed")
    assert [trial.number for trial in Records(base).ranking()] == [2, 0, 1]
    for picture in draw(load_trials(folder), folder, Records(base).settings):
        assert picture.read_bytes().startswith(b"\x89PNG")


def evaluation(rows: torch.Tensor, setting: Setting) -> Evaluation:
    measurement = Accuracy().measure(build_learner("maml", nn.Linear(1, 3)), Task(3, 1, 3), rows)
    return Evaluation(measurement, Accuracy().keys(measurement), setting, rows)


def test_over_seeds_the_winner_and_trial_0_are_trained_once_each_and_compared_pairwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training: what is asked to be trained and evaluated, and what becomes of the scores."""
    base = config(tmp_path, seeds=[4, 5, 6])
    for number, score in enumerate((0.5, 0.7)):
        finished(RunFolder(base.run_folder), number, [score] * 6, state="finished")
    records = Records(base)
    setting = Setting(50, 3, 1, 3, seed=1, inner_steps=2, norm="batch")
    right = {(trial, seed): torch.from_numpy(generator(trial, "right", seed).random((50, 2))) for trial in (0, 1) for seed in (4, 5, 6)}
    trained: list[tuple[str, list[int], float]] = []

    def train(made: Config, seeds: list[int], resume: bool, *_: object) -> dict[str, Any]:
        trained.append((made.run_folder, seeds, made.learner.settings["inner_lr"]))
        assert resume, "what a killed sweep has trained is not trained again"
        measured = evaluation(right[1, 4], setting).measurement.as_dict()
        return {"run_id": "parent", "run_folder": made.run_folder, "over_seeds": measured, "over_episodes": measured}

    def evaluated(records: Records, configs: list[Config]) -> list[Evaluation]:
        trials = {str(records.folder.compared(number).of_seed(made.seed)): number for number in (0, 1) for made in configs}
        return [evaluation(right[trials[made.run_folder], made.seed], setting) for made in configs]

    tags: dict[str, str] = {}
    monkeypatch.setattr("distmeta.sweep.fresh.train_seeds", train)
    monkeypatch.setattr("distmeta.sweep.fresh.on_fresh_episodes", evaluated)
    monkeypatch.setattr("distmeta.sweep.fresh.tracking.set_tags", lambda uri, run_id, given: tags.update(given))
    found = compare_over_seeds(records, records.trials[1], "uri", "sweep", None, False)
    assert [(folder, seeds) for folder, seeds, _ in trained] == [(str(records.folder.compared(n)), [4, 5, 6]) for n in (1, 0)]
    assert trained[0][2] == records.config_of(records.trials[1]).learner.settings["inner_lr"] != trained[1][2]
    assert tags["mlflow.parentRunId"] == "sweep"
    ahead = torch.stack([right[1, seed][:, 1] - right[0, seed][:, 1] for seed in (4, 5, 6)])
    for interval, values in (("seeds", ahead.mean(1)), ("episodes", ahead.mean(0))):
        half = scipy.stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
        assert found[f"advance_ci95_over_{interval}"] == pytest.approx((half.high - half.low) / 2)
    assert found["advance"] == pytest.approx(ahead.mean().item())
    show_advance_over_seeds(found, evaluation(right[1, 4], setting).as_dict())
    said = capsys.readouterr().err
    assert f"ahead by {100 * found['advance']:+.1f} ± {100 * found['advance_ci95_over_seeds']:.1f} points over seeds" in said
    assert "advance" not in compare_over_seeds(records, records.trials[0], "uri", "sweep", None, False), "trial 0 is the winner itself"


@pytest.mark.parametrize("seeds", [[1], [1, 1], [0, 1, 0], [-1, 2]])
def test_seeds_of_a_comparison_are_several_and_different(seeds: list[int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep"):
        config(tmp_path, seeds=seeds)


def test_the_winner_meets_the_config_as_it_stands_on_the_same_fresh_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = config(tmp_path)
    for number, score in enumerate((0.5, 0.7)):
        finished(RunFolder(base.run_folder), number, [score] * 6, state="finished")
    records = Records(base)
    setting = Setting(50, 3, 1, 3, seed=1, inner_steps=2, norm="batch")
    right = {number: torch.from_numpy(generator(5, "right", number).random((50, 2))) for number in (0, 1)}

    numbers = {records.config_of(trial).run_folder: trial.number for trial in records.trials}
    fresh = {run_folder: evaluation(right[number], setting) for run_folder, number in numbers.items()}
    monkeypatch.setattr("distmeta.sweep.driver.on_fresh_episodes", lambda records, configs: [fresh[made.run_folder] for made in configs])
    found = _describe(records, _winner(records), TrialTable(sys.stderr, RunFolder(tmp_path), records.settings))["fresh"]
    apart = scipy.stats.ttest_rel(right[1][:, 1].numpy(), right[0][:, 1].numpy()).confidence_interval(0.95)
    assert found["advance"] == pytest.approx((apart.low + apart.high) / 2)
    assert found["advance_ci95"] == pytest.approx((apart.high - apart.low) / 2)
    capsys.readouterr()
    show_advance(found)
    assert f"{100 * found['advance']:+.1f} ± {100 * found['advance_ci95']:.1f} points, paired" in capsys.readouterr().err


def test_all_trials_failing_is_told_with_the_commonest_reason(tmp_path: Path) -> None:
    base = config(tmp_path)
    for number, reason in enumerate(["no memory", "not finite", "not finite", "no memory?"]):
        finished(RunFolder(base.run_folder), number, [0.5], state="failed", reason=reason)
    with pytest.raises(RunError, match="all 4 trials failed, 2 of them with: not finite"):
        _winner(Records(base))


def decisions(asha: Asha, scores: dict[int, list[float]], spared: int | None = None) -> dict[int, list[str]]:
    """What the scheduler says to each trial's validations, trials one after another."""
    said: dict[int, list[str]] = {}
    for number, curve in scores.items():
        trial: Any = SimpleNamespace(trial_id=str(number), config={"spared": number == spared})
        asha.on_trial_add(None, trial)  # type: ignore[arg-type]
        said[number] = [asha.on_trial_result(None, trial, {"step": 2 * i, "score": score}) for i, score in enumerate(curve, 1)]
    return said


def test_stopping_is_the_same_after_a_resume(tmp_path: Path) -> None:
    base = config(tmp_path)
    before = {number: [score, score + 0.1, score + 0.2] for number, score in enumerate([0.5, 0.6, 0.4, 0.7])}
    later = {number: [score, score + 0.1, score + 0.2] for number, score in ((4, 0.45), (5, 0.65), (6, 0.8))}
    empty = Records(base)
    unbroken = Asha(empty.settings, 2, 12, empty)
    said = decisions(unbroken, before | later)
    for number, curve in before.items():
        finished(RunFolder(base.run_folder), number, curve, state="stopped")
    resumed = Asha(empty.settings, 2, 12, Records(base))
    assert decisions(resumed, later) == {number: said[number] for number in later}
    assert "STOP" in said[4], "the test says nothing"
    assert "STOP" not in said[6]


def test_a_trial_that_is_not_finite_ranks_last_and_lets_none_stop_for_it(tmp_path: Path) -> None:
    base = config(tmp_path)
    folder = RunFolder(base.run_folder)
    finished(folder, 0, [math.nan] * 6, state="finished")
    finished(folder, 1, [math.nan, 0.3], state="stopped")
    finished(folder, 2, [0.2, math.nan], state="stopped")
    records = Records(base)
    assert [trial.number for trial in records.ranking()] == [1, 2, 0]
    assert [parameters(trial, folder)["score"] for trial in records.trials] == [None, 0.3, 0.2]
    assert [parameters(trial, folder)["validation"] for trial in records.trials] == ["not finite", "30.0 %", "20.0 %"]
    assert draw(records.trials, folder, records.settings)
    said = decisions(Asha(records.settings, 2, 12, records), {3: [0.25], 4: [Point(2, -math.inf).reported["score"]]})
    assert said == {3: ["CONTINUE"], 4: ["STOP"]}


def test_pictures_order_numbers_by_size_and_leave_names_as_given() -> None:
    assert _in_order([0.4, 0.05, 0.2, 0.05]) == ["0.05", "0.2", "0.4"]
    assert _in_order([True, False]) == ["True", "False"]
    assert _in_order(["sgd", "adam"]) == ["sgd", "adam"]


def test_trial_0_goes_all_the_way(tmp_path: Path) -> None:
    records = Records(config(tmp_path))
    said = decisions(Asha(records.settings, 2, 12, records), {1: [0.9], 2: [0.8], 0: [0.1]}, spared=0)
    assert said[0] == ["CONTINUE"]
    assert said[2] == ["STOP"]


def pbt(folder: Path, shards: Path | str = "x", space: dict[str, Any] | None = None, **settings: Any) -> Config:
    settings = {"search": "pbt", "trials": 4, "grace": 2} | settings
    return _as_sweep(config(folder, shards, steps=6, space=space, **settings))


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("model.filters", [4, 8], "cannot search model.filters: a checkpoint cannot be resumed with a different value"),
        ("outer.optimizer", ["adam", "sgd"], "cannot search outer.optimizer"),
        ("learner.name", ["maml", "fomaml"], "cannot search learner.name"),
        ("learner.inner_lr", [0.1, 0.3], "changes learner.inner_lr .* with learner.name=meta-sgd its value is part of the weights"),
    ],
)
def test_what_a_checkpoint_holds_is_not_changed_on_the_way(key: str, values: list[Any], message: str, packed: Path, tmp_path: Path) -> None:
    base = pbt(tmp_path, packed, {key: {"choice": values}})
    if "meta-sgd" in message:
        base = base.model_copy(update={"learner": base.learner.model_copy(update={"name": "meta-sgd"})})
    with pytest.raises(ConfigError, match=message):
        check_space(base)
    check_space(pbt(tmp_path, packed, SPACE | {"outer.lr": {"loguniform": [0.001, 0.1]}}))


def test_a_generation_ends_with_a_validation(tmp_path: Path) -> None:
    for grace in (3, 6, 8):
        with pytest.raises(ConfigError, match=rf"sweep.grace={grace}, but .*\nset sweep.grace to a multiple of 2 below 6"):
            pbt(tmp_path, grace=grace)
    with pytest.raises(ConfigError, match="search: pbt needs 4 trials or more"):
        pbt(tmp_path, trials=3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 2**31), st.sampled_from([None, 0]))
def test_the_worst_quarter_follows_the_best(scores: list[float], seed: int, spared: int | None) -> None:
    found = followed(dict(enumerate(scores)), seed, 40, spared)
    assert found == followed(dict(reversed(list(enumerate(scores)))), seed, 40, spared), "who was asked first matters"
    assert len(found) == len(scores) // 4
    assert spared not in found
    ordered = sorted(scores)
    for number, donor in found.items():
        assert scores[number] <= ordered[len(found)]
        assert scores[donor] >= ordered[-len(found)]


@given(st.integers(0, 2**31))
def test_values_stay_near_and_in_their_space(seed: int) -> None:
    random = generator(seed, "test")
    drawn = {
        key: [near(values, start, random) for _ in range(40)]
        for (key, values), start in zip(MIXED.space.items(), (0.1, None, 2, [64]), strict=True)
    }
    assert all(0.01 <= value <= 1 for value in drawn["a"])
    assert {0.08, 0.125} & {round(value, 9) for value in drawn["a"]}
    assert all(2 <= value <= 3 for value in drawn["b"])
    assert set(drawn["c"]) <= set(range(1, 10))
    assert {1, 3} & set(drawn["c"]), "a small integer would never move"
    assert all(value in ([40, 40], [64]) for value in drawn["d"])


def generation(base: Config, scores: list[float]) -> RunFolder:
    """Four trials that have come to step 2, each with a checkpoint of its own."""
    folder = RunFolder(base.run_folder)
    population = Population(base)
    for number, score in enumerate(scores):
        trial = population.next()
        assert trial is not None
        finished(folder, number, [score], steps=2)
        step = trial.folder(folder).checkpoint(2).path
        (step / "of").write_text(str(number))
        seal(step)
        trial.save(folder)
    return folder


def trained_from(folder: RunFolder) -> list[tuple[str, Any]]:
    """Of each trial, whose checkpoint it holds, and its record."""
    trials = load_trials(folder)
    return [((trial.folder(folder).checkpoint(2).path / "of").read_text(), replace(trial, began=None)) for trial in trials]


@pytest.mark.parametrize("killed_after", range(4))
def test_a_generation_that_ended_half_before_a_kill_ends_the_same(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.2, 0.1, 0.7, 0.4]
    unbroken, broken = (generation(pbt(tmp_path / name), scores) for name in ("a", "b"))
    begun = Population(pbt(tmp_path / "a")).next()
    assert begun is not None
    assert (begun.number, begun.since, begun.until) == (0, 2, 4)
    found = trained_from(unbroken)
    assert [held for held, _ in found] == ["0", "2", "2", "3"]
    follower = found[1][1]
    assert [part["from"] for part in follower.history] == [None, 2]
    assert follower.params == follower.history[-1]["params"] != found[2][1].params

    save, saved = Trial.save, []

    def dying(trial: Trial, folder: RunFolder) -> None:
        if len(saved) == killed_after:
            raise KeyboardInterrupt
        saved.append(trial)
        save(trial, folder)

    monkeypatch.setattr(Trial, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        Population(pbt(tmp_path / "b")).next()
    monkeypatch.setattr(Trial, "save", save)
    Population(pbt(tmp_path / "b")).next()
    assert trained_from(broken) == found


def test_a_population_waits_for_all_of_its_generation(tmp_path: Path) -> None:
    folder = generation(pbt(tmp_path), [0.2, 0.1, 0.7, 0.4])
    (folder.trial(3).checkpoint(2).path / SEAL).unlink()
    population = Population(pbt(tmp_path))
    assert population.runs_left == 3 * 2 + 3
    late = population.next()
    assert late is not None
    assert (late.number, late.until, population.next()) == (3, 2, None)
    seal(late.folder(folder).checkpoint(2).path)
    population.end(late, died=False)
    assert late.state == "running"
    assert [trial.number for trial in iter(population.next, None)] == [0, 1, 2, 3]
    late.folder(folder).write_failure(RunError("not finite", ""))
    population.end(late, died=False)
    assert (late.state, late.reason) == ("failed", "not finite")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    head = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": True, **ports}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(packed: Path, address: str, tmp_path: Path) -> None:
    crowd = config(tmp_path, packed)
    crowd = crowd.model_copy(update={"train": crowd.train.model_copy(update={"workers": 2, "cpus_per_worker": 1.5})})
    with pytest.raises(ClusterError, match=r"train.workers=2 of 1.5 CPU each, but this cluster places 1 .*2 CPUs hold 1"):
        sweep(crowd, address=address)
    assert not Path(crowd.run_folder).exists()


def children(uri: str, parent: str) -> list[Any]:
    mlflow = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    return mlflow.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from distmeta.cli import main; main()", *arguments]


def wait_for(found: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return answer


def processes(name: str) -> list[psutil.Process]:
    """Ray actors of our own cluster, whose daemons are this process's descendants."""
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE and name in " ".join(p.cmdline())]


def check_answer(answer: dict[str, Any], base: Config, trials: int) -> None:
    """What a sweep leaves behind: a parent and a child for each trial in MLflow, one registered model, a config that `train` takes."""
    uri = base.tracking.uri
    assert uri is not None
    numbers = list(range(trials))
    assert sorted(row["number"] for row in answer["trials"]) == numbers
    runs = [run for run in children(uri, answer["run_id"]) if "trial" in run.data.tags]  # others are retrained
    assert sorted(int(run.data.tags["trial"]) for run in runs) == numbers, "MLflow shows a trial twice, or lacks one"
    for run in runs:
        (row,) = (row for row in answer["trials"] if row["number"] == int(run.data.tags["trial"]))
        assert (run.info.status, run.data.tags["reason"]) == ("FINISHED", row["reason"])
        curve = MlflowClient(uri).get_metric_history(run.info.run_id, "validation/score")
        steps = [metric.step for metric in curve]
        counted = list(range(2, row["steps"] + 1, 2))
        assert steps[: len(counted)] == counted
        assert steps == counted or row["state"] == "stopped", "only what was stopped may have gone further"
    mlflow = MlflowClient(uri)
    (version,) = mlflow.search_model_versions(base.tracking.model and f"name = '{base.tracking.model}'")
    assert version.tags["sweep"] == answer["run_id"]
    assert version.run_id in {run.info.run_id for run in runs if int(run.data.tags["trial"]) == answer["best"]["number"]}
    assert {"by_parameter.png", "parallel.png", "over_time.png", "best.yaml"} <= {f.path for f in mlflow.list_artifacts(answer["run_id"])}
    best = load_config(Path(answer["best_config"]))
    assert best.sweep is None
    assert best.learner.inner_lr == answer["best"]["params"]["learner.inner_lr"]
    assert not Path(best.run_folder).exists()
    assert answer["best"]["fresh"]["seed"] == base.data.eval.seed + 1
    assert not (Path(base.run_folder) / ".ray").exists(), "pickles are left behind"


@pytest.fixture(scope="module")
def swept(packed: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A sweep of two trials that ended; nothing is promoted."""
    base = config(tmp_path_factory.mktemp("swept"), packed, steps=4, trials=2, promote="none")
    assert "model" not in sweep(base, address=address)["best"]
    assert not MlflowClient(base.tracking.uri).search_registered_models()
    return base


@pytest.mark.slow
def test_a_sweep_kept_in_object_storage(packed: Path, bucket: Any, tmp_path: Path) -> None:
    base = config(tmp_path, packed, steps=4, trials=2, promote="best").model_copy(update={"run_folder": "s3://bucket/sweeps/one"})
    answer = sweep(base)
    folder = RunFolder(base.run_folder)
    assert {"best.yaml", "trials.json", "by_parameter.png", "trials", "log.txt"} <= {path.name for path in folder.path.iterdir()}
    assert not (folder.path / ".ray").exists(), "pickles are left behind"
    assert [(trial.number, trial.state) for trial in load_trials(folder)] == [(0, "finished"), (1, "finished")]
    assert answer["best"]["model"]
    before = load_trials(folder)
    more = sweep(base.model_copy(update={"sweep": base.sweep and base.sweep.model_copy(update={"trials": 3})}), resume=True)
    assert [row["number"] for row in sorted(more["trials"], key=lambda row: row["number"])] == [0, 1, 2]
    assert load_trials(folder)[:2] == before, "they had ended"


def promoting(base: Config, promote: str, model: str, **settings: Any) -> Config:
    """The same sweep, with a model of this name to come of it."""
    assert base.sweep is not None
    kind = {"sweep": base.sweep.model_copy(update={"promote": promote} | settings)}
    return base.model_copy(update=kind | {"tracking": base.tracking.model_copy(update={"model": model})})


def test_a_sweep_leaves_one_model_and_a_config_to_train(swept: Config, address: str) -> None:
    best = promoting(swept, "best", "best")
    check_answer(sweep(best, resume=True, address=address), best, trials=2)


def test_a_retrain_goes_further_with_the_winners_config(swept: Config, address: str) -> None:
    anew = promoting(swept, "retrain", "anew", retrain_steps=6)
    answer = sweep(anew, resume=True, address=address)
    mlflow, best = MlflowClient(anew.tracking.uri), answer["best"]
    (version,) = mlflow.search_model_versions("name = 'anew'")
    assert version.tags["sweep"] == answer["run_id"]
    run = mlflow.get_run(version.run_id)
    winner = str(best["number"])
    assert (run.data.tags["mlflow.parentRunId"], run.data.tags["retrained"]) == (answer["run_id"], winner)
    assert Path(run.data.tags["run_folder"]).is_relative_to(Path(anew.run_folder) / "retrained")
    folder = RunFolder(best["retrained"])
    losses, short = ([record["meta_loss"] for record in one.metrics.read()] for one in (folder, RunFolder(best["run_folder"])))
    assert (len(losses), losses[:4]) == (6, short), "the same config and seed took another way"
    assert folder.read_config().learner.inner_lr == best["params"]["learner.inner_lr"]
    assert load_config(Path(answer["best_config"])).outer.steps == 4, "what was searched, as it was searched"


@pytest.fixture
def server(swept: Config, tmp_path: Path) -> Iterator[str]:
    """`mlflow server` over the sweep's store, on loopback."""
    assert swept.tracking.uri is not None
    address = "127.0.0.1", str(free_port())
    arguments = ["--backend-store-uri", swept.tracking.uri, "--host", address[0], "--port", address[1], "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its runners are ten more processes
    with (tmp_path / "log").open("w") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments], env=environment, cwd=tmp_path, stdout=log, stderr=log
        )

    def healthy() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://{':'.join(address)}/health", timeout=5).status == 200
        return False

    try:
        wait_for(healthy)
        yield f"http://{':'.join(address)}"
    finally:
        ours = [process, *process.children(recursive=True)]
        for one in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(ours, timeout=20)[1]:
            one.kill()


def test_mlflows_server_shows_parent_children_and_pictures(swept: Config, server: str) -> None:
    """What its pages are made of, asked of its REST API."""

    def ask(what: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        address = f"{server}/{what}?{urllib.parse.urlencode(query)}"
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, sent, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read() if what == "get-artifact" else json.loads(answer.read())

    def values(pairs: list[dict[str, Any]]) -> dict[str, Any]:
        return {pair["key"]: pair["value"] for pair in pairs}

    api, folder = "api/2.0/mlflow", RunFolder(swept.run_folder)
    parent_id = folder.read_mlflow()["run_id"]
    parent = ask(f"{api}/runs/get", run_id=parent_id)["run"]
    assert (parent["info"]["status"], values(parent["data"]["tags"])["kind"]) == ("FINISHED", "sweep")
    assert values(parent["data"]["params"])["sweep.trials"] == "2"

    wanted = f"tags.`mlflow.parentRunId` = '{parent_id}' AND tags.trial LIKE '%'"
    runs = ask(f"{api}/runs/search", {"experiment_ids": [parent["info"]["experiment_id"]], "filter": wanted})["runs"]
    trials = load_trials(folder)
    assert sorted(values(run["data"]["tags"])["trial"] for run in runs) == ["0", "1"]
    for run in runs:
        tags, params = values(run["data"]["tags"]), values(run["data"]["params"])
        trial = trials[int(tags["trial"])]
        assert (tags["state"], tags["reason"]) == (trial.state, trial.reason)
        assert {key: params[key] for key in trial.params} == {key: str(value) for key, value in trial.params.items()}
        history = ask(f"{api}/metrics/get-history", run_id=run["info"]["run_id"], metric_key="validation/score")["metrics"]
        assert [(int(point["step"]), point["value"]) for point in history] == trial.curve(folder)

    files = {file["path"] for file in ask(f"{api}/artifacts/list", run_id=parent_id)["files"]}
    assert {"by_parameter.png", "parallel.png", "over_time.png", "best.yaml", "trials.json"} <= files
    assert ask("get-artifact", run_uuid=parent_id, path="parallel.png") == folder.picture("parallel").read_bytes()


@pytest.mark.slow
def test_a_population_goes_on_from_its_best(packed: Path, address: str, tmp_path: Path) -> None:
    base = config(tmp_path, packed, steps=4, search="pbt", grace=2)
    answer = sweep(base, address=address)
    folder = RunFolder(base.run_folder)
    trials = load_trials(folder)
    assert [(trial.state, trial.reason) for trial in trials] == [("finished", "all 4 steps")] * 4
    (follower,) = (trial for trial in trials if len(trial.history) > 1)
    donor = trials[follower.history[-1]["from"]]
    taken, given = (trial.folder(folder).checkpoint(2).load().meta_params for trial in (follower, donor))
    assert weights_sha256(taken) == weights_sha256(given)
    for trial in trials:
        assert [point.step for point in trial.curve(folder)] == [2, 4]
        assert trial.folder(folder).best.read_description()["step"] == 4
        described = trial.folder(folder).best.read_description()["learner"]
        assert described["inner_steps"] == trial.params["learner.inner_steps"], "the model says other values than it was trained with"
    runs = children(base.tracking.uri or "", answer["run_id"])
    histories = {int(run.data.tags["trial"]): json.loads(run.data.tags["history"]) for run in runs}
    assert histories == {trial.number: trial.history for trial in trials}
    assert answer["best"]["history"][-1]["params"] == answer["best"]["params"]
    last = Path(answer["best_config"]).read_text()
    assert last.startswith("# The last values of a schedule") == (answer["best"]["number"] == follower.number)
    assert load_config(Path(answer["best_config"])).learner.inner_lr == answer["best"]["params"]["learner.inner_lr"]
    assert len(MlflowClient(base.tracking.uri).search_model_versions()) == 1


@pytest.mark.slow
def test_killed_at_every_level_and_resumed_every_trial_is_accounted_for_once(packed: Path, address: str, tmp_path: Path) -> None:
    """One trial's worker, then one trial's driver, then the sweep's driver; the last with kill -9, in a process of its own."""
    base = config(tmp_path, packed, steps=16)
    (tmp_path / "sweep.yaml").write_text(base.to_yaml())
    folder = RunFolder(base.run_folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(
            command("sweep", str(tmp_path / "sweep.yaml"), "--address", address), env=environment, stdout=out, stderr=out
        )
        try:
            wait_for(lambda: list(folder.path.glob("trials/*/checkpoints/step-*/checkpoint.json")))
            wait_for(lambda: processes("RayTrainWorker"))[0].kill()
            wait_for(lambda: processes("ImplicitFunc"))[-1].kill()
            wait_for(lambda: any(trial.state != "running" for trial in load_trials(folder)))
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    ended = {trial.number: (trial.state, trial.ended) for trial in load_trials(folder) if trial.state != "running"}
    assert 1 <= len(ended) < 4, (tmp_path / "out").read_text()
    answer = sweep(base, resume=True, address=address)
    trials = {trial.number: trial for trial in load_trials(folder)}
    assert sorted(trials) == [0, 1, 2, 3]
    assert {trial.state for trial in trials.values()} <= {"finished", "stopped"}
    assert all((trials[number].state, trials[number].ended) == ending for number, ending in ended.items()), "an ended trial was run again"
    for trial in trials.values():
        steps = [point["step"] for point in validations(trial.folder(folder))]
        assert steps == list(range(2, steps[-1] + 1, 2))
    assert not (folder.path / ".ray").exists(), "pickles are left behind"
    check_answer(answer, base, trials=4)
    with pytest.raises(ConfigError, match="holds a run already"):
        sweep(base, address=address)
    assert sweep(base, resume=True, address=address)["best"]["model"] == answer["best"]["model"], "promoted twice"
    assert len(MlflowClient(base.tracking.uri).search_model_versions()) == 1


@pytest.mark.slow
def test_a_sweep_ends_where_ray_notes_a_cluster_that_is_gone(packed: Path, tmp_path: Path) -> None:
    """`ray start` leaves such a note behind. Stopped trials kept their places then, and later ones waited for ever."""
    base = config(tmp_path, packed, steps=16, promote="none")
    (tmp_path / "sweep.yaml").write_text(base.to_yaml())
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as short:  # Ray makes sockets in it
        (Path(short) / "ray").mkdir()
        (Path(short) / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_ADDRESS"))}
        process = psutil.Popen(
            command("sweep", str(tmp_path / "sweep.yaml")),
            env=environment | {"RAY_TMPDIR": short},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            out, _ = process.communicate(timeout=540)
        finally:
            for one in [*process.children(recursive=True), process] if process.is_running() else []:
                one.kill()
    assert process.returncode == 0, out
    assert {trial.state for trial in load_trials(RunFolder(base.run_folder))} <= {"finished", "stopped"}
    assert "waits for" in out
