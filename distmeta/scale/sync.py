"""What a run leaves in MLflow when it has ended; sent at its end, and by `distmeta sync` where MLflow was away then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from distmeta.config import validate
from distmeta.errors import RegistryError, RunError
from distmeta.registry import tracking, versions
from distmeta.report.adaptation import draw_adaptation
from distmeta.report.page import REPORT
from distmeta.scale.report import report
from distmeta.training.evaluate import RESULT


def conclude(run_folder: Path, uri: str, name: str | None) -> dict[str, Any]:
    """Send what MLflow lacks of a run that ended, publish its best model under `name` (once), and put together the answer.

    Raises RegistryError, naming what is unsent; the run folder is whole by then.
    """
    result = json.loads((run_folder / RESULT).read_text())
    record = tracking.read_record(run_folder)
    run_id = record["run_id"]
    if "model" not in record:
        files = _drawn(run_folder, result)
        stages: dict[str, Callable[[], object]] = {
            "metrics": lambda: tracking.send_metrics(uri, run_id, run_folder),
            "the test's figures": lambda: tracking.log_result(uri, run_id, result),
            "report": lambda: tracking.log_files(uri, run_id, files),
            "end of the run": lambda: tracking.end_run(uri, run_id, "FINISHED"),
            "model": lambda: record.update(model=versions.publish(uri, run_folder, name, again=False).uri),
        }
        _send(stages, run_folder)
        tracking.write_record(run_folder, record)
    keys = ("steps", "best_step", "weights_sha256")
    return {
        "run_id": run_id,
        "run_folder": str(run_folder),
        **{key: result[key] for key in keys},
        "model": record["model"],
        "test": result["test"],
    }


def _drawn(run_folder: Path, result: dict[str, Any]) -> list[Path]:
    """The run's report and picture, drawn if they are not there yet: the dataset may be out of reach by now."""
    files = [run_folder / REPORT]
    if not files[0].exists():
        report(run_folder)
    if "mse_by_step" in result["test"]:
        files.append(run_folder / "adaptation.png")
        draw_adaptation(result["test"], run_folder.name, files[-1])
    return files


def _send(stages: dict[str, Callable[[], object]], run_folder: Path) -> None:
    """Do one after another; if MLflow fails, say which are left."""
    left = list(stages)
    try:
        for stage in stages.values():
            stage()
            left.pop(0)
    except RegistryError as error:
        raise type(error)(
            f"{error.message}; the run has ended and is whole in {run_folder}, but MLflow lacks: {', '.join(left)}",
            f"when MLflow answers, distmeta sync {run_folder} sends the rest",
        ) from None


def sync(run_folder: Path, uri: str | None = None) -> dict[str, Any]:
    """Send what MLflow lacks of the run in this folder; the answer is what `distmeta sync --json` prints, train's if the run has ended.

    `uri` is where MLflow is now, if not where the run found it. Of a run that has not ended, its metrics so far are sent.
    Raises RunError if the folder holds no run, or a sweep; RegistryError if MLflow fails, or does not know the run.
    """
    try:
        config = validate(yaml.safe_load((run_folder / "config.yaml").read_text()), str(run_folder / "config.yaml"))
    except OSError as error:
        raise RunError(f"{run_folder} holds no run: {error}", "give the run_folder of a run") from None
    if config.sweep is not None:
        raise RunError(f"{run_folder} holds a sweep, not a run", f"give one of its trials: {run_folder}/trials/…")
    uri = uri or tracking.recorded_uri(run_folder)
    if (run_folder / RESULT).exists():
        return conclude(run_folder, uri, config.tracking.model)
    run_id = tracking.read_record(run_folder)["run_id"]
    steps = tracking.send_metrics(uri, run_id, run_folder)
    return {"run_id": run_id, "run_folder": str(run_folder), "steps": steps, "model": None}
