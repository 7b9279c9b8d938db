"""Model cards: every sentence comes from a record, in the report and in the registry alike."""

import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from registered import DESCRIPTION, PROTONET, publish

from distmeta.inference.card import as_markdown, model_card

TEST: dict[str, Any] = {
    "accuracy": 0.8,
    "ci95": 0.01,
    "accuracy_inductive": 0.7,
    "ci95_inductive": 0.02,
    "random_init": 0.4,
    "random_init_ci95": 0.01,
    "baseline": "random initialisation",
    "episodes": 600,
    "seed": 0,
    "way": 5,
    "shot": 1,
    "queries": 15,
    "inner_steps": 3,
    "norm": "batch",
    "calibration": {"before": {"error": 0.2}, "after": {"error": 0.012}},
    "by_class": {
        "classes": 25,
        "categories": [{"name": "dogs", "queries": 900, "accuracy": 0.41}, {"name": "fruit", "queries": 800, "accuracy": 0.9}],
        "worst": [{"name": "terrier", "category": "dogs", "queries": 90, "accuracy": 0.2}],
    },
}


def sentences(description: dict[str, Any], title: str) -> str:
    return " ".join(next(part.sentences for part in model_card(description) if part.title == title))


def test_the_worst_classes_are_named_and_what_was_not_tested_is_said() -> None:
    about = DESCRIPTION | {"step": 40, "test": TEST, "training_seed": 4, "calibration": [{"way": 5, "shot": 1}]}
    assert "exactly 3 classes" in sentences(about, "Intended use")
    assert "16 x 16 pixels in shades of grey" in sentences(about, "Intended use")
    assert "600 5-way 1-shot episodes of 25 classes that training did not use" in sentences(about, "Data")
    figures = sentences(about, "Figures")
    assert "accuracy 80.0 ± 1.0 %, inductive 70.0 ± 2.0 %" in figures
    assert "Without meta-training (random initialisation): 40.0 ± 1.0 %" in figures
    assert "20.0 % as the network gives probabilities, 1.2 % as predict gives them" in figures
    assert "Lowest of 2 categories (inductive): dogs 41 % of 900 queries, fruit" in figures
    assert "Lowest of 25 classes (inductive): terrier 20 % of 90 queries" in figures
    limits = sentences(about, "Limits")
    assert "expect 70.0 ± 2.0 %, not the transductive figure" in limits
    assert "calibrated for 5-way 1-shot tasks" in limits
    assert "no gain" not in limits
    assert "It was meta-trained on 3-way 1-shot tasks for 40 steps, with seed 4" in sentences(about, "Data")
    assert "Tasks other than 5-way 1-shot" in sentences(about, "Never tested")
    assert "Inner steps other than 3" in sentences(about, "Never tested")


def test_a_card_follows_what_its_records_say() -> None:
    about = PROTONET | {"step": 40, "test": TEST | {"random_init": 0.75, "baseline": "not meta-trained, from lite0.pth"}}
    assert "any number of classes" in sentences(about, "Intended use")
    assert "The baseline is this network: not meta-trained, from lite0.pth" in sentences(about, "Data")
    assert "shows no gain" in sentences(about, "Limits")
    assert "not calibrated" in sentences(about, "Limits")
    untrained = about | {"step": 0}
    assert "It was not meta-trained: the network is as it started" in sentences(untrained, "Data")
    assert "gain" not in sentences(untrained, "Limits")
    bare = {key: value for key, value in TEST.items() if not key.startswith(("random", "by_", "calib"))}
    assert "Lowest" not in sentences(PROTONET | {"step": 40, "test": bare}, "Figures")


def test_regression_has_a_card_without_classes() -> None:
    error = {"mse_by_step": {"0": 3.0, "1": 1.0}, "ci95_by_step": {"0": 0.1, "1": 0.1}, "episodes": 600, "inner_steps": 1, "seed": 0}
    about = DESCRIPTION | {
        "step": 40,
        "preprocessing": None,
        "task": {"way": 1, "shot": 5},
        "test": error | {"way": 1, "shot": 5, "queries": 10},
    }
    assert "It adapts to new tasks like those of patterns from 5 examples" in sentences(about, "Intended use")
    assert "squared error 1.000 ± 0.100" in sentences(about, "Figures")
    assert not re.search("class|accuracy", as_markdown(model_card(about)), re.IGNORECASE)


def test_the_registry_shows_the_card(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    publish(uri, tmp_path / "run", "carded", test={"random_init": 0.4, "random_init_ci95": 0.02})
    shown = MlflowClient(uri).get_model_version("carded", "1").description
    assert [line for line in shown.splitlines() if line.startswith("## ")] == [
        *("## Intended use", "## Data", "## Figures", "## Limits", "## Never tested")
    ]
    assert "- Without meta-training (random initialisation): 40.0 ± 2.0 %." in shown


@pytest.mark.parametrize("count", [1, 10_000])
def test_a_description_is_never_longer_than_a_registry_keeps(count: int) -> None:
    worst = [{"name": "x" * 2000, "category": "", "queries": 20, "accuracy": 0.0}] * count
    about = DESCRIPTION | {"step": 40, "test": TEST | {"by_class": {"classes": count, "categories": [], "worst": worst}}}
    assert len(as_markdown(model_card(about))) <= 5000
