"""A sweep's records: its trials on disk and in memory, the next trial, and the ranking."""

import itertools
import math
import time
from typing import Any

from distmeta.config import Config, SweepConfig, value_of, with_values
from distmeta.sweep.search import Search
from distmeta.sweep.trials import Trial, load_trials
from distmeta.training.run_folder import RunFolder


def trial_config(config: Config, params: dict[str, Any], run_folder: RunFolder | None = None) -> Config:
    """The run of a trial: `config` with `params`, and no sweep."""
    alone = config.model_copy(update={"sweep": None, "run_folder": str(run_folder or config.run_folder)})
    return with_values(alone, params, "sweep.space")


def driver_restarts(config: Config) -> int:
    """How often Ray Tune restarts a trial's driver; at least once, for the watchdog."""
    return max(1, config.train.max_failures)


class Records:
    """The trials so far, on disk and in memory, the next trial, and their results."""

    def __init__(self, config: Config) -> None:
        self.config = config
        assert config.sweep is not None
        self.settings: SweepConfig = config.sweep
        self.folder = RunFolder(config.run_folder)
        self.trials = load_trials(self.folder)
        self._search = Search(self.settings, config.seed)
        for trial in self.trials:
            if trial.unplaced:
                trial.state, trial.unplaced, trial.ended = "running", False, None
        self._resumed = [trial for trial in self.trials if trial.state == "running"]
        for trial in self.ended:
            self._learn(trial)

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "running"]

    @property
    def runs_left(self) -> int:
        """The number of trials that are not finished."""
        return max(0, self.settings.total - len(self.ended))

    def next(self) -> Trial | None:
        """The next trial to run: an interrupted one, else a new one, else None."""
        if self._resumed:
            return self._resumed.pop(0)
        return self._new() if len(self.trials) < self.settings.total else None

    def _new(self) -> Trial:
        number = next(number for number in itertools.count() if number not in {trial.number for trial in self.trials})
        if self.settings.baseline and number == 0:
            own = {key: value_of(self.config, key) for key in self.settings.space}
            params = {key: value for key, value in own.items() if value is not None}
        else:
            params = self._search.propose(number - self.settings.baseline)
        trial = Trial(number, params, began=time.time())
        self.trials.insert(number, trial)
        return trial

    def config_of(self, trial: Trial) -> Config:
        return trial_config(self.config, trial.params, trial.folder(self.folder))

    def end(self, trial: Trial, died: bool) -> None:
        """Record how a trial ended, from its run folder."""
        trial.state, trial.reason = self._ending(trial, died)
        if trial.state != "running":
            trial.ended = time.time()
            self._learn(trial)
        trial.save(self.folder)

    def _ending(self, trial: Trial, died: bool) -> tuple[Any, str]:
        run_folder = trial.folder(self.folder)
        if (reason := run_folder.read_failure()) is not None:
            return "failed", reason
        newest = run_folder.newest_checkpoint()
        if newest is not None and newest.step == self.config.outer.steps:
            return "finished", f"all {self.config.outer.steps} steps"
        if died:
            return "failed", f"its driver was lost {driver_restarts(self.config) + 1} times"
        curve = trial.curve(self.folder)
        if not curve:
            return "failed", "it ended before its first validation"
        last = curve[-1]
        trial.until = last.step
        measurement = trial.measurement(self.folder)
        value = f"{last.score:.4g}" if measurement is None else measurement.text_of(last.score)
        return "stopped", f"at step {last.step}: {value} is not among the best 1/{self.settings.reduction} there"

    def _learn(self, trial: Trial) -> None:
        number = trial.number - self.settings.baseline
        self._search.learn(number, trial.params, trial.curve(self.folder), trial.state == "failed")

    def ranking(self) -> list[Trial]:
        """Trials with a score, best first. Completed trials come before stopped ones, and scores that are not finite come last."""

        def merit(trial: Trial) -> tuple[bool, bool, float]:
            best = trial.best(self.folder)
            assert best is not None
            return math.isfinite(best.score), trial.state == "finished", best.score

        return sorted((t for t in self.ended if t.state != "failed" and t.best(self.folder)), key=merit, reverse=True)
