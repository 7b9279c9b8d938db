"""What an environment is: a family of tasks as a tensor program, stepped for many tasks and trajectories at once."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Continuous(NamedTuple):
    """Actions are real vectors with `size` components; an environment clips those that leave its bounds."""

    size: int

    def draw_noise(self, random: np.random.Generator, trajectories: int, horizon: int) -> NDArray[np.float32]:
        """Standard normal (N, H, size): a Gaussian policy scales and shifts them."""
        return random.standard_normal((trajectories, horizon, self.size), dtype=np.float32)


class Discrete(NamedTuple):
    """Actions are the integers 0..number-1."""

    number: int

    def draw_noise(self, random: np.random.Generator, trajectories: int, horizon: int) -> NDArray[np.float32]:
        """Uniform in [0, 1) (N, H, 1): a categorical policy inverts its cumulative distribution at them."""
        return random.random((trajectories, horizon, 1), dtype=np.float32)


class Step(NamedTuple):
    """What one action leads to, for T tasks of N trajectories.

    state: the environment's own; reward, terminated and truncated (T, N). A terminated trajectory is over: nothing follows that is worth
    anything. A truncated one was cut: its advantages count the baseline's value of the state after the cut. Reaching the horizon is
    neither, because every policy is judged by the return within the horizon.
    """

    state: Any
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class Environment(ABC):
    """A family of tasks with the same observations and actions.

    Everything random is drawn from generators that the caller gives, so that a trajectory is a function of its task, its start, its
    actions' noise and the policy's parameters. `version` changes whenever the same draws would give other trajectories.
    """

    version: ClassVar[int]

    observation_size: int
    """O: components of an observation."""
    actions: Continuous | Discrete
    horizon: int
    """H: steps of a trajectory, at most."""
    task_fields: tuple[str, ...]
    """D: what the components of a task mean, for people and for naming a task on the command line."""
    tensor_program: ClassVar[bool] = True
    """Whether it computes with tensors alone, so that it can be run without values to estimate memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What identifies the family together with `version`: its name and every setting that changes trajectories."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        """One task (D,)."""

    @abstractmethod
    def draw_starts(self, random: np.random.Generator, trajectories: int) -> NDArray[np.float64]:
        """What decides the first state of each trajectory (N, S). The first rows do not depend on how many follow."""

    @abstractmethod
    def start(self, tasks: Tensor, starts: Tensor) -> Any:
        """The first states, from tasks (T, D) and starts (T, N, S)."""

    @abstractmethod
    def observe(self, state: Any) -> Tensor:
        """What a policy sees of a state: (T, N, O)."""

    @abstractmethod
    def step(self, tasks: Tensor, state: Any, actions: Tensor) -> Step:
        """One step from `state` with actions (T, N, size), or (T, N) integers where they are discrete.

        Trajectories that have ended are stepped too; their results are discarded.
        """

    @property
    def software(self) -> dict[str, str]:
        """Libraries and their versions that trajectories depend on beside torch. Default: none."""
        return {}

    def best_actions(self, tasks: Tensor, state: Any) -> Tensor | None:
        """How somebody would act who knows the task. Default: None, nobody knows."""
        return None

    def places(self, observations: Tensor) -> Tensor | None:
        """Where the observer is in a plane (…, 2), for pictures; there the tasks (T, 2) are goals. Default: None, there is no plane."""
        return None

    def frames(self, task: NDArray[np.float64], start: NDArray[np.float64], actions: NDArray[Any]) -> list[NDArray[np.uint8]] | None:
        """Pictures (height, width, 3) of the trajectory that `actions` (H, size), or (H,) integers, make of a task (D,) and a start (S,).

        Default: None, it cannot be seen. Raises DataError if nothing can be drawn on this machine.
        """
        return None

    def check(self) -> None:
        """Raises ConfigError if the environment breaks a rule of this class that can be tried out. Default: nothing is tried."""
        return None
