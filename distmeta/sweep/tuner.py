"""The interface to Ray Tune: it requests trials and decisions, and must not store any of our objects."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from ray.tune import Stopper
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmeta.config import SweepConfig
from distmeta.errors import DistmetaError
from distmeta.scale.progress import new_board
from distmeta.sweep.records import Records
from distmeta.sweep.trials import Trial
from distmeta.training.labels import title


class _NotKept:
    """Pickles to an empty object. Ray Tune pickles its parts for a restore that we never use."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Running(NamedTuple):
    """A trial handed to Ray Tune, and the board that its processes report to."""

    trial: Trial
    board: Any


class Source(_NotKept, Searcher):
    """The records as a Ray Tune searcher: Ray Tune requests trials and reports how they end."""

    def __init__(self, records: Records, begin: Callable[[Trial], dict[str, Any]]) -> None:
        super().__init__(metric="score", mode="max")
        self._records = records
        self._begin = begin
        self._running: dict[str, Running] = {}
        self.stopping = False

    @property
    def running(self) -> list[Running]:
        return list(self._running.values())

    def suggest(self, trial_id: str) -> Any:
        while (trial := self._records.next()) is not None:
            trial.save(self._records.folder)
            try:
                settings = self._begin(trial)
            except DistmetaError as error:  # an invalid combination of values: only this trial fails
                trial.folder(self._records.folder).write_failure(error)
                self._records.end(trial, died=False)
                continue
            name = f"trial {trial.number} from step {trial.since}"
            self._running[trial_id] = Running(trial, new_board(title(trial.folder(self._records.folder)), name))
            return settings | {"board": name}
        return None if self._running else Searcher.FINISHED  # running trials may cause more trials

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        running = self._running.pop(trial_id, None)
        if running is not None and not self.stopping:
            self._records.end(running.trial, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because a sweep resumes from its own records."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep continues from its own records")


class Asha(_NotKept, ASHAScheduler):
    """Asynchronous successive halving over steps. It knows the results of an earlier session's trials, and never stops trial 0."""

    def __init__(self, settings: SweepConfig, grace: int, steps: int, records: Records) -> None:
        super().__init__("step", "score", "max", steps, grace, settings.reduction, stop_last_trials=False)
        no_controller: Any = None  # the value is not used
        for trial in records.ended:
            stand_in: Any = SimpleNamespace(trial_id=f"ended-{trial.number}", config={"spared": False})
            self.on_trial_add(no_controller, stand_in)
            for point in trial.curve(records.folder):
                self.on_trial_result(no_controller, stand_in, point.reported)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["spared"] else decision


class Interrupt(_NotKept, Stopper):
    """Ends Ray Tune's loop on request."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked.is_set()
