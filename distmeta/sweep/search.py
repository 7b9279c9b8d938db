"""Proposes values for a trial by its number and earlier results, with Optuna."""

import itertools
import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from distmeta.config import SweepConfig, Values
from distmeta.seeds import torch_seed
from distmeta.sweep.trials import Point

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """Proposes params (dotted key → value). Except with `optuna`, they depend only on the seed and the trial's number."""

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        self._sweep = sweep
        self._seed = seed
        self._distributions = {key: _distribution(values) for key, values in sweep.space.items()}
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}

    def propose(self, number: int) -> dict[str, Any]:
        space = self._sweep.space
        if self._sweep.search == "grid":
            point = next(itertools.islice(itertools.product(*(values.choice or () for values in space.values())), number, None))
            return dict(zip(space, point, strict=True))
        self._study.sampler = self._sampler(torch_seed(self._seed, "sweep", number) % 2**32)
        asked = self._asked[number] = self._study.ask(self._distributions)
        return {key: self._value(key, drawn) for key, drawn in asked.params.items()}

    def _sampler(self, seed: int) -> BaseSampler:
        if self._sweep.search == "optuna":
            return TPESampler(seed=seed, n_startup_trials=max(4, self._sweep.total // 4), constant_liar=True)
        return RandomSampler(seed)

    def _value(self, key: str, point: Any) -> Any:
        choice = self._sweep.space[key].choice
        return point if choice is None else choice[point]

    def learn(self, number: int, params: dict[str, Any], curve: list[Point], failed: bool) -> None:
        """Add a trial's result. A failed trial, or one without a score, counts as a bad place."""
        best = max((point.score for point in curve), default=None)
        state = TrialState.FAIL if failed or best is None or not math.isfinite(best) else TrialState.COMPLETE
        value = best if state is TrialState.COMPLETE else None
        if number in self._asked:
            self._study.tell(self._asked.pop(number), value, state)
            return
        values = {key: self._found(key, value) for key, value in params.items()}
        if all(key in values and _contains(distribution, values[key]) for key, distribution in self._distributions.items()):
            self._study.add_trial(create_trial(state=state, value=value, params=values, distributions=self._distributions))

    def _found(self, key: str, value: Any) -> Any:
        choice = self._sweep.space[key].choice
        if choice is None:
            return value
        return choice.index(value) if value in choice else None


def _distribution(values: Values) -> BaseDistribution:
    if values.uniform is not None:
        return FloatDistribution(*values.uniform)
    if values.loguniform is not None:
        return FloatDistribution(*values.loguniform, log=True)
    if values.integers is not None:
        return IntDistribution(*values.integers)
    assert values.choice is not None
    return CategoricalDistribution(range(len(values.choice)))  # by position, because a choice may be a list


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    return value is not None and distribution._contains(distribution.to_internal_repr(value))
