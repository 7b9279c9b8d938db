"""Episodes of regression: each task is a function drawn from a family; its support and queries are points of the function."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.data.splits import Split
from distmeta.seeds import generator

Points = NDArray[np.float64]


class Family(NamedTuple):
    """Functions of inputs of one shape to R; `draw(random, points)` draws one and gives x (points, *shape) and y (points, 1)."""

    shape: tuple[int, ...]
    version: int
    draw: Callable[[np.random.Generator, int], tuple[Points, Points]]


def sinusoid(random: np.random.Generator, points: int) -> tuple[Points, Points]:
    """y = A sin(x - p) with A in [0.1, 5], p in [0, π], x in [-5, 5], all uniform (arXiv:1703.03400, section 5.1)."""
    amplitude, phase = random.uniform(0.1, 5.0), random.uniform(0.0, np.pi)
    x = random.uniform(-5.0, 5.0, (points, 1))
    return x, amplitude * np.sin(x - phase)


def linear_sigmoid(random: np.random.Generator, points: int) -> tuple[Points, Points]:
    """y = 1 / (1 + exp(-w·x)) with 16 inputs, x uniform in [0, 1] and w standard normal.

    Introductory tutorials use this network with random targets, which cannot be learned; here it generates the targets.
    """
    weights = random.normal(size=(16, 1))
    x = random.uniform(0.0, 1.0, (points, 16))
    return x, 1 / (1 + np.exp(-x @ weights))


OBSERVED = 6  # values of a sinusoid in one sequence
_INTERVAL = 0.5
_NOISE = 0.3


def sinusoid_sequence(random: np.random.Generator, points: int) -> tuple[Points, Points]:
    """Prediction of the next value: y = A sin(ω t - p) at 6 times 0.5 apart from a start in [-5, 5], with normal noise of 0.3; the target
    is the next value without noise.

    A in [0.1, 5] and p in [0, π] as in `sinusoid`, ω in [0.5, 3], all uniform. Because of the noise, ω can hardly be estimated from one
    sequence, but it can be from a support set. So adapting helps.
    """
    amplitude, phase, frequency = random.uniform(0.1, 5.0), random.uniform(0.0, np.pi), random.uniform(0.5, 3.0)
    starts = random.uniform(-5.0, 5.0, (points, 1))
    values = amplitude * np.sin(frequency * (starts + _INTERVAL * np.arange(OBSERVED + 1)) - phase)
    observed = values[:, :OBSERVED] + random.normal(0.0, _NOISE, (points, OBSERVED))
    return observed[:, :, None], values[:, OBSERVED:]


FAMILIES = {
    "sinusoid": Family((1,), 1, sinusoid),
    "linear-sigmoid": Family((16,), 1, linear_sigmoid),
    "sinusoid-sequence": Family((OBSERVED, 1), 1, sinusoid_sequence),
}


class FunctionStream:
    """Episodes of one family as pure functions of (seed, split, step, slot). An episode has N*K support and N*Q query points."""

    def __init__(self, family: str, split: Split, task: Task, seed: int) -> None:
        self.family = FAMILIES[family]
        self.name = family
        self.split = split
        self.task = task
        self.seed = seed

    def training(self, slots: Sequence[int], start_step: int = 0) -> Iterator[EpisodeBatch]:
        """For step = start_step, start_step + 1, … without end, the episodes of `slots`: inputs (B, N*K, *shape), targets (B, N*K, 1)."""
        for step in count(start_step):
            yield self._batch(step, slots, [("episode", step, slot) for slot in slots])

    def evaluation(self, indices: Sequence[int], batch: int = 20) -> Iterator[EpisodeBatch]:
        """The fixed evaluation episodes numbered `indices`, `batch` at a time."""
        for start in range(0, len(indices), batch):
            numbers = indices[start : start + batch]
            yield self._batch(0, numbers, [("evaluation episode", number) for number in numbers])

    def _batch(self, step: int, slots: Sequence[int], episodes: Sequence[tuple[str, *tuple[int, ...]]]) -> EpisodeBatch:
        drawn = [
            self.family.draw(generator(self.seed, f"{self.name} {self.split} {purpose}", *indices), self.task.images)
            for purpose, *indices in episodes
        ]
        x, y = (torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*drawn, strict=True))
        support = self.task.way * self.task.shot
        return EpisodeBatch(
            step=step,
            slots=list(slots),
            support_images=x[:, :support],
            support_labels=y[:, :support],
            query_images=x[:, support:],
            query_labels=y[:, support:],
        )


def fingerprint(family: str) -> str:
    """The fingerprint of a family, like a packed dataset's."""
    return hashlib.sha256(f"{family} {FAMILIES[family].version}".encode()).hexdigest()
