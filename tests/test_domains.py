"""Domains: a third one, docs/extending.md's own, goes every way by the command line; and what holds of all."""

import ast
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import same
from hypothesis import given
from hypothesis import strategies as st
from registered import by_episode, finished_run
from scipy import stats
from torch import nn

from distmeta import cli
from distmeta.assembly.domain import domain_of
from distmeta.assembly.run import Run
from distmeta.config import Config, load_config, with_values
from distmeta.data.episodes import Batch, EpisodeBatch, Task
from distmeta.errors import ConfigError, RunError
from distmeta.learners import build_learner
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.registry import charts, versions
from distmeta.registry.compare import _paired, verdict
from distmeta.show import show_test
from distmeta.training.accuracy import Accuracy
from distmeta.training.evaluate import Evaluation, Setting, evaluate, paired_difference, scores
from distmeta.training.intervals import FEWEST, mean_and_ci95
from distmeta.training.measurement import Measurement, baseline_of, measurement_of, score_of
from distmeta.training.metric import Metric
from distmeta.training.squared_error import SquaredErrorByStep

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text().partition("\n## A domain\n")[2].partition("\n## ")[0]
RETURN: dict[str, Any] = {"name": "return", "unit": "", "scale": 1.0, "digits": 2, "axis": "inner steps"}
ON = Setting(episodes=9, way=5, shot=1, queries=3, seed=0, inner_steps=1, norm="none")
UNFINISHED = """
from hidden_points import HiddenPoints, Hidden, Reward, Search
from distmeta.assembly.domain import Domain

class Abstract(Domain):
    pass

class Partly(Domain):
    Settings, metric, objective, name, input_shape = Hidden, Reward(), Search(), "partly", (1,)
    training, evaluation, example, describe = HiddenPoints.training, HiddenPoints.evaluation, HiddenPoints.example, HiddenPoints.describe

class Fails(HiddenPoints):
    def __init__(self, config):
        raise ValueError("no sensor")
"""
FORMER = {
    "accuracy": 0.9704666666666666,
    "ci95": 0.0033623074951336764,
    "accuracy_inductive": 0.9608444444444443,
    "ci95_inductive": 0.0038714889782506365,
    **{"episodes": 600, "way": 5, "shot": 1, "queries": 15, "seed": 0, "inner_steps": 3, "norm": "batch"},
    "random_init": 0.42342222222222226,
    "random_init_ci95": 0.008850386945869293,
}
"""A test as distmeta stored it when it had plain keys alone."""


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def measured(value: float | None, more_is_better: bool = True) -> Measurement:
    return Measurement(
        **RETURN, more_is_better=more_is_better, columns=["0"], selected=0, headline=0, values=[value], ci95=[None], episodes=9
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the page's two files."""
    home = tmp_path_factory.mktemp("extending")
    (home / "hidden_points.py").write_text(block("python"))
    (home / "hidden_points.yaml").write_text(block("yaml"))
    (home / "unfinished.py").write_text(UNFINISHED)
    (home / "broken.py").write_text("def Domain(:")
    sys.path.append(str(home))
    return home


@pytest.fixture
def hidden_points(home: Path) -> Config:
    return load_config(home / "hidden_points.yaml")


def test_the_pages_domain_goes_every_way_by_the_command_line(
    home: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, validates, tests, is published, listed, compared, reported and swept; and two workers end in the bits of one."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str, ray: bool = False) -> str:
        monkeypatch.setattr("sys.argv", ["distmeta", *arguments, *(["--address", address] if ray else [])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert not stopped.value.code, err
        return out

    alone = json.loads(call("train", "hidden_points.yaml", "--json", ray=True))
    before, after = alone["test"]["random_init_measurement"], alone["test"]["measurement"]
    assert after["values"][-1] > max(before["values"][-1], after["values"][0]), "it has learned, and it adapts"
    assert (after["name"], after["more_is_better"], len(after["values"])) == ("reward", True, 3)
    assert alone["best_step"] in (20, 40, 60)
    two = ("--set", "run_folder=runs/two", "--set", "train.workers=2")
    assert json.loads(call("train", "hidden_points.yaml", *two, "--json", ray=True))["weights_sha256"] == alone["weights_sha256"]
    rows = json.loads(call("models", "--json"))
    assert {row["measurement"]["name"] for row in rows} == {"reward"}
    assert "reward -" in call("models")
    names = ["models:/hidden-points-30shot/1", "models:/hidden-points-30shot/2"]
    assert "no difference is shown over 40 paired episodes: B - A = +0.000" in call("compare", *names)
    call("report", "runs/hidden_points", "--config", "hidden_points.yaml")
    page = (home / "runs" / "hidden_points" / "report.html").read_text()
    assert f"its reward on new tasks is {after['values'][-1]:.2f}" in page
    assert "No test episodes were looked at" not in page
    said = call("sweep", "hidden_points.yaml", "--set", "run_folder=runs/sweep", "--set", "outer.steps=20", "--json", ray=True)
    swept = json.loads(said.splitlines()[-1])
    scores = [row["score"] for row in swept["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert all(score < 0 for score in scores)
    assert swept["trials"][0]["validation"] == f"{scores[0]:.2f}"


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta-sgd", "maml++", "reptile", "transfer"])
def test_learners_ask_for_support_data_at_each_step(hidden_points: Config, name: str) -> None:
    """Data that depends on φ: looped and batched tasks agree, checkpointed gradients are the unrolled ones, in float64."""
    settings = {"learner.name": name, "train.precision": "float64"}
    engines = [settings | {"learner.task_batching": way} for way in ("loop", "vmap")]
    if name in ("maml", "anil", "meta-sgd", "maml++"):
        engines += [engine | {"learner.gradient": "checkpointed"} for engine in engines]
    found = []
    for engine in engines:
        config = with_values(hidden_points, engine, "test")
        this = Run.of(config, dtype=torch.float64)
        this.domain.check()
        params = this.start()
        batch = next(this.domain.training([3, 1, 2], 5)).like(next(iter(params.values())))
        found.append(this.learner.slot_gradients(params, batch))
        assert this.worker_bytes("cpu", 2)
    for gradients, metrics in found:
        torch.testing.assert_close(gradients, found[0][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(metrics.score, found[0][1].score, rtol=1e-9, atol=1e-12)
        assert (metrics.score < 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.domain": "nonsense"}, r"data.domain=nonsense is not a domain\nchoose classification, regression"),
        ({"data.domain": "hidden_points.Nothing"}, r"data.domain='hidden_points.Nothing' cannot be imported: .*Nothing"),
        ({"data.domain": "nowhere.at.All"}, r"cannot be imported: .*No module named 'nowhere'"),
        ({"data.domain": "hidden_points.Points"}, r"hidden_points.Points is type, not a Domain"),
        ({"data.domain": "unfinished.Abstract"}, r"unfinished.Abstract has no describe, evaluation, example, training\ndefine each as"),
        ({"data.domain": "unfinished.Partly"}, r"unfinished.Partly has no fingerprint, outputs"),
        ({"data.domain": "unfinished.Fails"}, r"unfinished.Fails cannot be built: ValueError\('no sensor'\)"),
        ({"data.domain": "broken.Domain"}, r"broken.Domain' cannot be imported: SyntaxError"),
        ({"data.domain": "classification", "data.settings": {}}, r"data.shards is not set"),
        ({"data.domain": "regression", "data.settings": {}}, r"data.functions is not set"),
        ({"data.settings": {"depth": 3}}, r"data.settings.depth=3: .*\nset one of the domain's settings: tries, spread"),
        ({"data.settings": {"tries": "many"}}, r"data.settings.tries='many': .*\nchange data.settings.tries"),
        ({"data.settings": {"tries": "many"}}, r"data.settings.tries='many'"),
        ({"learner.name": "protonet", "learner.inner_lr": None, "learner.inner_steps": None}, r"learner protonet classifies; the tasks of"),
    ],
)
def test_what_a_domain_does_not_take_is_refused(hidden_points: Config, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        domain_of(with_values(hidden_points, values, "test")).check()


def test_an_episodes_score_does_not_depend_on_which_others_are_scored(hidden_points: Config) -> None:
    this = Run.of(hidden_points)
    learner, domain = this.learner, this.domain
    params, stream = this.start(), domain.evaluation("test")
    whole = evaluate(domain.metric, learner, params, stream, 8, "none")
    for shares in ([[0, 1, 2], [3, 4, 5, 6, 7]], [[5, 0, 7], [], [6, 1], [2, 4, 3]]):
        for share in shares:
            assert torch.equal(scores(domain.metric, learner, params, stream, share), whole.by_episode[share])
    assert whole.score == pytest.approx(whole.by_episode[:, -1].mean().item())
    assert list(whole.as_dict()["reward_by_step"]) == ["0", "1", "2"]


# Batches


@dataclass(frozen=True)
class WithNames(EpisodeBatch):
    """A batch with two more fields, of which nobody else has heard."""

    weights: torch.Tensor
    names: list[str]


def test_a_field_added_to_a_batch_goes_wherever_the_batch_goes() -> None:
    images, labels = torch.arange(12.0).view(3, 2, 2), torch.tensor([[0, 1]] * 3)
    batch = WithNames(4, [7, 8, 9], images, labels, images, labels, torch.tensor([1.0, 2.0, 3.0]), ["a", "b", "c"])
    some = batch.take([2, 0, 0])
    assert (some.step, some.slots, some.names, some.weights.tolist()) == (4, [9, 7, 7], ["c", "a", "a"], [3.0, 1.0, 1.0])
    assert torch.equal(some.query_images, images[[2, 0, 0]])
    double = batch.like(torch.zeros(0, dtype=torch.float64))
    assert (double.weights.dtype, double.support_labels.dtype) == (torch.float64, torch.int64)
    assert [one.names for one in batch.each()] == [["a"], ["b"], ["c"]]
    assert same(batch.take(range(3)), batch)
    assert len(batch) == 3
    assert isinstance(some, Batch)


# Measurements


@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=40))
def test_intervals_are_students(values: list[float]) -> None:
    mean, half = mean_and_ci95(values)
    if not values:
        assert (mean, half) == (None, None)
        return
    assert mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    if len(values) < FEWEST:
        assert half is None
        return
    spread = np.std(values, ddof=1) / len(values) ** 0.5
    assert half == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * spread, rel=1e-9, abs=1e-12)


def test_intervals_cover_what_they_say() -> None:
    """Of 2000 samples of 5 and of 20 from a normal distribution, 95 % of the intervals hold its mean (1.96 would cover 88 % and 93.5 %)."""
    for size in (5, 20):
        samples = np.random.default_rng(size).normal(3.0, 2.0, (2000, size))
        intervals = [mean_and_ci95(sample) for sample in samples]
        covered = np.mean([abs(mean - 3.0) <= half for mean, half in intervals if mean is not None and half is not None])
        assert covered == pytest.approx(0.95, abs=0.012), size


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("more_is_better", [True, False])
def test_a_score_that_is_not_finite_is_the_worst(bad: float, more_is_better: bool) -> None:
    assert mean_and_ci95([1.0, bad, 2.0, 3.0, 4.0]) == (None, None)
    assert score_of(bad, more_is_better) < score_of(1e30, more_is_better)
    assert score_of(bad, more_is_better) < score_of(-1e30, more_is_better)
    assert measured(None, more_is_better).text(0) == "not finite"
    # Compared by pairs, in either order.
    rows: list[float | None] = [-3.0, -2.0, -4.0, -3.5, -2.5, -1.0]
    broken = [None, *rows[1:]]
    for a, b, better in ((rows, broken, "a"), (broken, rows, "b"), (broken, broken, None)):
        found = _paired(a, b, more_is_better)
        assert (found["better"], found["difference"], found["p"]) == (better, None, None)
        said = verdict(found | {"figure": "return", "episodes": 6, "unit": "", "scale": 1.0, "digits": 2})
        assert said.startswith("no difference" if better is None else f"{better.upper()} is better")


def test_a_score_that_is_not_finite_is_never_crowned_and_makes_room_where_it_was(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def published(number: int, score: float | None) -> versions.Published:
        run = finished_run(tmp_path / str(number), uri, score, figures=by_episode(0.5))  # type: ignore[arg-type]
        return versions.publish(uri, run, "negative")

    assert not published(0, None).champion
    versions.promote(uri, "models:/negative/1", "champion")  # as an earlier edition did by itself
    assert [published(number, score).champion for number, score in enumerate((-5.0, None, -6.0, -4.0), 1)] == [True, False, False, True]


@given(st.lists(st.floats(-100, 100), min_size=5, max_size=20, unique=True), st.booleans())
def test_better_means_better_in_the_metrics_own_direction(values: list[float], more_is_better: bool) -> None:
    shifted = [value + 1.0 for value in values]
    found = _paired(values, shifted, more_is_better)
    assert found["difference"] == pytest.approx(1.0)
    assert found["better"] == ("b" if more_is_better else "a")


def test_results_of_earlier_versions_are_read() -> None:
    ours, theirs = measurement_of(FORMER), baseline_of(FORMER)
    assert ours.summary == "accuracy 97.0 ± 0.3 %, inductive 96.1 ± 0.4 %"
    assert (theirs.text(theirs.headline), ours.chance, ours.score) == ("42.3 ± 0.9 %", 0.2, FORMER["accuracy_inductive"])
    errors = {"mse_by_step": {"10": 0.5, "0": 3.0}, "ci95_by_step": {"0": 0.2, "10": 0.1}, "episodes": 9}
    errors |= {"random_init": {"0": 4.0, "10": 2.0}, "random_init_ci95": {"0": 0.2, "10": 0.1}}
    assert (measurement_of(errors).columns, measurement_of(errors).score) == (["0", "10"], -0.5)
    assert baseline_of(errors).summary == "squared error 2.000 ± 0.100"
    for damaged in ({}, {"accuracy": 0.5}, {"measurement": 3}, {"measurement": {"name": "x"}}):
        with pytest.raises(RunError, match="a stored evaluation cannot be read"):
            measurement_of(damaged)


def test_a_difference_is_of_each_models_own_last_step() -> None:
    """A model beside the run's may make another number of inner steps."""
    of = {steps: torch.rand(9, steps + 1, generator=torch.Generator().manual_seed(steps), dtype=torch.float64) for steps in (1, 3)}
    learners = {steps: build_learner("maml", nn.Linear(1, 1), inner_steps=steps) for steps in of}
    ours, theirs = (
        Evaluation(SquaredErrorByStep().measure(learners[steps], Task(1, 5, 5), rows), {}, ON, rows) for steps, rows in of.items()
    )
    expected = (of[1][:, 1] - of[3][:, 3]).mean().item()
    assert paired_difference(ours.headline, theirs.headline)["difference"] == pytest.approx(expected)


class Sides(Metric):
    """Columns that count nothing."""

    name, axis, digits = "side wins", None, 0

    def score(self, learner: Learner, meta_params: Params, episode: Batch) -> torch.Tensor:
        return torch.ones(2)

    def columns(self, learner: Learner) -> list[str]:
        return ["left", "right"]


def test_columns_that_are_kinds_have_metrics_of_their_own_in_mlflow() -> None:
    measurement = Sides().measure(build_learner("maml", nn.Linear(1, 1)), Task(1, 1, 1), torch.ones(6, 2))
    assert Sides().keys(measurement) == {"side_wins": {"left": 1, "right": 1}, "side_wins_ci95": {"left": 0, "right": 0}}
    assert measurement.summary == "side wins 1 ± 0"
    point = charts._column("test/side_wins", "left", 1.0, 60)
    assert (point.key, point.step) == ("test/side_wins/left", 60)
    assert charts._column("test/reward_by_step", "2", 1.0, 60).step == 2


def test_few_episodes_are_shown_without_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    """Three episodes of 100 % say nothing of the fourth."""
    for episodes, shown in ((3, "100.0 %"), (5, "100.0 ± 0.0 %")):
        rows = torch.ones(episodes, 2, dtype=torch.float64)
        found = Evaluation(Accuracy().measure(build_learner("maml", nn.Linear(1, 5)), Task(5, 1, 3), rows), {"": 1, "ci": 1}, ON, rows)
        show_test(found.as_dict() | found.as_baseline())
        assert re.findall(r"100\.0[^│]*%", capsys.readouterr().out) == [shown] * 4


def test_readers_need_nothing_but_the_stored_measurement() -> None:
    stored = json.loads(json.dumps(measured(-11.2).as_dict()))
    assert measurement_of({"measurement": stored}).summary == "return -11.20"
    assert measurement_of({"measurement": stored | {"a later version's": 1}}).summary == "return -11.20"


METRICS = {"training/accuracy.py", "training/squared_error.py", "training/measurement.py"}


def test_no_condition_outside_the_metrics_names_one() -> None:
    for path in (ROOT / "distmeta").rglob("*.py"):
        if str(path.relative_to(ROOT / "distmeta")) in METRICS:
            continue
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else getattr(node, "ifs", [])
            for test in tests:
                assert not re.search("mse|accuracy", ast.get_source_segment(source, test) or ""), f"{path}:{test.lineno}"
