"""The doctor names what fails and what to do, and passes what is well."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from packaging.requirements import Requirement

from distmeta import cli
from distmeta.learners.allocator import ALLOCATOR
from distmeta.registry import listing
from distmeta.scale import doctor


def lines(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in findings}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray takes seconds; tests/test_run.py does."""
    monkeypatch.setattr(doctor, "_cluster", lambda address: "not asked")


@pytest.mark.usefixtures("no_ray")
def test_all_is_well_here(packed: Path, tmp_path: Path) -> None:
    found = lines(list(doctor.examine(f"sqlite:///{tmp_path / 'mlflow.db'}", None, str(packed))))
    assert not [finding for finding in found.values() if finding.remedy]
    assert {"Python", "distmeta", "torch", "ray", "mlflow", "accelerator", "allocator", "disk here"} <= found.keys()
    assert "onnx" not in found, "extras are not needed"
    assert found["MLflow and its registry"].found.endswith("0 registered models")
    assert "patterns, 25 classes in 6 shards" in found["dataset"].found


@pytest.mark.usefixtures("no_ray")
def test_every_model_is_counted_however_many_pages_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for number in range(7):
        MlflowClient(uri).create_registered_model(f"m{number}")
    monkeypatch.setattr(listing, "_PAGE", 3)
    assert lines(list(doctor.examine(uri, None, None)))["MLflow and its registry"].found.endswith("7 registered models")


@pytest.mark.usefixtures("no_ray")
def test_what_fails_has_a_remedy(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    with (shards / "val-000001.tar").open("ab") as file:
        file.write(b"more")
    monkeypatch.setattr(doctor, "_LEAST_DISK_GB", 10**9)
    monkeypatch.setitem(ALLOCATOR, "MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "2")
    found = lines(list(doctor.examine("http://127.0.0.1:9/", None, str(shards))))
    failing = {what for what, finding in found.items() if finding.remedy}
    assert failing == {"disk here", "MLflow and its registry", "dataset"} | (
        {"allocator"} if "glibc" not in found["allocator"].found else set()
    )
    assert "val-000001.tar has" in found["dataset"].found
    assert found["MLflow and its registry"].remedy == "check tracking.uri or MLFLOW_TRACKING_URI"
    gone = lines(list(doctor.examine(f"sqlite:///{tmp_path / 'mlflow.db'}", None, str(tmp_path / "gone"))))
    assert gone["dataset"].remedy.startswith("pack it first")


def test_packages_are_compared_with_what_is_required() -> None:
    assert doctor._package(Requirement("numpy>=1.0")).remedy == ""
    assert "numpy>=99" in doctor._package(Requirement("numpy>=99")).remedy
    missing = doctor._package(Requirement("no-such-package>=1"))
    assert missing.found == "not installed; no-such-package>=1 is needed"
    assert missing.remedy.startswith("pip install")


def test_a_cluster_that_does_not_answer_is_a_line() -> None:
    finding = doctor._asked("Ray", lambda: doctor._cluster("127.0.0.1:9"))
    assert finding.found.startswith("no Ray cluster answers at --address=127.0.0.1:9: ")
    assert finding.remedy == "start that cluster, or correct --address"


@pytest.mark.usefixtures("no_ray")
def test_the_verb_prints_findings_and_its_exit_code_says_whether_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for shards, code in ((None, 0), ("absent", 1)):
        monkeypatch.setattr("sys.argv", ["distmeta", "doctor", "--json", *(("--shards", shards) if shards else ())])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = json.loads(capsys.readouterr().out)
        assert int(stopped.value.code or 0) == code
        assert out["ok"] == (code == 0)
        assert [finding["what"] for finding in out["findings"] if finding["remedy"]] == (["dataset"] if code else [])
