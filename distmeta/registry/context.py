"""Context of a run on MLflow's pages: its dataset, and the address of its page."""

import json
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from distmeta.masking import masked

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Let the page of a new experiment open on its training runs, not on traces of prompts."""
_TRAINING = "workflowType=machine_learning"  # without this in their address, MLflow's pages show traces of prompts
_DIGEST = 36  # maximum characters in MLflow


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
    path = f"/#/experiments/{experiment_id}/runs/{run_id}?{_TRAINING}"
    if uri.startswith(("http://", "https://")):
        return masked(uri).rstrip("/") + path
    return f"http://127.0.0.1:5000{path} (after: mlflow ui --backend-store-uri {masked(uri)})"
