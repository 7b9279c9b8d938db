"""A run folder's mirror in MLflow: one thread in the driver sends the metrics files in order, and nothing waits for the thread.

Sending a record again changes nothing: a metric's timestamp is its step, and MLflow's database keeps one point for each key, step,
timestamp and value.
"""

import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# An unreachable server is detected after 15 s; MLflow would retry for minutes. Its retries would also repeat requests whose answer was
# lost, and create a run or a model version twice. Callers that need another attempt check the server's state first.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from distmeta.config import Config, flat
from distmeta.errors import DistmetaError, Overtaken, RegistryError, RunError, Stopped, Unanswered
from distmeta.masking import masked
from distmeta.registry import store
from distmeta.registry.charts import metrics_of_test
from distmeta.registry.context import EXPERIMENT_TAGS, dataset_inputs, page_of
from distmeta.registry.outlive import watched_over
from distmeta.registry.source import source_tags
from distmeta.training.events import sentence
from distmeta.training.measurement import KEY
from distmeta.training.metrics_folder import Record
from distmeta.training.run_folder import CONFIG, RunFolder
from distmeta.training.stored import LOST

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also prints a traceback of the errors that it raises

_BATCH = 500  # metrics in one call (MLflow's limit: 1000)
_EVERY_S = 1.0
_LONGEST_PAUSE_S = 30.0
_END_S = 30.0
_NOT_DRAWN = {"step", "sampled_at", *(f"validation.{key}" for key in ("way", "shot", "queries", "episodes", "seed", "inner_steps"))}
_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_AWS_SIGV4")


def tracking_uri(uri: str | None) -> str:
    """The URI given, else MLFLOW_TRACKING_URI, else a SQLite file in the working folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Convert errors of MLflow and its stores inside the block into RegistryError naming the server, Unanswered unless it refused."""
    try:
        store.check(uri)
        with store.in_time(uri):
            yield
    except DistmetaError:
        raise
    except Exception as error:  # a server may return anything, and a database may fail in any way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        refused = isinstance(error, MlflowException) and error.get_http_status_code() < 500
        kind = RegistryError if refused else Unanswered
        raise kind(f"MLflow at {masked(uri)}: {reason}", "check tracking.uri or MLFLOW_TRACKING_URI") from None


def client(uri: str) -> MlflowClient:
    uri = store.absolute(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def start_run(config: Config, run_folder: RunFolder, tags: dict[str, str]) -> str:
    """The MLflow run of this run folder (created if needed), with the whole config as parameters. Raises RegistryError. A resumed run that
    MLflow knows does not need an answer.
    """
    uri = tracking_uri(config.tracking.uri)
    if begun(run_folder, uri):
        run_id = run_folder.read_mlflow()["run_id"]
        with suppress(Unanswered), answers(uri):
            client(uri).set_terminated(run_id, "RUNNING")
        return run_id
    experiment_id = check_experiment(uri, config.tracking.experiment)
    with answers(uri):
        mlflow = client(uri)
        run = mlflow.create_run(experiment_id, run_name=run_folder.name)
        run_id = run.info.run_id
    with answers(uri), _ended_if_it_fails(uri, lambda: run_id):
        params = [Param(key, str(value)[:6000]) for key, value in flat(config.shown()).items() if key != "tracking.uri"]
        tags = source_tags() | tags
        mlflow.log_batch(run_id, params=params, tags=[RunTag(key, masked(value)) for key, value in tags.items()])
        if "fingerprint" in tags:
            task = {"way": config.data.way, "shot": config.data.shot, "queries": config.data.queries}
            mlflow.log_inputs(run_id, dataset_inputs(tags["dataset"], tags["fingerprint"], config.data.shards, task))
        mlflow.log_text(run_id, run_folder.config_text(), CONFIG)
    run_folder.write_mlflow({"uri": masked(uri), "run_id": run_id, "page": page_of(uri, experiment_id, run_id)})
    return run_id


def say_page(run_folder: RunFolder, say: Callable[[str], None]) -> None:
    """Print the address of the folder's run in MLflow."""
    page = run_folder.read_mlflow().get("page")
    if page:  # runs of distmeta 0.1 have none
        say(f"MLflow run {page}")


def begun(run_folder: RunFolder, uri: str) -> bool:
    """Whether the run in this folder has an MLflow run at `uri`."""
    return run_folder.has_mlflow_run and run_folder.read_mlflow()["uri"] == masked(uri)


def recorded_uri(run_folder: RunFolder) -> str:
    """The tracking URI of the folder's run, or MLFLOW_TRACKING_URI if the two differ only in credentials.

    The folder may come from somebody else. Raises RunError if it names a server that would receive this machine's credentials, or a
    database that does not exist.
    """
    recorded, usual = run_folder.read_mlflow()["uri"], tracking_uri(None)
    if masked(usual) == recorded:
        return usual
    remedy = f"if you trust it: distmeta sync {run_folder} --tracking-uri {recorded}"
    credentials = [name for name in _CREDENTIALS if os.environ.get(name)]
    if (Path.home() / ".mlflow" / "credentials").exists():
        credentials.append("~/.mlflow/credentials")
    if credentials and not recorded.startswith("sqlite:"):
        raise RunError(f"{run_folder} names {recorded} as its MLflow server, which would be shown {credentials[0]} of this machine", remedy)
    database = store.database_of(recorded)
    if database is not None and not database.exists():
        raise RunError(f"{run_folder} names {recorded} as its MLflow database, which does not exist", remedy)
    return recorded


def check_experiment(uri: str, name: str) -> str:
    """The experiment's id (created if needed). Raises RegistryError if the experiment is deleted, or if this machine cannot write its
    files.
    """
    with answers(uri):
        mlflow = client(uri)
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            experiment = mlflow.get_experiment(mlflow.create_experiment(name, store.artifacts_beside(uri), EXPERIMENT_TAGS))
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"MLflow's experiment {name} at {masked(uri)} is deleted",
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}, or choose another: --set tracking.experiment=NAME",
        )
    reason = store.unwritable(uri, experiment.artifact_location)
    if reason:
        raise RegistryError(
            f"MLflow's experiment {name} keeps files in {experiment.artifact_location}, where this machine cannot write: {reason}",
            "start the server with --artifacts-destination, and choose a new experiment: --set tracking.experiment=NAME",
        )
    return experiment.experiment_id


def metrics_of(record: Record) -> list[Metric]:
    """The numbers of one step's record; `validation.accuracy` and the like carry the section's name.

    MLflow's pages draw each number: named sections first, then keys without a section by the alphabet, which brings `time_adapt` to the
    end; those of `system/` apart, over the time of day. What is the same at every validation is left out.
    """
    step = record["step"]
    plain = {key: value for key, value in flat(record).items() if key not in _NOT_DRAWN and not key.startswith(f"validation.{KEY}.")}
    named = {re.sub("^time/", "time_", key.replace(".", "/")): value for key, value in plain.items()}
    sampled_ms = round(1000 * record.get("sampled_at", 0))
    return [
        Metric(key, float(value), sampled_ms if key.startswith("system/") else step, step)
        for key, value in named.items()
        if isinstance(value, int | float)
    ]


def send_metrics(uri: str, run_id: str, run_folder: RunFolder) -> int:
    """Send the records of the run folder's metrics files that MLflow lacks, and the run's events. Returns the last step that MLflow then
    has. Raises RegistryError.
    """
    with answers(uri):
        mlflow = client(uri)
        mlflow.get_run(run_id)  # for an unknown run MLflow returns an empty history
        _tell_events(mlflow, run_id, run_folder, told=0)
        last = _last_held(mlflow, run_id)
        for sent in _sending(mlflow, run_id, run_folder, last):
            last = sent
    return last


def _last_held(mlflow: MlflowClient, run_id: str) -> int:
    """Every record has an outer_lr, and records are sent in order."""
    return max((metric.step for metric in mlflow.get_metric_history(run_id, "outer_lr")), default=0)


def _sending(mlflow: MlflowClient, run_id: str, run_folder: RunFolder, after: int) -> Iterator[int]:
    """Send the records after step `after`, whole records in each call; yields the last step sent after each call."""
    batch: list[Metric] = []
    last = after
    for record in run_folder.metrics.read(after):
        metrics = metrics_of(record)
        if batch and len(batch) + len(metrics) > _BATCH:
            mlflow.log_batch(run_id, metrics=batch, synchronous=True)
            yield last
            batch = []
        batch += metrics
        last = record["step"]
    if batch:
        mlflow.log_batch(run_id, metrics=batch, synchronous=True)
        yield last


class Mirror:
    """Sends metrics files to MLflow from a separate thread while a run continues, and retries if MLflow fails.

    `send_metrics` sends the rest after the block.
    """

    def __init__(self, uri: str, run_id: str, run_folder: RunFolder) -> None:
        self._client = client(uri)
        self._run_id = run_id
        self._run_folder = run_folder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(_END_S)  # the time to wait for a call in progress

    def _run(self) -> None:
        last: int | None = None
        pause, told = _EVERY_S, 0
        while not self._end.wait(pause):
            try:
                told = _tell_events(self._client, self._run_id, self._run_folder, told)
                last = _last_held(self._client, self._run_id) if last is None else last
                for sent in _sending(self._client, self._run_id, self._run_folder, last):
                    last = sent
                    if self._end.is_set():
                        return
                pause = _EVERY_S
            except Exception:  # training continues after any error, and `send_metrics` reports it
                # The effect of a failed call is unknown: a server may act and lose the connection before it answers.
                last, pause = None, min(2 * pause, _LONGEST_PAUSE_S)


def _tell_events(mlflow: MlflowClient, run_id: str, run_folder: RunFolder, told: int) -> int:
    """Keep the last event, the number of lost workers and the last one of them as tags, if there are more events than were `told`."""
    events = run_folder.events.read()
    if len(events) > told:
        losses = [event for event in events if event["kind"] in LOST]
        tags = {"last_event": sentence(events[-1]), "lost_workers": str(len(losses))}
        tags |= {"last_lost_worker": sentence(losses[-1])} if losses else {}
        mlflow.log_batch(run_id, tags=[RunTag(key, masked(value)) for key, value in tags.items()])
    return len(events)


def log_result(uri: str, run_id: str, result: dict[str, Any]) -> None:
    """Log the test's figures under test/…, the best step and the final weights' SHA-256 as tags. Raises RegistryError.

    Figures by inner step are logged as curves over the inner steps.
    """
    with answers(uri):
        mlflow = client(uri)
        mlflow.log_batch(run_id, metrics=metrics_of_test(result))
        mlflow.set_tag(run_id, "weights_sha256", result["weights_sha256"])
        mlflow.set_tag(run_id, "best_step", str(result["best_step"]))


def log_figures(uri: str, run_id: str, figures: dict[str, float]) -> None:
    """Log figures of a run as a whole. Raises RegistryError."""
    with answers(uri):
        client(uri).log_batch(run_id, metrics=[Metric(key, value, 0, 0) for key, value in figures.items()])


def log_files(uri: str, run_id: str, files: list[Path]) -> None:
    """Keep copies of `files` with the run. Raises RegistryError."""
    with answers(uri), tempfile.TemporaryDirectory() as scratch:
        for file in files:
            copy = Path(scratch) / file.name  # because MLflow accepts only local paths
            copy.write_bytes(file.read_bytes())
            client(uri).log_artifact(run_id, str(copy))


def fetch_file(uri: str, run_id: str, name: str) -> bytes | None:
    """The content of a file that `log_files` stored with the run, or None without such a file. Raises RegistryError."""
    with answers(uri), tempfile.TemporaryDirectory() as scratch:
        if all(file.path != name for file in client(uri).list_artifacts(run_id)):
            return None
        return Path(client(uri).download_artifacts(run_id, name, scratch)).read_bytes()


def set_tags(uri: str, run_id: str, tags: dict[str, str]) -> None:
    """Raises RegistryError."""
    with answers(uri):
        client(uri).log_batch(run_id, tags=[RunTag(key, masked(value)) for key, value in tags.items()])


@contextmanager
def ended(uri: str, run_folder: RunFolder) -> Iterator[None]:
    """If the block raises, end the folder's MLflow run, if it is running and MLflow answers: KILLED if it was stopped, else FAILED.

    The run is also ended if this process is killed inside the block.
    """
    with (
        watched_over(uri, str(run_folder)),
        _ended_if_it_fails(uri, lambda: run_folder.read_mlflow()["run_id"] if run_folder.has_mlflow_run else None),
    ):
        yield


@contextmanager
def _ended_if_it_fails(uri: str, run_id: Callable[[], str | None]) -> Iterator[None]:
    """`ended` for the run that `run_id` names when the block has raised; None: there is none."""
    try:
        yield
    except Overtaken:  # the MLflow run now belongs to the other process
        raise
    except BaseException as error:
        with suppress(RegistryError, RunError):  # the first error is the one to report
            failed = run_id()
            if failed is not None and _is_running(uri, failed):
                end_run(uri, failed, "KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
        raise


def _is_running(uri: str, run_id: str) -> bool:
    with answers(uri):
        return bool(client(uri).get_run(run_id).info.status == "RUNNING")


def end_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Mark the run ended. Raises RegistryError."""
    with answers(uri):
        client(uri).set_terminated(run_id, status)


def running_below(uri: str, run_id: str) -> list[str]:
    """Those of the run and its child runs that are running. Raises RegistryError."""
    with answers(uri):
        run = client(uri).get_run(run_id)
        below = client(uri).search_runs(
            [run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}' and attributes.status = 'RUNNING'", max_results=1000
        )
    return [one.info.run_id for one in (run, *below) if one.info.status == "RUNNING"]
