"""The working folder of a hostile case: a packed dataset, images, a finished run and a registry, as a user has them."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from conftest import options, patterns
from registered import DESCRIPTION, WAY, finished_run

from distmeta.config import validate
from distmeta.data.pack import pack
from distmeta.inference.model import Model
from distmeta.learners import build_learner
from distmeta.models import build_model
from distmeta.registry import versions
from distmeta.training import checkpoint
from distmeta.training.checkpoint import Checkpoint
from distmeta.training.run_folder import RunFolder

CLASSES = ("ant", "bee", "cow")
CONFIG: dict[str, Any] = {
    "run_folder": "new",
    "data": {"shards": "data", "way": WAY, "queries": 3, "eval": {"episodes": 12}},
    "model": {"filters": 4},
    "learner": DESCRIPTION["learner"],
    "outer": {"steps": 30},
}


def make(folder: Path) -> None:
    """Fill `folder`, the working folder, which is and stays at this place."""
    os.chdir(folder)
    pack(patterns(), folder / "data", options())
    _write_images(folder)
    run = _finished_run(folder)
    versions.publish(f"sqlite:///{folder}/mlflow.db", run, "m")
    versions.publish(f"sqlite:///{folder}/mlflow.db", run, "m")
    drawn_model().adapt([folder / f"support/{name}/0.png" for name in CLASSES], CLASSES).save(folder / "adapted")
    (folder / "run.yaml").write_text(validate(CONFIG, "test").to_yaml())


def drawn_model() -> Model:
    torch.manual_seed(0)
    learner = build_learner(model=build_model(**DESCRIPTION["model"]), **DESCRIPTION["learner"])
    return Model("", DESCRIPTION, learner, learner.initial_params())


def _write_images(folder: Path) -> None:
    """support/CLASS and query/CLASS for predict; pictures/SPLIT/CLASS for pack."""
    for number, image in enumerate(patterns(images_per_class=4, classes=(6, 3, 3))):
        name, which = int(image.class_name.rpartition("-")[2]), number % 4
        places = [folder / "pictures" / image.split / f"{'class' if image.split == 'train' else image.split}{name}"]
        if image.split == "train" and name < WAY and which < 2:
            places.append(folder / ("support", "query")[which] / CLASSES[name])
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{which}.png").write_bytes(image.image)


def _finished_run(folder: Path) -> RunFolder:
    """A run as it is when it has ended, with a checkpoint and the records of its steps."""
    beside = {"random_init": 0.4, "random_init_ci95": 0.02}
    run = finished_run(folder / "run", f"sqlite:///{folder}/mlflow.db", test={"accuracy": 0.6121, "ci95": 0.0111} | beside)
    config = validate(CONFIG | {"run_folder": str(run), "data": CONFIG["data"] | {"shards": str(folder / "data")}}, "test")
    fingerprint = json.loads((folder / "data/manifest.json").read_text())["fingerprint"]
    run.write_description(config, {"dataset": "patterns", "fingerprint": fingerprint})
    run.note_start(0)
    run.metrics.cut(0)
    run.metrics.write(0, 30, [_record(step) for step in range(1, 31)])
    params = run.best.load_params()
    progress = {"best_step": 10, "best_score": 0.5, "bad_steps": 0, "largest": 1.0}
    moments = {f"exp_avg.{name}": value for name, value in params.items()}
    checkpoint.save(Checkpoint(30, params, moments, progress), run.checkpoint(30).path, checkpoint.machine(1))
    return run


def _record(step: int) -> dict[str, Any]:
    found = {"accuracy": 0.5, "ci95": 0.05, "accuracy_inductive": 0.4, "ci95_inductive": 0.05, "episodes": 9, "score": 0.4}
    validation = {"validation": found} if step % 10 == 0 else {}
    return {"step": step, "outer_lr": 0.001, "meta_loss": 1 / step, "accuracy": 0.5, "ranks": [0, 1], "time/adapt": 0.2} | validation
