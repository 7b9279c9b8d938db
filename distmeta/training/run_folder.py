"""A run's folder: the only class that knows its files and their names."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from distmeta import files
from distmeta.config import Config, parse
from distmeta.errors import ConfigError, DistmetaError, RunError
from distmeta.learners.params import Params
from distmeta.training import storage, stored
from distmeta.training.checkpoint import CheckpointFolder, folder_name
from distmeta.training.events import EventLog, StatusFile
from distmeta.training.metrics_folder import MetricsFolder, read_lines
from distmeta.training.model_folder import STORED_ROWS, TEST_EPISODES, ModelFolder, Rows
from distmeta.training.sealed import SealedFolder
from distmeta.training.storage import read_json, read_json_if_there, unknown_content, write_whole

CONFIG = "config.yaml"
REPORT = "report.html"
_DATASET, _RESULT, _METRICS, _STARTS, _CHECKPOINTS = "dataset.json", "result.json", "metrics", "starts.jsonl", "checkpoints"
_BEST, _POINTER, _INITIAL, _INIT, _BESIDE, _CODE = "best", "best.json", "initial", "init_from", "beside", "code"
_LOG, _EVENTS, _WORKER_LOGS, _STATUS, _MLFLOW = "log.txt", "events.jsonl", "worker_logs", "status.json", "mlflow.json"
_TRIALS, _TRIAL, _FAILURE = "trials", "trial.json", "failure.json"
_RETRAINED, _COMPARED, _BEST_CONFIG, _TABLE = "retrained", "compared", "best.yaml", "trials.json"
_TUNE, _GROUPS, _SEEDS, _SEED_RUNS = ".ray/tune", "placement_groups.json", "seeds.json", "seeds"
_FINISHED = "give the run_folder of a run that ended with its test"


class RunFolder:
    """Where a run, or a sweep and its trials, are kept: a folder on a file system or in object storage.

    | of every run | |
    |---|---|
    | config.yaml, dataset.json | what the run is; a folder with a config is a folder with a run |
    | metrics/, starts.jsonl | each step's record; the steps from which workers began |
    | checkpoints/step-000040/ | what it resumes from |
    | best/step-000040/, best/best.json | the model of the best step; which of them counts |
    | initial/, code/ | the network as training began, which workers and reports read; the user's own code that it is made of |
    | init_from/, beside/0/ | the weights that it starts from, and the registered models that it is tested beside |
    | result.json, test_episodes.json | the final test, and its figures of every episode |
    | report.html, adaptation.png, log.txt, mlflow.json | for people; its run in MLflow |
    | events.jsonl, status.json | what happened to it; how it goes, as its driver last saw |
    | worker_logs/ | what its workers printed, copied from their nodes |
    | lease.json | the process that writes here now |

    | of a sweep, beside config, dataset, log and MLflow's run | |
    |---|---|
    | trials/trial-000/, retrained/…/ | run folders; a trial's with trial.json and, if it failed, failure.json |
    | compared/trial-000/ | runs of a trial's config with the seeds of sweep.seeds |
    | best.yaml, trials.json, by_parameter.png, … | what the sweep found |
    | .ray/tune, placement_groups.json | Ray Tune's own records, which nobody reads; the groups of Ray's that it has made |

    | of the runs of one config with several seeds, beside config, dataset and MLflow's run | |
    |---|---|
    | seeds.json | which seeds, and what they came to together |
    | seeds/seed-0/ | a run folder |

    Everything here raises RunError where a file is missing, damaged or not what this version of distmeta writes.
    """

    def __init__(self, location: str | Path) -> None:
        """`location`: a path, or a URL that fsspec writes to (s3, gs). Raises ConfigError for any other."""
        self.path = storage.folder_at(location) if isinstance(location, str) else location

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def check_writable(self) -> None:
        """Raises ConfigError unless files can be written here."""
        storage.check_writable(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether it is empty or does not exist."""
        return storage.is_empty(self.path)

    def remove(self) -> None:
        storage.remove(self.path)

    def clear(self) -> None:
        """Remove its contents but keep the folder."""
        for path in list(self.path.iterdir()) if self.path.exists() else []:
            storage.remove(path)

    # What the run is.

    @property
    def holds_run(self) -> bool:
        return (self.path / CONFIG).exists()

    def write_description(self, config: Config, dataset: dict[str, str]) -> None:
        """Write what the run is, the config last."""
        write_whole(self.path / _DATASET, json.dumps(dataset))
        write_whole(self.path / CONFIG, config.to_yaml())

    def read_config(self) -> Config:
        text = self.config_text()
        try:
            return parse(text, str(self.path / CONFIG))
        except ConfigError as error:
            raise unknown_content(self.path / CONFIG, error.message) from None

    def config_text(self) -> str:
        try:
            return files.read_text(self.path / CONFIG)
        except OSError as error:
            raise RunError(f"{self} holds no run: {error}", "give the run_folder of a run") from None
        except ValueError as error:
            raise storage.damaged(self.path / CONFIG, error) from None

    def remove_config(self) -> None:
        """Discard a run that could not start."""
        (self.path / CONFIG).unlink()

    def read_dataset(self) -> dict[str, str]:
        """ "dataset", its name, and "fingerprint"."""
        return self._read(_DATASET, stored.Dataset)

    # How it goes.

    @property
    def log(self) -> Path:
        return self.path / _LOG

    @property
    def metrics(self) -> MetricsFolder:
        return MetricsFolder(self.path / _METRICS)

    @property
    def events(self) -> EventLog:
        return EventLog(self.path / _EVENTS, self.path / _WORKER_LOGS)

    @property
    def status(self) -> StatusFile:
        return StatusFile(self.path / _STATUS)

    def note_start(self, step: int) -> None:
        """Record that workers started to train at `step`: 0 the first time, a later step after a failure or with --resume."""
        path = self.path / _STARTS
        before = path.read_text() if path.exists() else ""
        write_whole(path, before + json.dumps({"step": step}) + "\n")

    def restarts(self) -> list[int]:
        """The steps from which the run resumed, after its first start."""
        return [record["step"] for record in read_lines(path)[1:]] if (path := self.path / _STARTS).exists() else []

    # What it resumes from.

    @property
    def checkpoints(self) -> Path:
        """The folder that Ray Train commits checkpoints to."""
        return self.path / _CHECKPOINTS

    def checkpoint(self, step: int) -> CheckpointFolder:
        return CheckpointFolder(self.checkpoints / folder_name(step))

    def newest_checkpoint(self) -> CheckpointFolder | None:
        """The newest complete checkpoint, or None."""
        return next((folder for folder in self._newest_first() if folder.is_whole), None)

    def reached(self) -> str:
        """The newest checkpoint's name, for messages."""
        newest = self.newest_checkpoint()
        return newest.name if newest else "its beginning"

    def thin_out(self, keep: int, index: str) -> None:
        """Remove all but the newest `keep` complete checkpoints (none if none is complete), and the file `index` beside them."""
        folders = self._newest_first()
        kept = {folder.name for folder in islice((folder for folder in folders if folder.is_whole), keep)}
        for folder in folders if kept else []:
            if folder.name not in kept:
                storage.remove(folder.path)
        (self.checkpoints / index).unlink(missing_ok=True)

    def _newest_first(self) -> list[CheckpointFolder]:
        return [CheckpointFolder(path) for path in sorted(self.checkpoints.glob("step-*"), key=lambda path: path.name, reverse=True)]

    # What it came to.

    def save_best(self, step: int, meta_params: Params, description: dict[str, Any]) -> None:
        """Keep the model of the best step so far. At every moment either the previous model or this one is in place and complete."""
        best, name = self.path / _BEST, folder_name(step)
        if self.best.name == name:  # the step was repeated after a failure; the folder in use is never changed
            name += "-again"
        ModelFolder(best / name).save(meta_params, description)
        write_whole(best / _POINTER, json.dumps({"folder": name}))
        for path in list(best.iterdir()):
            if path.name not in (name, _POINTER):
                storage.remove(path) if path.is_dir() else path.unlink()

    @property
    def best(self) -> ModelFolder:
        """The model of the best step so far."""
        best = self.path / _BEST
        try:
            return ModelFolder(best / read_json(best / _POINTER, stored.Best)["folder"])
        except FileNotFoundError:
            return ModelFolder(best)  # the layout of distmeta 0.1

    @property
    def init_from(self) -> ModelFolder:
        return ModelFolder(self.path / _INIT)

    @property
    def initial(self) -> ModelFolder:
        """The network as training began."""
        return ModelFolder(self.path / _INITIAL)

    @property
    def code(self) -> SealedFolder:
        return SealedFolder(self.path / _CODE)

    def beside(self, number: int) -> ModelFolder:
        """The registered model at this place of data.eval.beside."""
        return ModelFolder(self.path / _BESIDE / str(number))

    @property
    def has_ended(self) -> bool:
        """Whether the final test was made."""
        return (self.path / _RESULT).exists()

    def write_result(self, result: dict[str, Any], by_episode: Rows) -> None:
        self.report.unlink(missing_ok=True)  # that of the run so far
        write_whole(self.path / TEST_EPISODES, json.dumps(by_episode))
        write_whole(self.path / _RESULT, json.dumps(result, indent=1))

    def read_result(self) -> dict[str, Any]:
        if self.holds_seeds:
            raise RunError(f"{self} holds runs of several seeds, not one run", f"give one of them: {self.path / _SEED_RUNS}/…")
        return self._read(_RESULT, stored.Result, missing="finished run", remedy=_FINISHED)

    def read_test_episodes(self) -> Rows:
        return self._read(TEST_EPISODES, STORED_ROWS, missing="finished run", remedy=_FINISHED)

    @property
    def report(self) -> Path:
        return self.path / REPORT

    def picture(self, name: str) -> Path:
        return self.path / f"{name}.png"

    # Its run in MLflow.

    @property
    def has_mlflow_run(self) -> bool:
        return (self.path / _MLFLOW).exists()

    def read_mlflow(self) -> dict[str, str]:
        """`uri` without credentials, `run_id`, and `model`, its address, once it is published."""
        try:
            return read_json(self.path / _MLFLOW, stored.Mlflow)
        except (OSError, RunError) as error:
            reason = error.message if isinstance(error, RunError) else str(error)
            raise RunError(f"{self} has no MLflow run: {reason}", "start it: distmeta train CONFIG --resume") from None

    def write_mlflow(self, record: dict[str, str]) -> None:
        write_whole(self.path / _MLFLOW, json.dumps(record))

    # Of a sweep, and of its trials.

    @property
    def trials_folder(self) -> Path:
        return self.path / _TRIALS

    def trial(self, number: int) -> "RunFolder":
        return RunFolder(self.trials_folder / f"trial-{number:03d}")

    def read_trials(self) -> list[dict[str, Any]]:
        """The records of all trials that were ever started, by number."""
        return sorted(map(stored.read_trial, self.path.glob(f"{_TRIALS}/trial-*/{_TRIAL}")), key=lambda record: record["number"])

    def write_trial(self, record: dict[str, Any]) -> None:
        """Record this folder's trial, with the present time as its start if it has none."""
        if storage.on_disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / _TRIAL, json.dumps(record))

    def write_failure(self, error: DistmetaError) -> None:
        """Record why this folder's trial failed."""
        write_whole(self.path / _FAILURE, json.dumps({"message": error.message, "remedy": error.remedy}))

    def read_failure(self) -> str | None:
        """The reason why this folder's trial failed, or None."""
        failure = read_json_if_there(self.path / _FAILURE, stored.Failure)
        return failure["message"] if failure else None

    def forget_failure(self) -> None:
        (self.path / _FAILURE).unlink(missing_ok=True)

    def retrained(self, trial: int, steps: int) -> "RunFolder":
        """The run of a trial's config with this number of steps. A resume may find another winner or change the steps."""
        return RunFolder(self.path / _RETRAINED / f"trial-{trial:03d}-{steps}-steps")

    def compared(self, trial: int) -> "RunFolder":
        """The runs of a trial's config with several seeds."""
        return RunFolder(self.path / _COMPARED / f"trial-{trial:03d}")

    def write_best_config(self, text: str) -> Path:
        write_whole(self.path / _BEST_CONFIG, text)
        return self.path / _BEST_CONFIG

    def write_table(self, answer: dict[str, Any]) -> Path:
        write_whole(self.path / _TABLE, json.dumps(answer, indent=1))
        return self.path / _TABLE

    def read_table(self) -> dict[str, Any] | None:
        """The result of the sweep, or None if it has not ended."""
        return read_json_if_there(self.path / _TABLE, stored.SweepTable)

    @property
    def tune(self) -> Path:
        """Where Ray Tune keeps its records."""
        return self.path / _TUNE

    def remove_tune(self) -> None:
        storage.remove(self.tune.parent)

    def write_groups(self, ids: list[str]) -> None:
        """Record the placement groups that the sweep has created."""
        write_whole(self.path / _GROUPS, json.dumps(ids))

    def read_groups(self) -> list[str]:
        return read_json_if_there(self.path / _GROUPS, list[str]) or []

    @property
    def holds_seeds(self) -> bool:
        return (self.path / _SEEDS).exists()

    def of_seed(self, seed: int) -> "RunFolder":
        return RunFolder(self.path / _SEED_RUNS / f"seed-{seed}")

    def write_seeds(self, record: dict[str, Any]) -> Path:
        """Write the list of `seeds` and their common results."""
        write_whole(self.path / _SEEDS, json.dumps(record, indent=1))
        return self.path / _SEEDS

    def read_seeds(self) -> dict[str, Any]:
        return self._read(_SEEDS, stored.Seeds)

    def _read(self, name: str, kind: Any, missing: str = "run", remedy: str = "give the run_folder of a run") -> Any:
        try:
            return read_json(self.path / name, kind)
        except OSError as error:
            raise RunError(f"{self} holds no {missing}: {error}", remedy) from None
