"""Tests of finished runs and published models from any location, in one form for tables."""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.errors import RegistryError, RunError
from distmeta.registry import versions
from distmeta.registry.listing import list_models, matching
from distmeta.training.measurement import Measurement, measurement_of
from distmeta.training.model_folder import ModelFolder, Rows
from distmeta.training.over_seeds import scores_of
from distmeta.training.run_folder import RunFolder

_SETTING = ("way", "shot", "queries", "inner_steps", "norm")  # keys of a test by which tests can be ordered
_EPISODES = ("way", "shot", "queries", "episodes", "seed")  # keys that determine a test's episodes, besides the dataset


@dataclass(frozen=True)
class Outcome:
    """One trained network's test. `facts` are the values that it can be ordered by (learner, dataset, shot, …), `on` determines its
    episodes. `scores` (episodes, columns) is NaN if a score was not finite; `training_seed` is None if unknown.
    """

    origin: str
    facts: dict[str, Any]
    training_seed: int | None
    on: tuple[Any, ...]
    measurement: Measurement
    scores: NDArray[np.float64]
    published: dict[str, Any] | None


def outcomes(origin: str, uri: str) -> Iterator[Outcome]:
    """The tests of `origin`: a run folder or its URL (of one run, several seeds, or a sweep's winner), a registered model
    (models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN_ID/model), or all its versions (models:/NAME).

    Raises RunError, RegistryError.
    """
    if not origin.startswith(("models:/", "runs:/")):
        for folder in _runs(RunFolder(origin)):
            description = folder.best.read_description() | {"test": folder.read_result()["test"]}
            yield _outcome(str(folder), folder.name, description, folder.read_test_episodes())
        return
    for address in _addresses(origin, uri):
        with tempfile.TemporaryDirectory() as scratch:
            description = versions.download(uri, address, Path(scratch))
            yield _outcome(address, address.removeprefix("models:/"), description, ModelFolder(Path(scratch)).read_test_episodes())


def _addresses(origin: str, uri: str) -> list[str]:
    """`origin`, or the addresses of all versions of the model that it names."""
    name = re.fullmatch(r"models:/([^/@]+)", origin)
    if name is None:
        return [origin]
    addresses = [row["uri"] for row in matching(list_models(uri), name[1], None)]
    if not addresses:
        raise RegistryError(f"no model of the name {name[1]} is registered", "distmeta models lists them")
    return addresses


def _runs(folder: RunFolder) -> Iterator[RunFolder]:
    """The run folders with a test inside `folder`."""
    if folder.holds_seeds:
        yield from (folder.of_seed(seed) for seed in folder.read_seeds()["seeds"] if folder.of_seed(seed).has_ended)
    elif folder.trials_folder.exists():
        table = folder.read_table()
        if table is None:
            raise RunError(f"the sweep in {folder} has not ended", "distmeta sweep CONFIG --resume continues it")
        best = table["best"]
        if "test" not in best:
            raise RunError(f"the sweep in {folder} has no test, because of sweep.promote=none", "tabulate runs of its best.yaml instead")
        steps = best.get("retrained_steps")
        yield folder.trial(best["number"]) if steps is None else folder.retrained(best["number"], steps)
    else:
        yield folder


def _outcome(origin: str, name: str, description: dict[str, Any], by_episode: Rows) -> Outcome:
    test = {key: _scalar(value) for key, value in description["test"].items() if key in {*_SETTING, *_EPISODES}}
    facts = {
        "run": name,
        "learner": description["learner"]["name"],
        "network": description["model"]["name"],
        "dataset": description["dataset"],
        **{key: test.get(key) for key in _SETTING},
        "train_way": description["task"]["way"],
        "train_shot": description["task"]["shot"],
        **{f"learner.{key}": _scalar(value) for key, value in description["learner"].items() if key != "name"},
        **{f"model.{key}": _scalar(value) for key, value in description["model"].items() if key != "name"},
    }
    return Outcome(
        origin=origin,
        facts=facts,
        training_seed=description.get("training_seed"),
        on=(description["fingerprint"], *(test.get(key) for key in _EPISODES)),
        measurement=measurement_of(description["test"]),
        scores=scores_of(by_episode),
        published=description.get("published"),
    )


def _scalar(value: Any) -> Any:
    """`value` in a form that tests can be ordered by: lists (learner.adapt) and mappings (model.lora) become text."""
    return json.dumps(value) if isinstance(value, list | dict) else value
