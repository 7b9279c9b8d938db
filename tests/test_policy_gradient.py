"""Laws of policies, trajectories, advantages and the surrogate loss."""

import itertools
import math

import numpy as np
import pytest
import torch
from constant_network import Constant
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from distmeta.envs import ENVIRONMENTS, Grid, Navigation, build_environment
from distmeta.envs.environment import Continuous, Discrete
from distmeta.envs.stream import TaskStream
from distmeta.learners.forward import Forward, Network
from distmeta.learners.policy import Categorical, Gaussian, policy_for
from distmeta.learners.trajectories import Trajectories, advantages, baseline_values, decay_matrix, rollout, surrogate_loss
from distmeta.models import build_model


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_gaussian_policy_is_torchs_normal() -> None:
    policy, params, others = Gaussian(Continuous(3)), {"log_std": random(0, 2, 3)}, {"log_std": random(1, 2, 3)}
    mean, mean_too, actions = random(2, 2, 5, 3), random(3, 2, 5, 3), random(4, 2, 5, 3)
    ours, theirs = (Independent(Normal(m, p["log_std"].exp()[:, None]), 1) for m, p in ((mean, params), (mean_too, others)))
    torch.testing.assert_close(policy.log_prob(params, mean, actions), ours.log_prob(actions))
    torch.testing.assert_close(policy.divergence(params, mean, others, mean_too), kl_divergence(ours, theirs))
    noise = random(5, 2, 5, 3)
    torch.testing.assert_close(policy.act(params, mean, noise), mean + params["log_std"].exp()[:, None] * noise)
    assert policy.act(params, mean, None) is mean


def test_a_standard_deviation_stays_above_its_floor() -> None:
    policy, params = Gaussian(Continuous(1), std_floor=0.1), {"log_std": torch.tensor([-20.0], dtype=torch.float64)}
    assert policy.act(params, torch.zeros(1, 1, 1), torch.ones(1, 1, 1)).item() == pytest.approx(0.1)


def test_a_categorical_policy_is_torchs() -> None:
    policy, logits, others = Categorical(Discrete(4)), random(0, 2, 5, 4), random(1, 2, 5, 4)
    actions = torch.arange(10).view(2, 5) % 4
    ours, theirs = TorchCategorical(logits=logits), TorchCategorical(logits=others)
    torch.testing.assert_close(policy.log_prob({}, logits, actions), ours.log_prob(actions))
    torch.testing.assert_close(policy.divergence({}, logits, {}, others), kl_divergence(ours, theirs))
    assert torch.equal(policy.act({}, logits, None), logits.argmax(-1))


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=6))
def test_even_noise_draws_each_action_as_often_as_its_probability(logits: list[float]) -> None:
    policy, points = Categorical(Discrete(len(logits))), 2000
    noise = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).view(1, points, 1)
    outputs = torch.tensor(logits, dtype=torch.float64).expand(1, points, -1)
    counts = policy.act({}, outputs, noise).flatten().bincount(minlength=len(logits))
    assert (counts / points - outputs[0, 0].softmax(-1)).abs().max() <= 1.5 / points


def test_the_largest_noise_in_float32_is_still_an_action() -> None:
    policy = Categorical(Discrete(3))
    assert policy.act({}, torch.tensor([[[0.1, 0.2, 0.3]]]), torch.tensor([[[1 - 2.0**-24]]])).item() == 2


@pytest.mark.parametrize("name", sorted(name for name, kind in ENVIRONMENTS.items() if kind.tensor_program))
def test_a_trajectorys_bits_do_not_depend_on_its_neighbours(name: str) -> None:
    """The other trajectories of its task and the other tasks of its chunk are drawn at random; its own bits stay."""
    environment = build_environment(name)
    policy = policy_for(environment.actions)
    model = build_model("mlp", (environment.observation_size,), policy.outputs, "none", widths=[16])
    own = {name: value.detach() for name, value in model.named_parameters()} | policy.own_params()
    params = {name: value.expand(3, *value.shape) for name, value in own.items()}
    forward = Forward(model, batched=True)

    def trajectories(batch_seed: int) -> Trajectories:
        batch = next(
            TaskStream(environment=environment, split="train", trajectories=4, phases=1, seed=batch_seed).training([0, 1, 2])
        ).like(own["head.weight"])
        ours = next(TaskStream(environment=environment, split="train", trajectories=4, phases=1, seed=0).training([0])).like(
            own["head.weight"]
        )
        batch.tasks[1], batch.noise[1, 0, 2] = ours.tasks[0], ours.noise[0, 0, 0]
        return rollout(environment, policy, Network(forward, params), batch.tasks, batch.starts[:, 0], batch.noise[:, 0])

    one, other = trajectories(1), trajectories(2)
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours[1, 2], theirs[1, 2])
    assert not torch.equal(one.actions[0], other.actions[0])


def lived_until(ends: list[int], horizon: int) -> Tensor:
    return torch.tensor([[[1.0] * end + [0.0] * (horizon - end) for end in ends]], dtype=torch.float64)


def made_up(ends: list[int], horizon: int, seed: int, truncated: bool = False) -> Trajectories:
    """One task's trajectories with random rewards and observations, which end after so many steps."""
    lived = lived_until(ends, horizon)
    cut = torch.zeros_like(lived)
    if truncated:
        for row, end in enumerate(ends):
            cut[0, row, end - 1] = float(end < horizon)
    rewards = random(seed, 1, len(ends), horizon) * lived
    return Trajectories(
        observations=random(seed + 1, 1, len(ends), horizon + 1, 2), actions=rewards, rewards=rewards, lived=lived, bootstrapped=cut
    )


@given(
    ends=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    discount=st.floats(0.5, 1),
    gae_decay=st.floats(0, 1),
    truncated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_advantages_are_the_recursion_written_out(ends: list[int], discount: float, gae_decay: float, truncated: bool, seed: int) -> None:
    trajectories = made_up(ends, 6, seed, truncated)
    values = baseline_values(trajectories, discount)[0]
    found = advantages(trajectories, discount, gae_decay, normalise=False)[0]
    for row, end in enumerate(ends):
        advantage = 0.0
        for time in reversed(range(end)):
            worth = values[row, time + 1].item() if time + 1 < end or (truncated and end < 6) else 0.0
            surprise = trajectories.rewards[0, row, time].item() + discount * worth - values[row, time].item()
            advantage = surprise + discount * gae_decay * advantage
            assert found[row, time].item() == pytest.approx(advantage, rel=1e-9, abs=1e-9)
        assert not found[row, end:].any()


def test_the_baseline_is_numpys_least_squares_with_the_ridge_as_further_rows() -> None:
    trajectories = made_up([12] * 20, 12, 3)
    values = baseline_values(trajectories, 0.9)[0].numpy()
    observations, time = trajectories.observations[0].numpy(), np.broadcast_to(np.arange(13) / 12, (20, 13))[..., None]
    features = np.concatenate([observations, observations**2, time**0, time, time**2, time**3], -1)
    rewards = trajectories.rewards[0].numpy()
    to_go = np.stack([sum(0.9 ** (s - t) * rewards[:, s] for s in range(t, 12)) for t in range(12)], 1)
    rows = np.concatenate([features[:, :12].reshape(-1, 8), 1e-5**0.5 * np.eye(8)])
    weights = np.linalg.lstsq(rows, np.concatenate([to_go.reshape(-1), np.zeros(8)]), rcond=None)[0]
    assert values == pytest.approx(features @ weights, rel=1e-8)


def test_normalised_advantages_have_mean_0_and_deviation_1_over_the_steps_that_were_lived() -> None:
    trajectories = made_up([3, 6, 1, 5], 6, 4)
    found = advantages(trajectories, 0.99, 1.0)[trajectories.lived.bool()]
    assert found.mean().item() == pytest.approx(0, abs=1e-9)
    assert found.std(correction=0).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_surrogates_first_derivative_is_the_policy_gradient(decay: float) -> None:
    log_probs, worth, lived = random(0, 1, 3, 6).requires_grad_(), random(1, 1, 3, 6), lived_until([6, 2, 4], 6)
    loss = surrogate_loss(log_probs, worth, lived, decay)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert loss.item() == 0
    torch.testing.assert_close(gradient, -worth * lived / lived.sum())


@given(decay=st.floats(0, 1), horizon=st.integers(1, 7))
def test_the_decay_matrix_sums_the_past_and_its_transpose_the_future(decay: float, horizon: int) -> None:
    values = random(0, horizon)
    past, future = values @ decay_matrix(decay, values), values @ decay_matrix(decay, values).T
    for time in range(horizon):
        assert past[time].item() == pytest.approx(sum(decay ** (time - s) * values[s].item() for s in range(time + 1)), abs=1e-12)
        assert future[time].item() == pytest.approx(sum(decay ** (s - time) * values[s].item() for s in range(time, horizon)), abs=1e-12)


def every_walk(logits: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all walks of `horizon` moves on a grid of 3 × 3 to a fixed goal: log-probabilities (1, N, H), rewards to go and lived steps."""
    grid, goal = Grid(horizon=horizon, side=3), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    walks = torch.tensor(list(itertools.product(range(5), repeat=horizon))).T[:, None]
    state, alive = torch.ones(1, walks.shape[2], 2, dtype=torch.float64), torch.ones(1, walks.shape[2], dtype=torch.float64)
    log_probs, rewards, lived = [], [], []
    for moves in walks:
        outputs = grid.observe(state) @ logits
        log_probs.append(Categorical(grid.actions).log_prob({}, outputs, moves))
        state, reward, terminated, _ = grid.step(goal, state, moves)
        rewards.append(reward * alive)
        lived.append(alive)
        alive = alive * ~terminated
    to_go = torch.stack(rewards, -1).flip(-1).cumsum(-1).flip(-1)
    return torch.stack(log_probs, -1), to_go, torch.stack(lived, -1)


def test_dice_has_the_exact_hessian_of_the_return_and_lvc_does_not() -> None:
    """Every walk of three moves is written out, so expectations are sums: no sampling error hides a bias."""
    horizon, logits = 3, random(0, 9, 5)

    def expected_return(logits: Tensor) -> Tensor:
        log_probs, to_go, _ = every_walk(logits, horizon)
        return (log_probs.sum(-1).exp() * to_go[..., 0]).sum()

    def expected_surrogate(logits: Tensor, decay: float) -> Tensor:
        log_probs, to_go, lived = every_walk(logits, horizon)
        weight = log_probs.detach().sum(-1).exp()[0]
        each = [x.transpose(0, 1) for x in (log_probs, to_go, lived)]  # a walk is a task, so that each has its own loss
        return -(surrogate_loss(*each, decay) * lived[0].sum(-1) * weight).sum()

    truth = torch.autograd.functional.hessian(expected_return, logits).flatten()
    dice, loaded, lvc = (
        torch.autograd.functional.hessian(lambda x, decay=decay: expected_surrogate(x, decay), logits).flatten()
        for decay in (1.0, 0.9, 0.0)
    )
    torch.testing.assert_close(dice, truth)
    assert (lvc - truth).norm() > (loaded - truth).norm() > 0.01 * truth.norm()


def test_reaching_the_horizon_is_not_a_truncation() -> None:
    environment = Navigation(horizon=5)
    batch = next(TaskStream(environment=environment, split="train", trajectories=2, phases=1, seed=0).training([0]))
    policy = Gaussian(environment.actions)
    found = rollout(
        environment,
        policy,
        Constant(torch.zeros(1, 2, 2, dtype=torch.float64), {"log_std": torch.full((2,), math.log(0.1), dtype=torch.float64)}),  # type: ignore[arg-type]
        batch.tasks,
        batch.starts[:, 0],
        batch.noise[:, 0].double(),
    )
    assert found.lived.all()
    assert not found.bootstrapped.any()
    assert found.observations.shape == (1, 2, 6, 2)
    assert torch.equal(found.returns, found.rewards.sum(-1))
