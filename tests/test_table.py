"""Tables of tests: the intervals and tests in them are the textbook's, and bold means what the caption says."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registered import DESCRIPTION, PROTONET, finished_run, publish
from scipy import stats

from distmeta.errors import ConfigError, RegistryError, RunError
from distmeta.report.outcomes import Outcome, outcomes
from distmeta.report.table import ResultTable, tabulate
from distmeta.report.table_text import as_dict, caption, differences, figure, written
from distmeta.training.intervals import holm, mean_and_ci95, paired
from distmeta.training.measurement import measurement_of
from distmeta.training.over_seeds import over_seeds
from distmeta.training.run_folder import RunFolder

ON = ("f", 3, 1, 15, 40, 0)
MEASUREMENT = measurement_of({"accuracy": 0.5, "ci95": 0.01, "accuracy_inductive": 0.5, "ci95_inductive": 0.01, "episodes": 40, "way": 3})


def made(learner: str, shift: float, seed: int | None = 0, episodes: int = 40, **changes: Any) -> Outcome:
    """A test whose episodes are the same for all: hard ones are hard for everybody, and each network has a noise of its own."""
    hardness = np.random.default_rng(1).normal(0.5, 0.1, (episodes, 1))
    own = np.random.default_rng([seed or 0, sum(map(ord, learner))])
    scores = hardness + shift + 0.01 * own.normal() + 0.02 * own.normal(size=(episodes, 2))
    facts = {"run": f"{learner}-{seed}", "learner": learner, "shot": 1} | changes.pop("facts", {})
    on = changes.pop("on", ON)
    return Outcome(origin=f"{facts}", facts=facts, training_seed=seed, on=on, measurement=MEASUREMENT, scores=scores, published=None)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(ps: list[float]) -> None:
    order = np.argsort(ps, kind="stable")
    for place, adjusted in enumerate(holm(ps)):
        rank = int(np.flatnonzero(order == place)[0])
        assert adjusted == max(min(1.0, (len(ps) - j) * ps[order[j]]) for j in range(rank + 1))


@given(st.integers(2, 30), st.integers(0, 99))
def test_a_paired_test_is_a_test_of_the_differences(count: int, seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, count))
    found = paired(a, b, fewest=2)
    expected = stats.ttest_1samp(a - b, 0)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.difference, found.ci95) == (pytest.approx((a - b).mean()), pytest.approx((high - low) / 2))
    assert paired(b, a, fewest=2).difference == pytest.approx(-(a - b).mean())


def test_a_value_that_is_not_finite_leaves_nothing_to_compare() -> None:
    assert paired([1.0, np.nan], [0.0, 0.0]) == (None, None, None)


@given(st.integers(2, 6), st.integers(5, 40), st.integers(0, 99))
def test_both_intervals_are_students_over_their_own_axis_around_one_mean(seeds: int, episodes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(seeds, episodes, 2))
    found = over_seeds(MEASUREMENT, scores.tolist())
    for column in range(2):
        for measured, means in ((found.over_seeds, scores.mean(1)), (found.over_episodes, scores.mean(0))):
            one = means[:, column]
            half = stats.t.interval(0.95, len(one) - 1, loc=0, scale=stats.sem(one))[1]
            assert measured.values[column] == pytest.approx(scores[:, :, column].mean())
            assert measured.ci95[column] == pytest.approx(half)
        assert found.over_seeds.values[column] == pytest.approx(found.over_episodes.values[column])


def test_an_interval_over_seeds_tells_of_what_one_over_episodes_cannot() -> None:
    """Networks that differ by more than their episodes leave in doubt."""
    scores = np.array([[0.9, 0.9, 0.9, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5]])[:, :, None].repeat(2, 2)
    found = over_seeds(MEASUREMENT, scores.tolist())
    assert found.over_episodes.ci95[0] == 0
    assert found.over_seeds.ci95[0] == pytest.approx(stats.t.ppf(0.975, 1) * 0.2)


def bold(table: ResultTable) -> set[str]:
    return {cell.row[0] for cell in table.cells if cell.bold}


def test_with_fewer_than_five_seeds_networks_are_compared_over_episodes() -> None:
    tests = [made(learner, shift, seed) for learner, shift in (("maml", 0.0), ("anil", 0.001), ("protonet", 0.2)) for seed in range(4)]
    table = tabulate(tests, ["learner"], ["shot"])
    assert table.basis == "episodes"
    assert bold(table) == {"protonet"}
    assert "these networks" in caption(table)
    a, b = (np.stack([test.scores[:, 0] for test in tests if test.facts["learner"] == name]).mean(0) for name in ("maml", "anil"))
    (pair,) = (pair for pair in table.pairs if {pair.a[0], pair.b[0]} == {"maml", "anil"})
    assert pair.p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_from_five_seeds_up_learners_are_compared_over_seeds() -> None:
    tests = [made(learner, shift, seed) for learner, shift in (("maml", 0.0), ("protonet", 0.001)) for seed in range(5)]
    table = tabulate(tests, ["learner"], ["shot"])
    assert table.basis == "seeds"
    assert "these networks" not in caption(table).split("Bold")[1]
    a, b = (np.array([test.scores[:, 0].mean() for test in tests if test.facts["learner"] == name]) for name in ("maml", "protonet"))
    assert table.pairs[0].p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    for cell, means in zip(table.cells, (a, b), strict=True):
        assert cell.ci95("seeds") == mean_and_ci95(means)[1]


def test_other_seeds_do_not_belong_together_in_pairs() -> None:
    tests = [made("maml", 0.0, seed) for seed in range(5)] + [made("anil", 0.0, seed) for seed in range(1, 6)]
    assert tabulate(tests, ["learner"], ["shot"]).basis == "episodes"


@given(st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=5), st.sampled_from([1, 5]))
def test_the_best_is_bold_and_so_is_exactly_what_no_test_tells_from_it(shifts: list[float], seeds: int) -> None:
    tests = [made(f"learner{number}", shift, seed) for number, shift in enumerate(shifts) for seed in range(seeds)]
    table = tabulate(tests, ["learner"], ["shot"])
    best = table.best((1,))
    assert best is not None
    assert best.mean == max(cell.mean for cell in table.cells if cell.mean is not None)
    assert len(table.pairs) == len(shifts) * (len(shifts) - 1) // 2
    for cell in table.cells:
        pair = table.pair(cell, best)
        assert cell.bold == (cell.row == best.row or (pair is not None and pair.p_holm >= 0.05))


def test_what_was_tested_on_other_episodes_is_not_compared() -> None:
    table = tabulate([made("maml", 0.0), made("anil", 0.3, on=("g", *ON[1:]))], ["learner"], ["shot"])
    assert (table.pairs, bold(table), table.untested) == ([], set(), [(1,)])
    assert "Not compared" in caption(table)


def test_a_network_that_is_not_finite_is_neither_best_nor_bold() -> None:
    lost = made("maml", 0.4)
    lost.scores[3] = np.nan
    table = tabulate([lost, made("anil", 0.0), made("protonet", 0.2)], ["learner"], ["shot"])
    assert bold(table) == {"protonet"}
    assert "not finite" in written(table, "text")


@pytest.mark.parametrize(
    ("tests", "by", "message", "remedy"),
    [
        ([], ["learner"], "no finished run", "give run folders"),
        ([made("maml", 0)], ["learnr"], "no run has a learnr", "learner"),
        ([made("maml", 0), made("anil", 0)], ["shot"], "differ in learner: maml and anil", "--by or --columns with learner"),
        ([made("maml", 0), made("maml", 0, facts={"run": "b"})], ["learner"], "training seeds 0, 0", "--by run"),
        ([made("maml", 0), made("maml", 0, 1, on=("g",))], ["learner"], "not tested on the same episodes", "--by run"),
    ],
)
def test_what_would_mix_things_up_is_refused(tests: list[Outcome], by: list[str], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        tabulate(tests, by, [])
    assert remedy in refused.value.remedy


def test_the_remedies_work() -> None:
    tests = [made("maml", 0), made("maml", 0, facts={"run": "b"}), made("anil", 0)]
    assert len(tabulate(tests, ["learner", "run"], []).cells) == 3


def sample() -> ResultTable:
    tests = [made(learner, shift, seed) for learner, shift in (("ma_ml", 0.0), ("protonet", 0.2)) for seed in range(3)]
    tests += [made("protonet", 0.3, seed, facts={"shot": 5}) for seed in range(3)]
    return tabulate(tests, ["learner"], ["shot"])


def test_every_form_holds_the_same_figures() -> None:
    table = sample()
    rows = list(csv.DictReader(io.StringIO(written(table, "csv"))))
    assert [row["learner"] for row in rows] == ["ma_ml", "protonet", "protonet"]
    for row, cell, entry in zip(rows, table.cells, as_dict(table)["cells"], strict=True):
        assert cell.mean is not None
        assert float(row["mean"]) == pytest.approx(100 * cell.mean)
        assert float(row["ci95_over_seeds"]) == pytest.approx(100 * entry["ci95_over_seeds"])
        for form in ("text", "markdown", "latex"):
            assert f"{100 * cell.mean:.1f}" in written(table, form)
    assert json.loads(json.dumps(as_dict(table)))["tests_over"] == "episodes"


def test_one_mark_is_one_interval_in_all_cells() -> None:
    """A table with an interval over seeds has none for a cell of one seed: its interval over episodes is in brackets, as in all cells."""
    single = tabulate([made("a", 0.1)], ["learner"], [])
    several = tabulate([*(made("a", 0.1, seed) for seed in range(3)), made("b", 0.0)], ["learner"], [])
    a, b = several.cells
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ \([\d.]+\)", figure(several, a))
    assert re.fullmatch(r"[\d.]+ \([\d.]+\)", figure(several, b))
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", figure(single, single.cells[0]))


def test_latex_is_escaped_and_its_columns_are_as_many_as_it_says() -> None:
    lines = written(sample(), "latex").splitlines()
    assert r"\begin{tabular}{lrr}" in lines
    body = [line for line in lines if line.endswith(r"\\")]
    assert all(line.count(" & ") == 2 for line in body)
    assert r"ma\_ml" in body[1]
    assert body[2].count(r"\textbf{") == 2


def test_markdown_is_a_table_with_the_best_in_bold() -> None:
    head, rule, *rows = written(sample(), "markdown").split("\n\n")[0].splitlines()
    assert head == "| learner | shot 1 | shot 5 |"
    assert rule == "| --- | --- | --- |"
    assert rows[0].startswith("| ma_ml | ")
    assert "**" not in rows[0]
    assert rows[1].count("**") == 4


def test_differences_are_of_the_best_to_each_other_one() -> None:
    (line,) = differences(sample())
    assert line.startswith("shot 1: protonet - ma_ml: +19.2 ± ")
    assert "by Holm" in line


def test_run_folders_and_models_are_tabulated_alike(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    finished_run(tmp_path / "maml", uri, 0.5)
    proto = PROTONET | {"training_seed": 3, "published": {"source": "Snell et al. 2017, table 2", "figure": 49.4, "ci95": 0.8}}
    publish(uri, tmp_path / "proto", "a", 0.8, description=proto)
    publish(uri, tmp_path / "other", "a", 0.7, description=DESCRIPTION)
    from_folders = tabulate([test for run in ("maml", "proto") for test in outcomes(str(tmp_path / run), uri)], ["learner"], ["shot"])
    assert [cell.row for cell in from_folders.cells] == [("maml",), ("protonet",)]
    assert from_folders.cells[1].seeds == (3,)
    assert "49.4 ± 0.8" in written(from_folders, "markdown")
    assert "Snell" in caption(from_folders)
    from_registry = tabulate(list(outcomes("models:/a", uri)), ["learner"], ["shot"])
    assert {cell.row: cell.mean for cell in from_registry.cells}[("protonet",)] == from_folders.cells[1].mean
    with pytest.raises(RegistryError, match="no model of the name b"):
        list(outcomes("models:/b", uri))


def test_the_runs_of_a_folder_of_seeds_share_a_cell(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "all").mkdir()
    several = RunFolder(tmp_path / "all")
    several.write_seeds({"seeds": [0, 1, 2]})
    for seed in (0, 1):
        finished_run(several.of_seed(seed).path, uri, 0.5 + 0.1 * seed, description=DESCRIPTION | {"training_seed": seed})
    (cell,) = tabulate(list(outcomes(str(tmp_path / "all"), uri)), ["learner"], []).cells
    assert cell.seeds == (0, 1), "seed 2 has not ended"


def test_tests_may_be_ordered_by_a_setting_that_is_a_list(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    adapted = DESCRIPTION | {"learner": DESCRIPTION["learner"] | {"adapt": ["head.*"]}}
    finished_run(tmp_path / "run", uri, description=adapted, test={"shot": [1, 5]})
    table = tabulate(list(outcomes(str(tmp_path / "run"), uri)), by=["learner.adapt"], columns=["shot"])
    assert '["head.*"]' in written(table, "text")
    assert "[1, 5]" in written(table, "text")


def test_episodes_of_unequal_rows_are_damage(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    finished_run(tmp_path / "run", uri)
    (tmp_path / "run" / "test_episodes.json").write_text("[[0.5, 0.4], [0.5]]")
    with pytest.raises(RunError, match=r"test_episodes\.json"):
        list(outcomes(str(tmp_path / "run"), uri))
