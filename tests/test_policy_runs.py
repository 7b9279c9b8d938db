"""Whole runs of reinforcement learning on Ray workers, from the config to the report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from test_reinforcement import config

from distmeta.config import Config, validate
from distmeta.scale.run import run


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


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
