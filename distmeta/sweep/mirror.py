"""A sweep's mirror in MLflow: a parent run, and a child run for each trial, sent by a separate thread. Trials never wait for it."""

import json
import threading
from dataclasses import replace
from typing import Any

from distmeta.assembly.run import Run
from distmeta.errors import DistmetaError, Unanswered
from distmeta.registry import tracking
from distmeta.sweep.trials import Trial

_EVERY_S = 1.0
_STATUS: dict[str, Any] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "running": "KILLED"}


class SweepMirror:
    """Starts the parent run at once (raises RegistryError). A child starts and ends with its trial."""

    def __init__(self, sweep: Run, records: Any, uri: str) -> None:
        self._records = records
        self._sweep = sweep
        self._uri = uri
        self._parent = tracking.start_run(sweep.config, sweep.folder, sweep.tags() | {"kind": "sweep"})
        self._children: dict[int, tuple[str, tracking.Mirror]] = {}
        self._done: set[int] = set()  # also children of an earlier session, which may have been killed before it updated MLflow
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow sweep mirror", daemon=True)
        self.unsent: str | None = None

    def __enter__(self) -> "SweepMirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._end.wait(_EVERY_S)
            self.unsent = None
            for trial in list(self._records.trials):
                try:
                    self._follow(trial, last)
                except DistmetaError as error:  # retried at the next turn
                    self.unsent = error.message
                    if isinstance(error, Unanswered):
                        break  # it would not answer for the others either

    def _follow(self, trial: Trial, last: bool) -> None:
        folder = trial.folder(self._records.folder)
        if trial.number in self._done or not folder.holds_run:
            return
        if trial.number not in self._children:
            run = replace(self._sweep, config=self._records.config_of(trial), folder=folder)
            parent = {"mlflow.parentRunId": self._parent, "trial": str(trial.number)}
            run_id = tracking.start_run(run.config, folder, run.tags() | parent)
            self._children[trial.number] = run_id, tracking.Mirror(self._uri, run_id, folder).__enter__()
        if trial.state != "running" or last:
            run_id, mirror = self._children[trial.number]
            mirror.__exit__()
            tracking.send_metrics(self._uri, run_id, folder)
            history = {"history": json.dumps(trial.history)} if trial.history else {}
            tracking.set_tags(self._uri, run_id, {"state": trial.state, "reason": trial.reason} | history)
            tracking.end_run(self._uri, run_id, _STATUS[trial.state])
            self._done.add(trial.number)
