"""2D navigation: a point walks to an unobserved goal (Finn, Abbeel & Levine 2017, arXiv:1703.03400, section 5.3)."""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distmeta.envs.environment import Continuous, Environment, Step

_REACH = 0.5  # goals are uniform in [-0.5, 0.5]²
_STRIDE = 0.1  # distance that an action of 1 moves the point
_ARRIVED = 0.01  # a trajectory ends when both coordinates are this close to the goal


class Navigation(Environment):
    """A point starts at the origin; its observation is its position (2,), its action a velocity in [-1, 1]², its task a goal (2,).

    The reward is minus the distance to the goal, as in the code of MAML's authors and in their figures; their text squares it, as `squared`
    does.
    """

    version = 1
    observation_size = 2
    actions = Continuous(2)
    task_fields = ("goal_x", "goal_y")

    def __init__(self, horizon: Annotated[int, Field(ge=1)] = 100, squared: bool = False) -> None:
        self.horizon = horizon
        self.squared = squared

    @property
    def name(self) -> str:
        return f"navigation horizon={self.horizon} squared={self.squared}"

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        return random.uniform(-_REACH, _REACH, 2)

    def draw_starts(self, random: np.random.Generator, trajectories: int) -> NDArray[np.float64]:
        return np.zeros((trajectories, 2))

    def start(self, tasks: Tensor, starts: Tensor) -> Tensor:
        return starts.to(tasks)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def best_actions(self, tasks: Tensor, state: Tensor) -> Tensor:
        return ((tasks.unsqueeze(1) - state) / _STRIDE).clamp(-1, 1)

    def places(self, observations: Tensor) -> Tensor:
        return observations

    def step(self, tasks: Tensor, state: Tensor, actions: Tensor) -> Step:
        position = state + _STRIDE * actions.clamp(-1, 1)
        offset = position - tasks.unsqueeze(1)
        squared_distance = offset.square().sum(-1)
        reward = -squared_distance if self.squared else -squared_distance.sqrt()
        arrived = offset.abs().amax(-1) < _ARRIVED
        return Step(position, reward, arrived, torch.zeros_like(arrived))
