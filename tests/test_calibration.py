"""Temperatures of probabilities: how they are fitted, chosen and measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registered import DESCRIPTION, WAY, publish

from distmeta.data.episodes import Task
from distmeta.data.inspect import export_episode
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.files import of_kind
from distmeta.inference.model import Adapted
from distmeta.inference.predict import adapt_to_folder
from distmeta.inference.temperature import accepted, calibration_note, nearest_temperature
from distmeta.learners import build_learner
from distmeta.learners.description import Description, Temperature
from distmeta.models import build_model
from distmeta.registry import versions
from distmeta.registry.temperatures import tags_of
from distmeta.training.accuracy import Accuracy
from distmeta.training.by_class import accuracy_by_class
from distmeta.training.calibration import (
    BINS,
    Answered,
    Answers,
    calibration_error,
    calibration_of,
    fitted_temperature,
    temperature_of,
)
from distmeta.training.evaluate import evaluate


def drawn(temperature: float, episodes: int = 60, way: int = 5, seed: int = 0) -> Answered:
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, (episodes, 15 * way, way))
    noise = random.gumbel(size=logits.shape)  # the argmax of logits/T + Gumbel noise is a draw from the softmax
    return Answered(logits, (logits / temperature + noise).argmax(-1).astype(np.float64))


def fitted(answered: Answered, **task: int) -> Temperature:
    return temperature_of(answered, Task(**{"way": 5, "shot": 1, "queries": 15} | task), 2)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 20), st.integers(0, 10**6))
def test_the_temperature_that_labels_were_drawn_at_is_found_again(temperature: float, seed: int) -> None:
    assert fitted_temperature(drawn(temperature, seed=seed)) == pytest.approx(temperature, rel=0.15)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 50), st.integers(0, 10**6))
def test_the_fitted_temperature_is_a_minimum_of_the_loss_and_scales_with_the_logits(factor: float, seed: int) -> None:
    answered = drawn(2.0, episodes=5, seed=seed)
    found = fitted_temperature(answered)

    def loss(temperature: float) -> float:
        logits, labels = torch.from_numpy(answered.logits), torch.from_numpy(answered.labels).long()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1) / temperature, labels.flatten()).item()

    assert loss(found) <= min(loss(found * near) for near in (0.99, 0.999, 1.001, 1.01))
    assert fitted_temperature(answered._replace(logits=factor * answered.logits)) == pytest.approx(factor * found, rel=1e-6)


def test_a_temperature_changes_no_answer_and_lowers_the_error() -> None:
    validation, test = drawn(6.0, 100, seed=1), drawn(6.0, 200, seed=2)
    temperature = fitted(validation)
    found = calibration_of(test, temperature)
    assert found["before"]["error"] > 0.2
    assert found["after"]["error"] < 0.02
    assert found["before"]["confidence"] > test.right.mean() + 0.2
    assert found["after"]["confidence"] == pytest.approx(test.right.mean(), abs=0.02)
    scaled = test._replace(logits=test.logits / temperature["temperature"])
    assert np.array_equal(scaled.right, test.right)


def test_the_error_agrees_with_its_definition_and_lies_in_its_interval() -> None:
    answered = drawn(4.0, 30, seed=3)
    found = calibration_error(answered, 1.0)
    confidence, right = answered.confidence(1.0).ravel(), answered.right.ravel()
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, BINS)  # 2,250 answers: 150 in each
    expected = sum(len(of) / len(order) * abs(confidence[of].mean() - right[of].mean()) for of in bins)
    assert found["error"] == pytest.approx(expected)
    assert found["interval"][0] < found["error"] < found["interval"][1]
    assert [len(pair) for pair in found["bins"]] == [2] * BINS
    assert calibration_error(answered, 1.0) == found, "the bootstrap is not a function of its seed"


def test_the_interval_is_wider_where_episodes_differ_and_fewer_are_there() -> None:
    def width(answered: Answered) -> float:
        low, high = calibration_error(answered, 4.0)["interval"]
        return high - low

    many, few = drawn(4.0, 400), drawn(4.0, 20)
    assert width(few) > 2 * width(many)
    alike = Answered(few.logits.repeat(20, 0), few.labels.repeat(20, 0))  # 400 episodes of which each 20 are one
    assert width(alike) < width(few)


def test_what_a_lowest_probability_costs_is_counted_on_the_validation_episodes() -> None:
    answered = drawn(2.0)
    temperature = fitted(answered)
    confidence, right = answered.confidence(temperature["temperature"]), answered.right
    for percent in (0, 37, 90, 100):
        those = confidence >= percent / 100
        coverage, accuracy = accepted(temperature, percent / 100)
        assert coverage == pytest.approx(those.mean(), abs=1e-5)
        assert accuracy == pytest.approx(right[those].mean(), abs=1e-5) if those.any() else accuracy is None
    assert accepted(temperature, 0.375) == accepted(temperature, 0.38), "between two thresholds the stricter one is quoted"
    assert temperature["coverage"] == sorted(temperature["coverage"], reverse=True)


def test_the_temperature_of_the_most_similar_tasks_is_taken_and_named() -> None:
    held = [{"way": way, "shot": shot, "inner_steps": 2, "episodes": 100, "temperature": 2.0} for way, shot in ((5, 1), (5, 5), (20, 1))]

    def nearest(way: int, shot: float, steps: int = 2) -> tuple[int, int] | None:
        found = nearest_temperature({"calibration": held}, way, shot, steps)
        return found and (found["way"], found["shot"])

    assert nearest(5, 1) == (5, 1)
    assert nearest(8, 5) == (5, 5)
    assert nearest(19, 1.5) == (20, 1)
    assert nearest(5, 1, steps=3) is None
    assert nearest_temperature({}, 5, 1, 2) is None, "a model from before there were temperatures"
    assert calibration_note(held[0], 5, 1.0) == "probabilities are calibrated by 100 validation episodes, 5-way 1-shot (temperature 2)"
    assert "5-way 5-shot" in calibration_note(held[1], 8, 5.0)
    assert "this task is 8-way 5-shot" in calibration_note(held[1], 8, 5.0)
    assert calibration_note(None, 5, 1).startswith("probabilities are uncalibrated")


@pytest.mark.parametrize(
    "damage", [{"temperature": 0.0}, {"temperature": float("inf")}, {"coverage": [0.5] * 3}, {"way": 0}, {"accuracy": [2.0] * 101}]
)
def test_a_damaged_temperature_is_no_description(damage: dict[str, Any]) -> None:
    whole = fitted(drawn(2.0))
    of_kind(Description, json.loads(json.dumps(DESCRIPTION | {"calibration": [whole]})))
    with pytest.raises(ValueError, match="calibration"):
        of_kind(Description, DESCRIPTION | {"calibration": [whole | damage]})


def test_answers_are_kept_beside_the_same_accuracy(dataset: Dataset) -> None:
    learner = build_learner(model=build_model(**DESCRIPTION["model"]), **DESCRIPTION["learner"])
    params, task = learner.initial_params(), Task(WAY, 1, 2)
    stream = EpisodeStream(dataset=dataset, split="test", task=task, seed=0)
    kept = evaluate(answers := Answers(task), learner, params, stream, 7, "batch")
    plain = evaluate(Accuracy(), learner, params, stream, 7, "batch")
    assert plain.as_dict() == kept.as_dict()
    assert torch.equal(plain.by_episode, kept.by_episode)
    assert kept.beside is not None
    answered = answers.answered(kept.beside)
    assert answered.logits.shape == (7, 2 * WAY, WAY)
    assert np.array_equal(answered.right.mean(1), plain.by_episode[:, 1].numpy())
    by_class = accuracy_by_class(stream, answered)
    asked = sum(category["queries"] for category in by_class["categories"])
    assert asked == 7 * 2 * WAY
    assert sum(c["queries"] * c["accuracy"] for c in by_class["categories"]) == pytest.approx(answered.right.sum())


def test_classes_are_ranked_from_the_worst_on(dataset: Dataset) -> None:
    """Answers that are right for all but one class, which must come first with accuracy 0."""
    task = Task(WAY, 1, 2)
    stream = EpisodeStream(dataset=dataset, split="test", task=task, seed=0)
    labels = np.tile(np.repeat(np.arange(WAY), 2), (200, 1))
    class_ids = np.stack([stream.evaluation_episode(number).class_ids for number in range(200)])
    bad = class_ids[0, 0]
    said = np.where(class_ids[np.arange(200)[:, None], labels] == bad, (labels + 1) % WAY, labels)
    found = accuracy_by_class(stream, Answered(np.eye(WAY)[said], labels.astype(np.float64)))
    first, *others = found["worst"]
    assert (first["name"], first["accuracy"]) == (dataset.manifest.classes[bad].name, 0.0)
    assert {entry["accuracy"] for entry in others} == {1.0}
    assert found["classes"] == len(np.unique(class_ids))


def test_a_model_answers_at_the_temperature_it_was_published_with(dataset: Dataset, tmp_path: Path) -> None:
    """Probabilities are softmax(logits / T) with the same answers, also after saving; a model without temperatures is as it was."""
    episode = tmp_path / "episode"
    export_episode(dataset, "test", Task(WAY, 1, 3), 0, episode)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    held = fitted(drawn(3.0), way=WAY) | {"temperature": 5.0}
    plain = versions.load_model(uri, publish(uri, tmp_path / "run", "plain", description=DESCRIPTION).uri)
    calibrated = plain._replace(description=plain.description | {"calibration": [held]})
    files = sorted((episode / "query").rglob("*.png"))
    before, after = (adapt_to_folder(model, episode / "support")[0] for model in (plain, calibrated))
    assert (before.temperature, after.temperature) == (None, held)
    logits = before.predict(files).log()
    torch.testing.assert_close(after.predict(files), (logits / 5).softmax(1))
    assert torch.equal(before.predict(files).argmax(1), after.predict(files).argmax(1))
    after.save(tmp_path / "adapted")
    assert torch.equal(Adapted.load(tmp_path / "adapted").predict(files), after.predict(files))
    assert adapt_to_folder(calibrated, episode / "support", steps=7)[0].temperature is None, "fitted for other inner steps"


def test_a_temperature_fitted_later_is_kept_with_the_version(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    held = fitted(drawn(3.0), way=WAY)
    address = publish(uri, tmp_path / "run", "later", description=DESCRIPTION | {"calibration": [held]}).uri
    wider = fitted(drawn(2.0), way=WAY, shot=5)
    versions.tag_version(uri, address, tags_of(wider))
    assert versions.load_model(uri, address).description["calibration"] == [held, wider]
    versions.tag_version(uri, address, tags_of(held | {"temperature": 9.0}) | {"calibration:nonsense": '{"way": 5}'})
    temperatures = [each["temperature"] for each in versions.load_model(uri, address).description["calibration"]]
    assert temperatures == [9.0, wider["temperature"]]
