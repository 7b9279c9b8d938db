"""The model card, made from records: intended use, data, accuracy, weak points, and what was never tested."""

from contextlib import suppress
from typing import Any, NamedTuple

from distmeta.errors import RunError
from distmeta.learners import LEARNERS
from distmeta.training.measurement import Measurement, baseline_name, baseline_of, measurement_of

_NAMED = 5  # worst categories and classes
_LONGEST = 5000  # maximum characters of a description in a registry


class Part(NamedTuple):
    """A heading and the sentences below it."""

    title: str
    sentences: list[str]


def model_card(description: dict[str, Any]) -> list[Part]:
    """The card of a tested model; `description` is the published one, with its "test" and "calibration".

    Raises RunError if the test is not understood.
    """
    return [
        Part("Intended use", _use(description)),
        Part("Data", _data(description)),
        Part("Figures", _figures(description)),
        Part("Limits", _limits(description)),
        Part("Never tested", _untested(description)),
    ]


def as_markdown(card: list[Part]) -> str:
    """The card in a registry's description, cut to the maximum length."""
    parts = ["\n".join([f"## {part.title}", "", *(f"- {sentence}" for sentence in part.sentences)]) for part in card]
    return "\n\n".join(parts)[:_LONGEST]


def _classifies(description: dict[str, Any]) -> bool:
    return measurement_of(description["test"]).name == "accuracy"


def _baseline(test: dict[str, Any]) -> Measurement | None:
    """The figures without meta-training, if the test has them."""
    with suppress(RunError):
        return baseline_of(test)
    return None


def _tasks(task: dict[str, Any]) -> str:
    return f"{task['way']}-way {task['shot']}-shot" if task["way"] > 1 else f"{task['shot']}-shot"


def _use(description: dict[str, Any]) -> list[str]:
    learner, task, images = description["learner"]["name"], description["task"], description.get("preprocessing")
    network = f"{learner} with the network {description['model']['name']}"
    if not _classifies(description):
        return [f"It adapts to new tasks like those of {description['dataset']} from {task['shot']} examples, by {network}."]
    any_way = learner in LEARNERS and LEARNERS[learner].any_way
    classes = "any number of" if any_way else f"exactly {task['way']}"
    said = [f"It tells {classes} classes apart that it has not seen in training, from a few labelled examples of each, by {network}."]
    if images is not None:
        size, colors = images["image_size"], "colour" if images["channels"] == 3 else "shades of grey"
        said.append(f"It sees images at {size} x {size} pixels in {colors}; others are resized ({images['resize']}).")
    return said


def _data(description: dict[str, Any]) -> list[str]:
    test = description["test"]
    said = [f"The dataset is {description['dataset']} (fingerprint {description['fingerprint'][:12]})."]
    if description["step"]:
        seed = f", with seed {description['training_seed']}" if description.get("training_seed") is not None else ""
        said.append(f"It was meta-trained on {_tasks(description['task'])} tasks for {description['step']} steps{seed}.")
    else:
        said.append("It was not meta-trained: the network is as it started.")
    origin = baseline_name(test)
    if origin != "random initialisation":
        said.append(f"The baseline is this network: {origin}.")
    classes = f" of {test['by_class']['classes']} classes that training did not use" if "by_class" in test else ""
    queries = f"{test['queries']} queries per class" if test["way"] > 1 else f"{test['queries']} queries"
    episodes = f"{test['episodes']} {_tasks(test)} episodes{classes}, {queries}, seed {test['seed']}"
    return [*said, f"It was tested on {episodes}."]


def _figures(description: dict[str, Any]) -> list[str]:
    test = description["test"]
    ours, theirs = measurement_of(test), _baseline(test)
    said = [f"Test: {ours.summary}, with 95 % intervals over episodes."]
    said += [f"Without meta-training ({baseline_name(test)}): {theirs.text(theirs.headline)}."] if theirs else []
    if "calibration" in test:
        before, after = (100 * test["calibration"][when]["error"] for when in ("before", "after"))
        said.append(f"Expected calibration error: {before:.1f} % as the network gives probabilities, {after:.1f} % as predict gives them.")
    if "by_class" in test:
        categories, worst = test["by_class"]["categories"], test["by_class"]["worst"]
        if len(categories) > 1:
            said.append(f"Lowest of {len(categories)} categories (inductive): {_listed(categories)}.")
        if worst:
            said.append(f"Lowest of {test['by_class']['classes']} classes (inductive): {_listed(worst)}.")
    return said


def _listed(entries: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entry['name']} {100 * entry['accuracy']:.0f} % of {entry['queries']} queries" for entry in entries[:_NAMED])


def _limits(description: dict[str, Any]) -> list[str]:
    test, said = description["test"], []
    measured = measurement_of(test)
    if _classifies(description):
        said.append("An image that belongs to none of the classes is assigned to one of them. A low probability is the only sign.")
        if measured.headline != measured.selected:
            alone = measured.text(measured.selected)
            said.append(f"In use each query is classified by itself: expect {alone}, not the {measured.columns[measured.headline]} figure.")
        fitted = ", ".join(_tasks(each) for each in description.get("calibration", ()))
        said.append(f"Probabilities are calibrated for {fitted} tasks." if fitted else "Probabilities are not calibrated.")
    baseline = _baseline(test)
    if description["step"] and baseline is not None and not measured.score > baseline.score:
        said.append("The test shows no gain from meta-training.")
    return [*said, f"Figures on your own data depend on how similar the data are to {description['dataset']}."]


def _untested(description: dict[str, Any]) -> list[str]:
    test = description["test"]
    said = [
        f"Tasks other than {_tasks(test)}, and data that are not from {description['dataset']}.",
        f"Inner steps other than {test['inner_steps']}.",
    ]
    if description["step"]:
        said.append("How much another training seed changes the figures.")
    if _classifies(description):
        said.append("Wrong labels among the support images, and classes with different numbers of them.")
    return said
