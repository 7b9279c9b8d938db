"""Spiking neurons: their spikes, their derivatives, their rates, and the network built of them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners import build_learner
from distmeta.learners.params import Params, flatten, unflatten
from distmeta.models import build_model
from distmeta.models.spiking import LeakyIntegrateAndFire, arctangent, spike


@given(st.lists(st.floats(-100, 100), min_size=1), st.floats(0.1, 20))
def test_a_spike_is_one_above_the_threshold_and_nothing_between(potentials: list[float], scale: float) -> None:
    values = torch.tensor(potentials)
    assert torch.equal(spike(values, scale), (values > 0).float())


def test_every_derivative_of_a_spike_is_the_arctangents() -> None:
    values, scale = torch.linspace(-2, 2, 9, dtype=torch.float64), 3.0

    def derivatives(function: Any) -> list[Tensor]:
        x, found = values.clone().requires_grad_(), []
        y = function(x, scale)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            found.append(y.detach())
        return found

    ours, smooth = derivatives(spike), derivatives(arctangent)
    torch.testing.assert_close(ours, smooth)
    torch.testing.assert_close(ours[0], scale / (math.pi * (1 + (scale * values) ** 2)))


def test_a_neuron_leaks_fires_and_is_reset_softly() -> None:
    """By hand: 0.8, then 0.4 + 0.8 = 1.2 fires and leaves 0.2, then 0.1 + 0.8 = 0.9, then 0.45 + 0.8 = 1.25 fires."""
    neuron = LeakyIntegrateAndFire(beta=0.5, threshold=1.0, surrogate_scale=math.pi)
    assert neuron(torch.full((4, 1), 0.8)).flatten().tolist() == [0, 1, 0, 1]
    assert neuron.spike_rate.item() == 0.5


def test_a_threshold_that_nothing_reaches_is_silent_and_one_of_almost_none_saturates() -> None:
    currents = torch.rand(5, 3) + 0.5
    for threshold, rate in ((100.0, 0.0), (1e-3, 1.0)):
        neuron = LeakyIntegrateAndFire(0.5, threshold, math.pi)
        neuron(currents)
        assert neuron.spike_rate.item() == rate


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons whose forward is the surrogate itself and whose reset passes gradients, so that finite differences exist."""
    monkeypatch.setattr(LeakyIntegrateAndFire, "fire", lambda self, potential: arctangent(potential, self.surrogate_scale) + 0.5)
    monkeypatch.setattr(LeakyIntegrateAndFire, "reset", lambda self, potential, spikes: potential - self.threshold * spikes)


def learner_and_episodes(name: str, slots: int, **settings: Any) -> tuple[Any, Params, EpisodeBatch]:
    model = build_model("spiking_conv4", (1, 16, 16), 3, "batch", filters=4, steps=3, seed=1).double()
    learner = build_learner(name, model, inner_lr=0.3, inner_steps=2, **settings)
    params = {key: value.double() for key, value in learner.initial_params().items()}
    random = torch.Generator().manual_seed(5)
    images = [torch.rand(slots, count, 1, 16, 16, generator=random, dtype=torch.float64) for count in (6, 9)]
    labels = [torch.arange(3).repeat_interleave(count).expand(slots, -1) for count in (2, 3)]
    batch = EpisodeBatch(
        step=0,
        slots=list(range(slots)),
        support_images=images[0],
        support_labels=labels[0],
        query_images=images[1],
        query_labels=labels[1],
    )
    return learner, params, batch


@pytest.mark.usefixtures("smooth")
def test_the_meta_gradient_of_smooth_neurons_agrees_with_finite_differences() -> None:
    learner, params, batch = learner_and_episodes("maml", 1)
    ours = learner.slot_gradients(params, batch)[0][0]
    flat = flatten(params)
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(width: float) -> float:
        return learner.slot_gradients(unflatten(flat + width * direction, params), batch)[1].loss.item()

    width = 1e-8  # at 1e-6 the third derivative still shows
    assert (ours @ direction).item() == pytest.approx((loss(width) - loss(-width)) / (2 * width), rel=1e-7)


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "reptile"])
def test_spiking_tasks_batched_by_vmap_are_a_loop(name: str) -> None:
    loop, vmap = (learner_and_episodes(name, 3, task_batching=batching) for batching in ("loop", "vmap"))
    gradients = [learner.slot_gradients(params, batch)[0] for learner, params, batch in (loop, vmap)]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_features_are_rates() -> None:
    model = build_model("spiking_conv4", (1, 28, 28), 5, steps=4)
    features = model.features(torch.randn(6, 1, 28, 28))
    assert features.shape == (6, 32)
    assert ((features >= 0) & (features <= 1)).all()
    # The last 3×3 map is pooled to the mean of 2×2 spikes, then averaged over 4 steps.
    assert torch.equal(features * 16, (features * 16).round())
