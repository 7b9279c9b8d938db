"""Ray Train's blocking call, in a thread; and what it ended with."""

import threading
from typing import Any

from ray.exceptions import RayError
from ray.train import ControllerError, TrainingFailedError

from distmeta.config import Config
from distmeta.errors import ClusterError, DistmetaError
from distmeta.scale.progress import raised
from distmeta.train import checkpoint as checkpoints
from distmeta.train.folder import folder_at


class Fit:
    """Ray Train's blocking fit() in a thread, so that the calling one can watch."""

    def __init__(self, ray_trainer: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(ray_trainer,), name="ray train", daemon=True)
        self._thread.start()

    def _run(self, ray_trainer: Any) -> None:
        try:
            ray_trainer.fit()
        except (TrainingFailedError, RayError, RuntimeError) as error:
            self.error = error

    @property
    def going(self) -> bool:
        return self._thread.is_alive()


def failure(fit: Fit, reported: tuple[str, str, str] | None, config: Config) -> DistmetaError | None:
    """What ended training before its time, if anything did; `reported` is what a worker told the board."""
    if reported is not None:
        return raised(reported)
    if fit.error is None:
        return None
    return ClusterError(
        f"training failed after {config.train.max_failures} restarts: {_reason(fit.error)}",
        f"see {folder_at(config.run_folder) / 'log.txt'}; --resume goes on from {reached(config)}",
    )


def reached(config: Config) -> str:
    """The newest checkpoint's name, for people."""
    newest = checkpoints.newest(folder_at(config.run_folder))
    return newest.name if newest else "no checkpoint yet"


def _reason(error: BaseException) -> str:
    cause: BaseException = error
    if isinstance(error, TrainingFailedError):
        failures = getattr(error, "worker_failures", None) or {}
        cause = error.controller_failure if isinstance(error, ControllerError) else next(iter(failures.values()), error)
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
