"""What MLflow's pages show of a run beside its figures: who started it from which code, on which data, and where the page is."""

import getpass
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from distmeta.masking import masked

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Let the page of a new experiment open on its training runs, not on traces of prompts."""
_GIT_S = 5.0
_DIGEST = 36  # characters that MLflow takes


def source_tags(folder: Path | None = None) -> dict[str, str]:
    """Who runs what: the user, the program, and the git commit of `folder` (default: the working folder), if it has one."""
    tags = {"mlflow.source.name": "distmeta", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no repository
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=_GIT_S, check=True)
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    return tags


def dataset_inputs(name: str, fingerprint: str, source: str | None, facts: dict[str, Any]) -> list[DatasetInput]:
    """The run's dataset as MLflow shows it: its name, its fingerprint, and where it is; `facts` are numbers of its episodes."""
    described = Dataset(
        name=name,
        digest=fingerprint[:_DIGEST],
        source_type="local" if source is None or "://" not in source else source.partition("://")[0],
        source=json.dumps({"uri": masked(source or name)}),
        profile=json.dumps(facts),
    )
    return [DatasetInput(described, [InputTag("mlflow.data.context", "training, validation and test")])]


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of the run's page; for a database, the command that serves it comes first."""
    path = f"/#/experiments/{experiment_id}/runs/{run_id}"
    if uri.startswith(("http://", "https://")):
        return masked(uri).rstrip("/") + path
    return f"http://127.0.0.1:5000{path} (after: mlflow ui --backend-store-uri {masked(uri)})"
