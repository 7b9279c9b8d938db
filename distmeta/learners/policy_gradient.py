"""The objective of reinforcement learning: a policy acts, and the loss's derivative is the policy gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from distmeta.envs.environment import Environment
from distmeta.envs.stream import TaskBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Network
from distmeta.learners.held import HeldBatch, Phase
from distmeta.learners.objective import Cost, Objective
from distmeta.learners.params import floating_parameter
from distmeta.learners.policy import Policy, policy_for
from distmeta.learners.trajectories import Trajectories, advantages, ratio_loss, rollout, surrogate_loss
from distmeta.models.norm import BatchNorm2d


def policy_gradient(environment: Environment, log_std: float = 0.0, std_floor: float = 1e-6, **settings: Any) -> "PolicyGradient":
    """The objective for a policy with the environment's actions; `settings` are arguments of PolicyGradient."""
    return PolicyGradient(environment, policy_for(environment.actions, log_std, std_floor), **settings)


class PolicyGradient(Objective):
    """Trajectories under φ after k inner steps, drawn with the batch's noise of phase k, and their surrogate loss.

    `discount` is γ and `gae_decay` is λ of the advantages; `surrogate_decay` is λ of the surrogate, which determines the second derivative
    (see `surrogate_loss`). Losses have the value of minus the mean return, for readability, and the derivatives of the surrogate. With a
    `HeldBatch` the trajectories are given, and `clip_ratio` bounds the gain of the query loss from making their actions more probable.
    """

    score = "return"

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        discount: float = 0.99,
        gae_decay: float = 1.0,
        surrogate_decay: float = 0.0,
        clip_ratio: float | None = None,
    ) -> None:
        self.environment = environment
        self.policy = policy
        self.discount = discount
        self.gae_decay = gae_decay
        self.surrogate_decay = surrogate_decay
        self.clip_ratio = clip_ratio

    def support(self, network: Network, batch: TaskBatch | HeldBatch, step: int) -> Cost:
        if isinstance(batch, HeldBatch):
            trajectories, advantages, held, *_ = batch.phase(step)
        else:
            trajectories, held = self.trajectories(network, batch, step), None
            advantages = self.advantages(trajectories)
        log_probs = self.log_probs(network, trajectories)
        loss = surrogate_loss(log_probs, advantages, trajectories.lived, self.surrogate_decay, held)
        returns = trajectories.returns.mean(1)
        return Cost(loss - returns, returns)

    def query(self, network: Network, batch: TaskBatch | HeldBatch, step: int) -> Cost:
        if not isinstance(batch, HeldBatch):
            return self.support(network, batch, step)
        held = batch.phase(step)
        returns = held.trajectories.returns.mean(1)
        return Cost(self.ratio_loss(network, held) - returns, returns)

    def ratio_loss(self, network: Network, held: Phase) -> Tensor:
        """Minus the advantages of held actions (T,), each weighted by the policy's likelihood ratio."""
        log_probs = self.log_probs(network, held.trajectories)
        return ratio_loss(log_probs, held.advantages, held.trajectories.lived, held.log_probs, self.clip_ratio)

    @torch.no_grad()
    def play(self, network: Network, batch: TaskBatch, number: int) -> Phase:
        """The policy's trajectories with the noise of phase `number`, to be held."""
        trajectories = self.trajectories(network, batch, number)
        outputs = self.outputs(network, trajectories)
        own = [network.params[name].reshape(len(batch), -1) for name in self.policy.own_params()]
        return Phase(
            trajectories=trajectories,
            advantages=self.advantages(trajectories),
            log_probs=self.policy.log_prob(network.params, outputs, trajectories.actions.flatten(1, 2)).view(trajectories.rewards.shape),
            outputs=outputs.view(*trajectories.rewards.shape, -1),
            own=torch.cat(own, 1) if own else outputs.new_zeros(len(batch), 0),
        )

    def divergence(self, network: Network, held: Phase) -> Tensor:
        """Mean KL divergence (T,) of the acting policy from this one, over the steps within trajectories."""
        lived, like = held.trajectories.lived, self.policy.own_params()
        sizes = [value.numel() for value in like.values()]
        old = dict(zip(like, held.own.split(sizes, 1), strict=True)) if like else {}
        outputs = self.outputs(network, held.trajectories)
        divergence = self.policy.divergence(old, held.outputs.flatten(1, 2), network.params, outputs).view(lived.shape)
        return (divergence * lived).sum((1, 2)) / lived.sum((1, 2))

    def outputs(self, network: Network, trajectories: Trajectories) -> Tensor:
        """The network's outputs (T, N·H, K) for each observation that led to an action."""
        return network(trajectories.observations[:, :, :-1].flatten(1, 2))

    def trajectories(self, network: Network, batch: TaskBatch, phase: int) -> Trajectories:
        """The policy's trajectories with the noise of `phase`."""
        return rollout(self.environment, self.policy, network, batch.tasks, batch.starts[:, phase], batch.noise[:, phase])

    def advantages(self, trajectories: Trajectories) -> Tensor:
        """The advantage of each action, (T, N, H)."""
        return advantages(trajectories, self.discount, self.gae_decay)

    def log_probs(self, network: Network, trajectories: Trajectories) -> Tensor:
        """log π of each action, (T, N, H), differentiable by network.params."""
        outputs = self.outputs(network, trajectories)
        return self.policy.log_prob(network.params, outputs, trajectories.actions.flatten(1, 2)).view(trajectories.rewards.shape)

    def network(self, network: nn.Module) -> nn.Module:
        """`network` with the policy's parameters added. Raises ConfigError if it has batch normalisation."""
        for name, module in network.named_modules():
            if isinstance(module, BatchNorm2d | nn.modules.batchnorm._BatchNorm):
                raise ConfigError(
                    f"the network's {name} is batch normalisation: a policy acts on one observation at a time", "set model.norm=none"
                )
        like = floating_parameter(network)
        for name, value in self.policy.own_params().items():
            network.register_parameter(name, nn.Parameter(value.to(like.device, like.dtype)))
        return network
