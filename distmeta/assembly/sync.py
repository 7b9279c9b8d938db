"""Sends a finished run to MLflow: at its end, or later by `distmeta sync` if MLflow was unreachable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmeta.assembly.report import report
from distmeta.config import Config
from distmeta.errors import RegistryError, RunError
from distmeta.registry import tracking, versions
from distmeta.report.adaptation import draw_adaptation
from distmeta.training.measurement import measurement_of
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import understood


def conclude(run_folder: RunFolder, uri: str, name: str | None, own: Config | None = None) -> dict[str, Any]:
    """Send what MLflow lacks of a finished run, publish its best model under `name` (once), and return the result.

    Raises RegistryError naming what was not sent; the run folder is complete by then.
    """
    result, record = run_folder.read_result(), run_folder.read_mlflow()
    run_id = record["run_id"]
    if "model" not in record:
        files = _drawn(run_folder, result, own)
        stages: dict[str, Callable[[], object]] = {
            "metrics": lambda: tracking.send_metrics(uri, run_id, run_folder),
            "the test's figures": lambda: tracking.log_result(uri, run_id, result),
            "report": lambda: tracking.log_files(uri, run_id, files),
            "end of the run": lambda: tracking.end_run(uri, run_id, "FINISHED"),
            "model": lambda: record.update(model=versions.publish(uri, run_folder, name, again=False).uri),
        }
        _send(stages, run_folder)
        run_folder.write_mlflow(record)
    keys = ("steps", "best_step", "weights_sha256")
    return {
        "run_id": run_id,
        "run_folder": str(run_folder),
        **{key: result[key] for key in keys},
        "model": record["model"],
        "test": result["test"],
    }


def _drawn(run_folder: RunFolder, result: dict[str, Any], own: Config | None) -> list[Path]:
    """The run's report and picture. They are drawn only if they do not exist yet, because the dataset may be unreachable by now."""
    files = [run_folder.report]
    if not run_folder.report.exists():
        report(run_folder, own=own)
    if measurement_of(result["test"]).axis is not None:
        files.append(run_folder.picture("adaptation"))
        draw_adaptation(result["test"], run_folder.name, files[-1])
    return files


def _send(stages: dict[str, Callable[[], object]], run_folder: RunFolder) -> None:
    """Run the parts in order; if MLflow fails, report which are left."""
    left = list(stages)
    try:
        for stage in stages.values():
            with understood(run_folder):
                stage()
            left.pop(0)
    except RegistryError as error:
        raise type(error)(
            f"{error.message}; the run has ended and is complete in {run_folder}, but MLflow lacks: {', '.join(left)}",
            f"when MLflow answers, distmeta sync {run_folder} sends the rest",
        ) from None


def sync(run_folder: RunFolder, uri: str | None = None) -> dict[str, Any]:
    """Send what MLflow lacks of the run in this folder. Returns what `distmeta sync --json` prints (for a finished run, the same as train).

    `uri` replaces the tracking URI in the folder. For an unfinished run, the metrics so far are sent. Raises RunError if the folder holds
    no run, or a sweep, or names a server that must not be contacted without being asked; RegistryError if MLflow fails, or does not know
    the run.
    """
    config = run_folder.read_config()
    if config.sweep is not None:
        raise RunError(f"{run_folder} holds a sweep, not a run", f"give one of its trials: {run_folder.trials_folder}/…")
    if run_folder.holds_seeds:
        raise RunError(f"{run_folder} holds runs of several seeds, not a run", f"give one of them: {run_folder.of_seed(0).path.parent}/…")
    uri = uri or tracking.recorded_uri(run_folder)
    if run_folder.has_ended:
        return conclude(run_folder, uri, config.tracking.model)
    run_id = run_folder.read_mlflow()["run_id"]
    with understood(run_folder):
        steps = tracking.send_metrics(uri, run_id, run_folder)
    return {"run_id": run_id, "run_folder": str(run_folder), "steps": steps, "model": None}
