"""Runs the blocking call of Ray Train or Ray Tune in a thread, watches it, and interprets its end."""

import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.train import ControllerError

from distmeta.config import Config
from distmeta.errors import ClusterError, DistmetaError, Overtaken, RunError
from distmeta.scale.progress import raised
from distmeta.training.run_folder import RunFolder

_POLL_S = 0.5
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # would recur until it is fixed


class Fit:
    """The blocking fit() of a Ray Trainer or Tuner in a thread, so that the calling one can watch. `error` is the exception it raised."""

    def __init__(self, trainer: Any) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="ray fit", daemon=True)
        self._thread.start()

    def _run(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # any exception is passed to the watching thread
            self.error = error

    @property
    def going(self) -> bool:
        return self._thread.is_alive()


def watch(fit: Fit, look: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call `look` every half second until `fit` ends. The first Ctrl-C (or SIGTERM) calls `stop`; a second one raises KeyboardInterrupt."""
    asked, stopping = threading.Event(), False

    def on_signal(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while fit.going:
            if asked.is_set() and not stopping:
                stopping = True
                stop()
            look()
            time.sleep(_POLL_S)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def failure(fit: Fit, reported: tuple[str, str, str] | None, config: Config) -> DistmetaError | None:
    """The error that ended training early, or None; `reported` is a worker's report on the board."""
    if reported is not None:
        return raised(reported)
    if fit.error is None:
        return None
    cause = _cause(fit.error)
    restarts = "" if isinstance(fit.error, ControllerError) else f" after {config.train.max_failures} restarts"
    run_folder = RunFolder(config.run_folder)
    return unwritable(cause, run_folder) or ClusterError(
        f"training failed{restarts}: {(str(cause).strip().splitlines() or [type(cause).__name__])[-1]}",
        f"see {run_folder.log}; --resume continues from {run_folder.reached()}",
    )


def unwritable(error: BaseException, run_folder: RunFolder) -> RunError | None:
    """The message if `error`, of a worker or of Ray's controller, means that the run folder cannot be written; else None."""
    if isinstance(error, Overtaken):
        return error
    # Object storage sets no errno.
    if not isinstance(error, OSError) or not (error.errno in _UNWRITABLE or isinstance(error, PermissionError)):
        return None
    return RunError(
        f"the run cannot be written: {error}", f"free space or fix its permissions; --resume then continues from {run_folder.reached()}"
    )


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, ControllerError):
        return error.controller_failure
    failures = getattr(error, "worker_failures", None) or {}
    return next(iter(failures.values()), error)
