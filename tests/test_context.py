"""What MLflow's pages show of a run beside its figures."""

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from registered import config

from distmeta.registry import tracking
from distmeta.registry.context import page_of
from distmeta.registry.source import CONTEXT, source_tags
from distmeta.training.run_folder import RunFolder


def test_the_commit_is_the_working_folders(tmp_path: Path) -> None:
    assert "mlflow.source.git.commit" not in source_tags(tmp_path)
    commands = ["init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"]
    for command in commands:
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert source_tags(tmp_path)["mlflow.source.git.commit"] == head


def test_without_git_a_run_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "mlflow.source.git.commit" not in source_tags(tmp_path)


def test_a_job_is_told_its_submitters_source_by_mlflows_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTEXT, json.dumps({"mlflow.source.git.commit": "c" * 40, "mlflow.user": "ann"}))
    assert {"mlflow.source.git.commit": "c" * 40, "mlflow.user": "ann"}.items() <= source_tags(tmp_path).items()
    for damaged in ("{", "[1]"):
        monkeypatch.setenv(CONTEXT, damaged)
        assert source_tags(tmp_path)["mlflow.source.name"] == "distmeta"


def test_a_run_names_its_dataset_and_its_experiment_opens_on_runs(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = RunFolder(tmp_path / "run")
    made = config(tmp_path / "run", uri)
    folder.path.mkdir()
    folder.write_description(made, {"dataset": "patterns", "fingerprint": "f" * 64})
    run_id = tracking.start_run(made, folder, {"dataset": "patterns", "fingerprint": "f" * 64})
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    (held,) = run.inputs.dataset_inputs
    assert (held.dataset.name, held.dataset.digest) == ("patterns", "f" * 36)
    assert json.loads(held.dataset.source) == {"uri": "x"}
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert folder.read_mlflow()["page"] == page_of(uri, run.info.experiment_id, run_id)


def test_a_page_is_an_address_without_credentials() -> None:
    assert (
        page_of("https://user:secret@host:5000/", "3", "abc") == "https://host:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    )
    local = page_of("sqlite:///mlflow.db", "3", "abc")
    assert local.startswith("http://127.0.0.1:5000/#/experiments/3/runs/abc")
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in local
