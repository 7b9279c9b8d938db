"""Finished runs and published models for tests, without a run."""

from pathlib import Path
from typing import Any

import numpy as np

from distmeta.config import Config, validate
from distmeta.learners import build_learner
from distmeta.models import build_model
from distmeta.registry import tracking, versions
from distmeta.training.run_folder import RunFolder

WAY = 3
ON = {"episodes": 20, "seed": 0, "way": WAY, "shot": 1, "queries": 15}
DESCRIPTION: dict[str, Any] = {
    "model": {"name": "conv4", "input_shape": [1, 16, 16], "outputs": WAY, "filters": 4, "downsample": "max-pool"},
    "learner": {"name": "maml", "inner_lr": 0.1, "inner_steps": 1, "inner_steps_eval": 2},
    "preprocessing": {"image_size": 16, "channels": 1, "resize": "squash", "mean": [0.5], "std": [0.2]},
    "norm": "batch",
    "dataset": "patterns",
    "fingerprint": "f" * 64,
    "task": {"way": WAY, "shot": 1, "queries": 15},
}
PROTONET = DESCRIPTION | {"learner": {"name": "protonet"}}


def config(folder: Path, uri: str) -> Config:
    return validate({"run_folder": str(folder), "data": {"shards": "x"}, "tracking": {"uri": uri}}, "test")


def by_episode(accuracy: float, seed: int = 0, episodes: int = 50) -> list[list[float]]:
    """Figures of a test's episodes, as counts of right answers among 45 give them."""
    right = np.random.default_rng(seed).binomial(45, accuracy, (episodes, 2)) / 45
    return right.tolist()


def finished_run(
    folder: Path,
    uri: str,
    accuracy_inductive: float = 0.5,
    figures: list[list[float]] | None = None,
    description: dict[str, Any] = DESCRIPTION,
    test: dict[str, Any] | None = None,
) -> RunFolder:
    """A run folder as training leaves it, its model not trained at all."""
    learner = build_learner(model=build_model(**description["model"]), **description["learner"])
    found = {"step": 10, "validation": ON | {"accuracy_inductive": accuracy_inductive}, "validation_score": accuracy_inductive}
    run_folder = RunFolder(folder)
    run_folder.save_best(10, learner.whole(learner.initial_params()), description | found)
    (folder / "config.yaml").write_text("{}")
    figures = figures or by_episode(accuracy_inductive)
    mean = np.mean(figures, 0).tolist()
    on = ON | {"episodes": len(figures), "inner_steps": 2, "norm": "batch"}
    tested = {"accuracy": mean[0], "ci95": 0.01, "accuracy_inductive": mean[1], "ci95_inductive": 0.01} | on | (test or {})
    run_folder.write_result({"steps": 10, "best_step": 10, "weights_sha256": "0" * 64, "test": tested}, figures)
    tracking.start_run(config(folder, uri), run_folder, {"run_folder": str(folder)})
    return run_folder


def publish(uri: str, folder: Path, name: str, accuracy_inductive: float = 0.5, **run: Any) -> versions.Published:
    return versions.publish(uri, finished_run(folder, uri, accuracy_inductive, **run), name)
