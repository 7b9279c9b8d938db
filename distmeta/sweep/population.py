"""Population-based training (arXiv:1711.09846): trials train in parallel, and after each generation the worst copy the best.

All trials wait for the end of a generation. So a trial's result depends only on the seed and the trials' validations, not on time or place,
and a killed sweep resumes with the same results. (Ray Tune's scheduler acts on whatever other trials have reported by then, stores its
decisions in pickles, and would need a second copy of each checkpoint.)
"""

import math
from typing import Any

import numpy as np
import torch

from distmeta.assembly.run import Run
from distmeta.config import Change, Config, Values, change_of
from distmeta.errors import ConfigError
from distmeta.seeds import generator
from distmeta.sweep.records import Records
from distmeta.sweep.trials import Trial

_FACTORS = (0.8, 1.25)
_ANYWHERE = 0.25  # probability of drawing a value from the whole space instead


def check_generations(config: Config) -> None:
    """Raises ConfigError unless each generation ends with a validation, and there are at least two."""
    assert config.sweep is not None
    every, steps = config.train.validate_every, config.outer.steps
    grace = config.sweep.grace or every
    if grace % every or grace >= steps:
        raise ConfigError(
            f"sweep.search=pbt with sweep.grace={grace}, but a generation needs to end with a validation, before the last step "
            f"(train.validate_every={every}, outer.steps={steps})",
            f"set sweep.grace to a multiple of {every} below {steps}",
        )


def check_changeable(this: Run, candidate: Run, key: str) -> None:
    """Raises ConfigError if `this` run cannot continue with `candidate`'s value of `key`."""
    remedy = "remove it from sweep.space, or set sweep.search to random or optuna"
    if change_of(key) is not Change.IN_TRAINING:
        raise ConfigError(f"sweep.search=pbt cannot search {key}: a checkpoint cannot be resumed with a different value", remedy)
    learner = this.config.learner.name
    before, after = (one.learner.initial_params() for one in (this, candidate))
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        raise ConfigError(
            f"sweep.search=pbt changes {key} while trials train, but with learner.name={learner} its value is part of the weights",
            remedy,
        )


class Population(Records):
    """The trials of such a sweep. Each runs once per generation, from `trial.since` to `trial.until`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._steps = config.outer.steps
        self._grace = self.settings.grace or config.train.validate_every
        self._training: set[int] = set()
        self._at = {trial.number: self._reached(trial) for trial in self.trials}
        for trial in self._alive:
            if self._at[trial.number] == self._steps:  # the driver was killed before it recorded this
                self.end(trial, died=False)

    @property
    def _alive(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "running"]

    def _reached(self, trial: Trial) -> int:
        newest = trial.folder(self.folder).newest_checkpoint()
        return newest.step if newest else 0

    @property
    def runs_left(self) -> int:
        generations = math.ceil(self._steps / self._grace)
        begun = sum(generations - self._at[trial.number] // self._grace for trial in self._alive)
        return begun + generations * (self.settings.total - len(self.trials))

    def next(self) -> Trial | None:
        """A trial that has not reached its generation's end, else a new one, else (if none is training) one of the next generation."""
        trial = self._due() or (self._new() if len(self.trials) < self.settings.total else None)
        if trial is None and not self._training and self._alive:
            self._end_generation()
            trial = self._due()
        if trial is not None:
            self._training.add(trial.number)
        return trial

    def _due(self) -> Trial | None:
        end = min((trial.until or 0 for trial in self._alive), default=0)
        due = (trial for trial in self._alive if trial.until == end and self._at[trial.number] < end)
        return next((trial for trial in due if trial.number not in self._training), None)

    def _new(self) -> Trial:
        trial = super()._new()
        trial.until = self._grace
        trial.history = [{"step": 0, "params": trial.params, "from": None}]
        self._at[trial.number] = 0
        return trial

    def _ending(self, trial: Trial, died: bool) -> tuple[Any, str]:
        self._training.discard(trial.number)
        self._at[trial.number] = self._reached(trial)
        at = self._at[trial.number]
        if trial.folder(self.folder).read_failure() is not None or at == self._steps or (died and at != trial.until):
            return super()._ending(trial, died)
        return ("running", "") if at == trial.until else ("failed", f"it ended at step {at} of {trial.until}")

    def _end_generation(self) -> None:
        """Let the worst copy the best, and all continue. Repeating this after a killed driver gives the same result."""
        step = min(trial.until or 0 for trial in self._alive)
        there = [trial for trial in self._alive if self._at[trial.number] == step]  # others may be further, if trials were added later
        scores = {trial.number: dict(trial.curve(self.folder))[step] for trial in there}
        donors = followed(scores, self.config.seed, step, spared=0 if self.settings.baseline else None)
        for trial in there:
            if trial.until != step:
                continue
            if trial.number in donors:
                self._follow(trial, self.trials[donors[trial.number]], step)
            trial.since, trial.until = step, min(step + self._grace, self._steps)
            trial.save(self.folder)

    def _follow(self, trial: Trial, donor: Trial, step: int) -> None:
        trial.folder(self.folder).checkpoint(step).copy(donor.folder(self.folder).checkpoint(step))
        random = generator(self.config.seed, "near", step, trial.number)
        trial.params = {key: near(values, donor.params.get(key), random) for key, values in self.settings.space.items()}
        trial.history.append({"step": step, "params": trial.params, "from": donor.number})


def followed(scores: dict[int, float], seed: int, step: int, spared: int | None) -> dict[int, int]:
    """Number → number of the trial whose checkpoint it copies: the worst quarter copies the best; `spared` never copies."""
    ranking = sorted(scores, key=lambda number: (-scores[number], number))
    quarter = len(ranking) // 4
    worst = [number for number in reversed(ranking[quarter:]) if number != spared][:quarter]
    return {number: ranking[generator(seed, "followed", step, number).integers(quarter)] for number in worst}


def near(values: Values, value: Any, random: np.random.Generator) -> Any:
    """A value of `values` near `value`: scaled by a factor, or a neighbouring choice. Sometimes, or if there is no neighbour, any value."""
    anywhere, up = random.random() < _ANYWHERE, int(random.integers(2))
    if values.choice is not None:
        if anywhere or value not in values.choice:
            return values.choice[random.integers(len(values.choice))]
        place = values.choice.index(value) + (1 if up else -1)
        return values.choice[min(max(place, 0), len(values.choice) - 1)]
    low, high = values.extremes
    if anywhere or value is None:
        share = random.random()
        drawn = low * (high / low) ** share if values.loguniform else low + (high - low) * share
    else:
        drawn = value * _FACTORS[up]
        if values.integers and round(drawn) == value:
            drawn = value + (1 if up else -1)
    drawn = min(max(drawn, low), high)
    return round(drawn) if values.integers else float(drawn)
