"""The interface of environments: a family of tasks as a tensor program, stepped for many tasks and trajectories at once."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Continuous(NamedTuple):
    """Actions are real vectors with `size` components; an environment clips them to its bounds."""

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
    """The result of one action, for T tasks of N trajectories.

    `state` is defined by the environment; reward, terminated and truncated are (T, N). After the end of a terminated trajectory all rewards
    are zero. For a truncated trajectory, advantages include the baseline's value of the state after the cut. Reaching the horizon is
    neither, because the score of a policy is the return within the horizon.
    """

    state: Any
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class Environment(ABC):
    """A family of tasks with the same observations and actions.

    All random numbers come from the caller's generators, so a trajectory is a function of its task, its start, its actions' noise and the
    policy's parameters. `version` must change whenever the same draws would give other trajectories.
    """

    version: ClassVar[int]

    observation_size: int
    """O: components of an observation."""
    actions: Continuous | Discrete
    horizon: int
    """H: maximum steps of a trajectory."""
    task_fields: tuple[str, ...]
    """Names of the D components of a task, for reports and for the option --task."""
    tensor_program: ClassVar[bool] = True
    """Whether it uses only tensor operations, so that memory can be estimated by running it without values."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The family's name and every setting that changes trajectories. Together with `version` they identify the family."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        """One task (D,)."""

    @abstractmethod
    def draw_starts(self, random: np.random.Generator, trajectories: int) -> NDArray[np.float64]:
        """The random numbers (N, S) that determine the trajectories' first states. A row does not depend on the number of rows."""

    @abstractmethod
    def start(self, tasks: Tensor, starts: Tensor) -> Any:
        """The first states, from tasks (T, D) and starts (T, N, S)."""

    @abstractmethod
    def observe(self, state: Any) -> Tensor:
        """The policy's observation of a state: (T, N, O)."""

    @abstractmethod
    def step(self, tasks: Tensor, state: Any, actions: Tensor) -> Step:
        """One step from `state` with actions (T, N, size), or integers (T, N) if actions are discrete. Trajectories that have ended are
        stepped too; their results are discarded.
        """

    @property
    def software(self) -> dict[str, str]:
        """Libraries besides torch, with versions, that trajectories depend on. Default: none."""
        return {}

    def best_actions(self, tasks: Tensor, state: Any) -> Tensor | None:
        """The best actions if the task is known. Default: None, unknown."""
        return None

    def places(self, observations: Tensor) -> Tensor | None:
        """Positions in a plane (…, 2), for pictures, in which tasks (T, 2) are goals. Default: None, the environment is not planar."""
        return None

    def frames(self, task: NDArray[np.float64], start: NDArray[np.float64], actions: NDArray[Any]) -> list[NDArray[np.uint8]] | None:
        """Pictures (height, width, 3) of the trajectory of `actions`, (H, size) or integers (H,), in a task (D,) from a start (S,).
        Default: None, it cannot be drawn. Raises DataError if nothing can be drawn on this machine.
        """
        return None

    def check(self) -> None:
        """Raises ConfigError if a trial run breaks a rule of this class. Default: no trial."""
        return None
