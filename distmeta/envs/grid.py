"""A walk on a grid to an unobserved goal cell: 2D navigation with discrete actions."""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distmeta.envs.environment import Discrete, Environment, Step

_MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class Grid(Environment):
    """A walker starts in the middle of side × side cells and stays, or moves to one of four neighbours; walls stop it.

    Its observation is its cell, one-hot (side²,); its task is a goal's column and row (2,), uniform over the other cells. The reward is
    minus the number of moves to the goal, divided by side. A trajectory ends at the goal.
    """

    version = 1
    actions = Discrete(len(_MOVES))
    task_fields = ("goal_column", "goal_row")

    def __init__(self, horizon: Annotated[int, Field(ge=1)] = 20, side: Annotated[int, Field(ge=2)] = 5) -> None:
        self.horizon = horizon
        self.side = side
        self.observation_size = side * side

    @property
    def name(self) -> str:
        return f"grid horizon={self.horizon} side={self.side}"

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        middle = self.side // 2 * (self.side + 1)
        cell = random.integers(self.side * self.side - 1)
        cell += cell >= middle
        return np.array([cell % self.side, cell // self.side], dtype=np.float64)

    def draw_starts(self, random: np.random.Generator, trajectories: int) -> NDArray[np.float64]:
        return np.full((trajectories, 2), float(self.side // 2))

    def start(self, tasks: Tensor, starts: Tensor) -> Tensor:
        return starts.to(tasks)

    def observe(self, state: Tensor) -> Tensor:
        cells = torch.arange(self.observation_size, device=state.device)
        return (cells == (state[..., 0] + self.side * state[..., 1]).unsqueeze(-1)).to(state.dtype)

    def best_actions(self, tasks: Tensor, state: Tensor) -> Tensor:
        ahead = tasks.unsqueeze(1) - state
        along_row = torch.where(ahead[..., 0] > 0, 1, 2)
        along_column = torch.where(ahead[..., 1] > 0, 3, 4)
        return torch.where(ahead[..., 0] != 0, along_row, torch.where(ahead[..., 1] != 0, along_column, 0))

    def places(self, observations: Tensor) -> Tensor:
        cells = observations.argmax(-1)
        return torch.stack([cells % self.side, cells // self.side], -1).to(observations.dtype)

    def step(self, tasks: Tensor, state: Tensor, actions: Tensor) -> Step:
        moves = state.new_tensor(_MOVES)[actions]
        position = (state + moves).clamp(0, self.side - 1)
        distance = (position - tasks.unsqueeze(1)).abs().sum(-1)
        arrived = distance == 0
        return Step(position, -distance / self.side, arrived, torch.zeros_like(arrived))
