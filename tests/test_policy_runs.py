"""Whole runs of reinforcement learning on Ray workers, from the config to the report."""

from pathlib import Path
from typing import Any

import pytest
from test_reinforcement import config

from distmeta.config import Config, validate
from distmeta.scale.run import run


def small(home: Path, name: str, **train: Any) -> Config:
    made = config(home / name).model_dump(exclude_none=True)
    made["train"] |= train
    made["tracking"] |= {"uri": f"sqlite:///{home / 'mlflow.db'}", "model": "walker"}
    return validate(made, "test")


@pytest.fixture(scope="module")
def alone(home: Path, address: str) -> dict[str, Any]:
    """A run on one worker."""
    return run(small(home, "alone", workers=1), address=address)


def test_a_run_is_scored_by_its_return_after_each_step(alone: dict[str, Any]) -> None:
    assert alone["steps"] == 6
    assert list(alone["test"]["return_by_step"]) == ["0", "1", "2"]
    assert all(value < 0 for value in alone["test"]["return_by_step"].values())
    assert alone["test"]["random_init"].keys() == alone["test"]["return_by_step"].keys()
    page = (Path(alone["run_folder"]) / "report.html").read_text()
    assert "somebody who knows the goals" in page
