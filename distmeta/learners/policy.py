"""Policies: distributions of the next action, given a network's outputs. Shapes: T tasks, M observations of each."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distmeta.envs.environment import Continuous, Discrete
from distmeta.learners.params import Params

LOG_STD = "log_std"  # a Gaussian policy's meta-parameter besides those of its network


class Policy(ABC):
    """A distribution over actions. `outputs` is the width of the network's head."""

    outputs: int

    def own_params(self) -> Params:
        """Initial values of the policy's parameters besides the network's."""
        return {}

    @abstractmethod
    def act(self, params: Params, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for outputs (T, M, outputs), drawn with noise (T, M, K) of `actions.draw_noise`, or the most probable ones without
        noise.
        """

    @abstractmethod
    def log_prob(self, params: Params, outputs: Tensor, actions: Tensor) -> Tensor:
        """log π(action | observation), (T, M)."""

    @abstractmethod
    def divergence(self, old_params: Params, old_outputs: Tensor, params: Params, outputs: Tensor) -> Tensor:
        """KL(π_old ‖ π) at each observation, (T, M)."""


class Gaussian(Policy):
    """The network gives the mean of independent normal distributions. Their standard deviations are learned and do not depend on the
    observation. `log_std` is their initial logarithm, `std_floor` their minimum.
    """

    def __init__(self, actions: Continuous, log_std: float = 0.0, std_floor: float = 1e-6) -> None:
        self.outputs = actions.size
        self.log_std = log_std
        self.log_std_floor = math.log(std_floor)

    def own_params(self) -> Params:
        return {LOG_STD: torch.full((self.outputs,), self.log_std)}

    def act(self, params: Params, outputs: Tensor, noise: Tensor | None) -> Tensor:
        return outputs if noise is None else outputs + self._log_std(params).exp() * noise

    def log_prob(self, params: Params, outputs: Tensor, actions: Tensor) -> Tensor:
        log_std = self._log_std(params)
        deviation = (actions - outputs) * (-log_std).exp()
        return (-0.5 * deviation.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def divergence(self, old_params: Params, old_outputs: Tensor, params: Params, outputs: Tensor) -> Tensor:
        old, new = self._log_std(old_params), self._log_std(params)
        moved = ((2 * old).exp() + (old_outputs - outputs).square()) / (2 * (2 * new).exp())
        return (new - old + moved - 0.5).sum(-1)

    def _log_std(self, params: Params) -> Tensor:
        """Shape (T, 1, outputs), or (1, 1, outputs) for the parameters of one task."""
        return params[LOG_STD].reshape(-1, 1, self.outputs).clamp(min=self.log_std_floor)


class Categorical(Policy):
    """The network gives a logit for each action."""

    def __init__(self, actions: Discrete) -> None:
        self.outputs = actions.number

    def act(self, params: Params, outputs: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None:
            return outputs.argmax(-1)
        cumulative = outputs.softmax(-1).cumsum(-1)
        # The last cumulative probability may round to less than 1.
        return (cumulative <= noise).sum(-1).clamp(max=self.outputs - 1)

    def log_prob(self, params: Params, outputs: Tensor, actions: Tensor) -> Tensor:
        return outputs.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def divergence(self, old_params: Params, old_outputs: Tensor, params: Params, outputs: Tensor) -> Tensor:
        old = old_outputs.log_softmax(-1)
        return (old.exp() * (old - outputs.log_softmax(-1))).sum(-1)


def policy_for(actions: Continuous | Discrete, log_std: float = 0.0, std_floor: float = 1e-6) -> Policy:
    """The policy for these actions."""
    return Gaussian(actions, log_std, std_floor) if isinstance(actions, Continuous) else Categorical(actions)
