"""The objective of reinforcement learning: a policy acts, and the policy gradient says what its parameters cost."""

from torch import Tensor, nn

from distmeta.envs.environment import Environment
from distmeta.envs.stream import TaskBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Network
from distmeta.learners.objective import Cost, Objective
from distmeta.learners.policy import Policy, policy_for
from distmeta.learners.trajectories import Trajectories, advantages, rollout, surrogate_loss
from distmeta.models.norm import BatchNorm2d


def policy_gradient(environment: Environment, log_std: float = 0.0, std_floor: float = 1e-6, **settings: float) -> "PolicyGradient":
    """The objective with the policy that takes the environment's actions; `settings` are those of PolicyGradient."""
    return PolicyGradient(environment, policy_for(environment.actions, log_std, std_floor), **settings)


class PolicyGradient(Objective):
    """Trajectories under φ after k inner steps, drawn with the batch's noise of phase k, and their surrogate loss.

    `discount` is γ and `gae_decay` is λ of the advantages; `surrogate_decay` is λ of the surrogate, which decides the second derivative
    (see `surrogate_loss`). Losses have the value of minus the mean return, for people to read; their derivatives are the surrogate's.
    """

    score = "return"

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        discount: float = 0.99,
        gae_decay: float = 1.0,
        surrogate_decay: float = 0.0,
    ) -> None:
        self.environment = environment
        self.policy = policy
        self.discount = discount
        self.gae_decay = gae_decay
        self.surrogate_decay = surrogate_decay

    def support(self, network: Network, batch: TaskBatch, step: int) -> Cost:
        trajectories = self.trajectories(network, batch, step)
        log_probs = self.log_probs(network, trajectories)
        loss = surrogate_loss(log_probs, self.advantages(trajectories), trajectories.lived, self.surrogate_decay)
        returns = trajectories.returns.mean(1)
        return Cost(loss - returns, returns)

    query = support

    def trajectories(self, network: Network, batch: TaskBatch, phase: int) -> Trajectories:
        """What the policy does with the noise of `phase`."""
        return rollout(self.environment, self.policy, network, batch.tasks, batch.starts[:, phase], batch.noise[:, phase])

    def advantages(self, trajectories: Trajectories) -> Tensor:
        """What each action was worth, (T, N, H)."""
        return advantages(trajectories, self.discount, self.gae_decay)

    def log_probs(self, network: Network, trajectories: Trajectories) -> Tensor:
        """log π of each action, (T, N, H), differentiable by network.params."""
        outputs = network(trajectories.observations[:, :, :-1].flatten(1, 2))
        return self.policy.log_prob(network.params, outputs, trajectories.actions.flatten(1, 2)).view(trajectories.rewards.shape)

    def network(self, network: nn.Module) -> nn.Module:
        """`network` with the policy's own parameters beside its own. Raises ConfigError if it has batch normalisation."""
        for name, module in network.named_modules():
            if isinstance(module, BatchNorm2d | nn.modules.batchnorm._BatchNorm):
                raise ConfigError(
                    f"the network's {name} is batch normalisation: a policy acts on one observation at a time", "set model.norm=none"
                )
        like = next(network.parameters())
        for name, value in self.policy.own_params().items():
            network.register_parameter(name, nn.Parameter(value.to(like.device, like.dtype)))
        return network
