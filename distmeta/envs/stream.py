"""Episodes of reinforcement learning: a task, and the noise that determines its trajectories before and after every inner step."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from distmeta.data.episodes import Batch, Task
from distmeta.data.splits import Split
from distmeta.envs.environment import Environment
from distmeta.seeds import generator


@dataclass(frozen=True)
class TaskBatch(Batch):
    """B tasks and the random numbers of their trajectories in P phases: before the first inner step (0), after it (1), …

    tasks (B, D); starts (B, P, N, S): for the first states; noise (B, P, N, H, K): for the actions.
    """

    tasks: Tensor
    starts: Tensor
    noise: Tensor


class TaskStream:
    """Tasks of one environment as pure functions of (seed, split, step, slot).

    Starts and noise are functions of (seed, split, step, slot, phase, trajectory): adding trajectories or phases does not change the first
    ones.
    """

    def __init__(self, environment: Environment, split: Split, trajectories: int, phases: int, seed: int) -> None:
        """`trajectories` (N) of each phase; `phases` (P): one more than there are inner steps."""
        self.environment = environment
        self.split = split
        self.task = Task(way=1, shot=trajectories, queries=trajectories)
        self.phases = phases
        self.seed = seed

    def training(self, slots: Sequence[int], start_step: int = 0) -> Iterator[TaskBatch]:
        """For step = start_step, start_step + 1, … without end, the tasks of `slots`."""
        for step in count(start_step):
            yield self._batch(step, slots, [("episode", step, slot) for slot in slots])

    def evaluation(self, indices: Sequence[int], batch: int = 20) -> Iterator[TaskBatch]:
        """The fixed evaluation tasks numbered `indices`, `batch` at a time."""
        for start in range(0, len(indices), batch):
            numbers = indices[start : start + batch]
            yield self._batch(0, numbers, [("evaluation episode", number) for number in numbers])

    def described(self, step: int, slot: int) -> dict[str, float]:
        """The components of the training task of (step, slot), by name."""
        drawn = self.environment.draw(self._generator("task", "episode", step, slot))
        return dict(zip(self.environment.task_fields, drawn.tolist(), strict=True))

    def _batch(self, step: int, slots: Sequence[int], episodes: Sequence[tuple[str, *tuple[int, ...]]]) -> TaskBatch:
        environment, phases = self.environment, range(self.phases)
        tasks = [environment.draw(self._generator("task", *episode)) for episode in episodes]
        starts = [
            [environment.draw_starts(self._generator("starts", *episode, phase), self.task.shot) for phase in phases]
            for episode in episodes
        ]
        noise = [
            [
                environment.actions.draw_noise(self._generator("noise", *episode, phase), self.task.shot, environment.horizon)
                for phase in phases
            ]
            for episode in episodes
        ]
        return TaskBatch(step, list(slots), *(torch.from_numpy(np.array(part)) for part in (tasks, starts, noise)))

    def _generator(self, what: str, purpose: str, *indices: int) -> np.random.Generator:
        return generator(self.seed, f"{self.environment.name} {self.split} {purpose} {what}", *indices)


def fingerprint(environment: Environment) -> str:
    """The fingerprint of an environment, like a packed dataset's. It includes the versions of the environment's libraries."""
    software = "".join(f" {library} {number}" for library, number in sorted(environment.software.items()))
    return hashlib.sha256(f"{environment.name} {environment.version}{software}".encode()).hexdigest()
