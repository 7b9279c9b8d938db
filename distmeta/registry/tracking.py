"""A run folder's mirror in MLflow: one thread in the driver sends the metrics files in order. Nothing waits for it."""

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that does not answer is found out in seconds, not in the minutes that MLflow would retry.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from distmeta.config import Config
from distmeta.errors import RegistryError
from distmeta.train.checkpoint import write_whole
from distmeta.train.metrics import Record, read_metrics

RUN_FILE = "mlflow.json"
_BATCH = 500  # metrics in one call; MLflow takes up to 1000
_EVERY_S = 1.0


def tracking_uri(uri: str | None) -> str:
    """The URI given, else MLFLOW_TRACKING_URI, else a SQLite file in the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def without_credentials(uri: str) -> str:
    """`uri` without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turn what MLflow and its stores raise inside the block into RegistryError naming the server."""
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"MLflow at {without_credentials(uri)}: {reason}", "check tracking.uri or MLFLOW_TRACKING_URI") from None


def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def start_run(config: Config, run_folder: Path, tags: dict[str, str]) -> str:
    """The MLflow run of this run folder, begun if there is none yet; its whole config as parameters. Raises RegistryError."""
    uri = tracking_uri(config.tracking.uri)
    held = run_folder / RUN_FILE
    if held.exists():
        recorded = json.loads(held.read_text())
        if recorded["uri"] == without_credentials(uri):
            with answers(uri):
                client(uri).set_terminated(recorded["run_id"], "RUNNING")
            return recorded["run_id"]
    with answers(uri):
        mlflow = client(uri)
        run = mlflow.create_run(_experiment(mlflow, uri, config.tracking.experiment), run_name=run_folder.name)
        run_id = run.info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in flat(config.model_dump(exclude={"tracking": {"uri"}})).items()]
        mlflow.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
        mlflow.log_artifact(run_id, str(run_folder / "config.yaml"))
    write_whole(held, json.dumps({"uri": without_credentials(uri), "run_id": run_id}))
    return run_id


def _experiment(mlflow: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id; a new one in a local SQLite file keeps its artifacts beside that file, wherever it is opened from later."""
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return mlflow.create_experiment(name, artifact_location=location)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def metrics_of(record: Record) -> list[Metric]:
    """The numbers of one step's record; `validation.accuracy` and the like carry the section's name."""
    step = record["step"]
    named = {key.replace(".", "/"): value for key, value in flat(record).items() if key != "step"}
    # The timestamp is the step, so that sending a step again replaces nothing and hides nothing.
    return [Metric(key, float(value), step, step) for key, value in named.items() if isinstance(value, int | float)]


class Mirror:
    """Sends metrics files to MLflow from a thread of its own while a run goes on, and what is left at the end."""

    def __init__(self, uri: str, run_id: str, run_folder: Path) -> None:
        self._client = client(uri)
        self._run_id = run_id
        self._run_folder = run_folder
        self._sent = -1
        self._error: Exception | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def unsent(self) -> str | None:
        """Why something could not be sent, if so."""
        return str(self._error).splitlines()[0] if self._error else None

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(_EVERY_S)
            try:
                self._send()
                self._error = None
            except (MlflowException, OSError) as error:  # tried again at the next turn
                self._error = error

    def _send(self) -> None:
        if self._sent < 0:
            self._sent = max((m.step for m in self._client.get_metric_history(self._run_id, "outer_lr")), default=0)
        batch: list[Metric] = []
        last = self._sent
        for record in read_metrics(self._run_folder, self._sent):
            metrics = metrics_of(record)
            if len(batch) + len(metrics) > _BATCH:
                self._flush(batch, last)
                batch = []
            batch += metrics
            last = record["step"]
        if batch:
            self._flush(batch, last)

    def _flush(self, batch: list[Metric], last: int) -> None:
        self._client.log_batch(self._run_id, metrics=batch, synchronous=True)
        self._sent = last


def log_result(uri: str, run_id: str, result: dict[str, Any]) -> None:
    """Log the test's figures under test/…, the best step and the final weights' SHA-256 as tags. Raises RegistryError.

    Figures by inner step are logged as curves over the inner steps.
    """
    with answers(uri):
        mlflow = client(uri)
        step = result["steps"]
        metrics = []
        for key, value in result["test"].items():
            if isinstance(value, dict) and key != "beside":
                metrics += [Metric(f"test/{key}", figure, int(inner), int(inner)) for inner, figure in value.items()]
            elif isinstance(value, float):
                metrics.append(Metric(f"test/{key}", value, step, step))
        mlflow.log_batch(run_id, metrics=metrics)
        mlflow.set_tag(run_id, "weights_sha256", result["weights_sha256"])
        mlflow.set_tag(run_id, "best_step", str(result["best_step"]))


def log_files(uri: str, run_id: str, files: list[Path]) -> None:
    """Keep copies of `files` with the run. Raises RegistryError."""
    with answers(uri):
        for file in files:
            client(uri).log_artifact(run_id, str(file))


def fetch_file(uri: str, run_id: str, name: str) -> bytes | None:
    """What `log_files` kept with the run under this name; None if there is no such file. Raises RegistryError."""
    with answers(uri), tempfile.TemporaryDirectory() as scratch:
        if all(file.path != name for file in client(uri).list_artifacts(run_id)):
            return None
        return Path(client(uri).download_artifacts(run_id, name, scratch)).read_bytes()


def set_tags(uri: str, run_id: str, tags: dict[str, str]) -> None:
    """Raises RegistryError."""
    with answers(uri):
        client(uri).log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def end_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Mark the run ended. Raises RegistryError."""
    with answers(uri):
        client(uri).set_terminated(run_id, status)
