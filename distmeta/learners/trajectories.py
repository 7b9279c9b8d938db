"""Trajectories under a policy, the advantage of each action, and the policy gradient's surrogate loss.

Shapes: T tasks, N trajectories, H steps, O components of an observation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distmeta.envs.environment import Environment
from distmeta.learners.forward import Network
from distmeta.learners.policy import Policy

_RIDGE = 1e-5  # ridge of the baseline's fit, as in rllab's LinearFeatureBaseline
_EPSILON = 1e-8  # added to the standard deviation of advantages


class Trajectories(NamedTuple):
    """observations (T, N, H + 1, O), the last of them after the last step; actions (T, N, H, size) or (T, N, H) integers; rewards (T, N,
    H).

    lived (T, N, H): 1.0 for each step up to the trajectory's end, 0.0 after it (rewards are 0 there). bootstrapped (T, N, H): 1.0 at a step
    that was truncated before the horizon.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lived: Tensor
    bootstrapped: Tensor

    @property
    def returns(self) -> Tensor:
        """The undiscounted return of each trajectory, (T, N)."""
        return self.rewards.sum(-1)


def rollout(environment: Environment, policy: Policy, network: Network, tasks: Tensor, starts: Tensor, noise: Tensor) -> Trajectories:
    """Trajectories of `policy`, with outputs of `network`, in tasks (T, D).

    They are functions of starts (T, N, S), noise (T, N, H, K) and the network's parameters alone.
    """

    def act(time: int, state: Any, observations: Tensor) -> Tensor:
        return policy.act(network.params, network(observations), noise[:, :, time])

    return play(environment, tasks, starts, act)


def best_returns(environment: Environment, tasks: Tensor, starts: Tensor) -> Tensor | None:
    """The returns (T, N) of the best actions for the known task, or None if the environment does not define them."""
    if environment.best_actions(tasks, environment.start(tasks, starts)) is None:
        return None

    def act(time: int, state: Any, observations: Tensor) -> Tensor:
        actions = environment.best_actions(tasks, state)
        assert actions is not None
        return actions

    return play(environment, tasks, starts, act).returns


@torch.no_grad()
def play(environment: Environment, tasks: Tensor, starts: Tensor, act: Callable[[int, Any, Tensor], Tensor]) -> Trajectories:
    """Trajectories with the actions of `act(time, state, observations)`."""
    state = environment.start(tasks, starts)
    observations, actions, rewards, lived, bootstrapped = [environment.observe(state)], [], [], [], []
    alive = torch.ones(starts.shape[:2], dtype=tasks.dtype, device=tasks.device)
    for time in range(environment.horizon):
        action = act(time, state, observations[-1])
        state, reward, terminated, truncated = environment.step(tasks, state, action)
        observations.append(environment.observe(state))
        actions.append(action)
        rewards.append(reward * alive)
        lived.append(alive)
        cut = truncated & ~terminated if time + 1 < environment.horizon else torch.zeros_like(truncated)
        bootstrapped.append(alive * cut)
        alive = alive * ~(terminated | truncated)
    return Trajectories(*(torch.stack(steps, 2) for steps in (observations, actions, rewards, lived, bootstrapped)))


def advantages(trajectories: Trajectories, discount: float, gae_decay: float, normalise: bool = True) -> Tensor:
    """The advantage of each action over a linear baseline, (T, N, H); 0 after a trajectory's end.

    Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16) with γ = `discount` and λ = `gae_decay`. With
    `normalise`, a task's advantages have mean 0 and standard deviation 1 over the steps within trajectories.
    """
    rewards, lived, bootstrapped = (part.double() for part in (trajectories.rewards, trajectories.lived, trajectories.bootstrapped))
    values = baseline_values(trajectories, discount)
    arrives = torch.cat([lived[..., 1:], torch.zeros_like(lived[..., :1])], -1) + bootstrapped
    surprise = (rewards + discount * values[..., 1:] * arrives - values[..., :-1]) * lived
    advantages = surprise @ decay_matrix(discount * gae_decay, surprise).T * lived
    if normalise:
        count = lived.sum((1, 2), keepdim=True)
        centred = (advantages - advantages.sum((1, 2), keepdim=True) / count) * lived
        advantages = centred / ((centred.square().sum((1, 2), keepdim=True) / count).sqrt() + _EPSILON)
    return advantages.to(trajectories.rewards.dtype)


def baseline_values(trajectories: Trajectories, discount: float) -> Tensor:
    """The expected discounted return after each observation, (T, N, H + 1) in float64, by a ridge regression for each task.

    Features are the observation, its squares, and the first three powers of the time in horizons (Duan et al. 2016, arXiv:1604.06778,
    section 5, with the horizon in place of 100 steps). It uses float64, because float32 has too few digits for squares of squares.
    """
    rewards, lived, observations = trajectories.rewards.double(), trajectories.lived.double(), trajectories.observations.double()
    horizon = rewards.shape[-1]
    to_go = rewards @ decay_matrix(discount, rewards).T
    time = torch.arange(horizon + 1, dtype=torch.float64, device=rewards.device) / horizon
    powers = torch.stack([time**0, time, time**2, time**3], -1).expand(*observations.shape[:-1], 4)
    features = torch.cat([observations, observations.square(), powers], -1)
    fitted = (features[..., :-1, :] * lived.unsqueeze(-1)).flatten(1, 2)
    normal = fitted.mT @ fitted + _RIDGE * torch.eye(fitted.shape[-1], dtype=fitted.dtype, device=fitted.device)
    weights = torch.linalg.solve(normal, fitted.mT @ to_go.flatten(1).unsqueeze(-1))
    return (features.flatten(1, 2) @ weights).view(observations.shape[:-1])


def surrogate_loss(log_probs: Tensor, advantages: Tensor, lived: Tensor, decay: float, held: Tensor | None = None) -> Tensor:
    """A loss for each task (T,), whose derivatives are those of minus the return. All arguments are (T, N, H).

    `held` are the actions' log-probabilities when they were drawn (default: the present ones; the loss is then 0).

    Loaded DiCE (Farquhar, Whiteson & Foerster 2019, arXiv:1909.10549, equation 12). With l_s = log π of step s and S_t = Σ_(s≤t) λ^(t-s)
    l_s, step t contributes A_t (exp(S_t - [S_t]) - exp(S_t - l_t - [S_t - l_t])); brackets are the held values. The first derivative is the
    policy gradient for any λ = `decay`. The second one is unbiased at λ = 1 (DiCE, highest variance). λ = 0 is LVC (Rothfuss et al. 2019,
    arXiv:1810.06784), which ignores an action's influence on the value of later actions.
    """
    log_probs, held = log_probs * lived, (log_probs.detach() if held is None else held) * lived
    sums = decay_matrix(decay, log_probs)
    until, held_until = log_probs @ sums, held @ sums
    weights = (until - held_until).exp() - ((until - log_probs) - (held_until - held)).exp()
    return -(weights * advantages * lived).sum((1, 2)) / lived.sum((1, 2))


def ratio_loss(log_probs: Tensor, advantages: Tensor, lived: Tensor, held: Tensor, clip_ratio: float | None) -> Tensor:
    """Minus the mean advantage (T,) of held actions, each weighted by its ratio of likelihoods; all arguments are (T, N, H).

    With `clip_ratio` ε there is no gain from a ratio outside [1 - ε, 1 + ε] (Schulman et al. 2017, arXiv:1707.06347, equation 7).
    """
    ratios = ((log_probs - held) * lived).exp()
    gains = ratios * advantages
    if clip_ratio is not None:
        gains = torch.minimum(gains, ratios.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages)
    return -(gains * lived).sum((1, 2)) / lived.sum((1, 2))


def decay_matrix(decay: float, like: Tensor) -> Tensor:
    """(H, H): decay^(t-s) at row s and column t ≥ s, else 0. `values @ it` sums each step's past, `values @ its transpose` its future."""
    time = torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)
    ahead = time - time.unsqueeze(-1)
    return torch.where(ahead >= 0, decay ** ahead.clamp(min=0), 0.0)
