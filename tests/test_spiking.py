"""Spiking neurons: their spikes, their derivatives, their rates, the network built of them, and whole runs of it."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from torch import Tensor

from distmeta.assembly.run import Run
from distmeta.config import Config, validate
from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners import build_learner
from distmeta.learners.params import Params, flatten, unflatten
from distmeta.models import build_model
from distmeta.models.spiking import LeakyIntegrateAndFire, arctangent, spike
from distmeta.registry.versions import load_model
from distmeta.scale.progress import RunDisplay
from distmeta.scale.run import run
from distmeta.training.run_folder import RunFolder
from distmeta.training.spike_rates import spike_rates, warning


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


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("steps", (0, 2.5)),
        ("beta", (-0.1, 1.1, math.nan, math.inf)),
        ("threshold", (0.0, -1.0, math.nan, math.inf)),
        ("surrogate_scale", (0.0, -1.0, math.nan, math.inf)),
    ],
)
def test_settings_that_no_neuron_has_are_refused(key: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"model.{key}=.*\nfix model.{key}"):
            build_model("spiking_conv4", (1, 16, 16), 5, **{key: value})


def test_features_are_rates() -> None:
    model = build_model("spiking_conv4", (1, 28, 28), 5, steps=4)
    features = model.features(torch.randn(6, 1, 28, 28))
    assert features.shape == (6, 32)
    assert ((features >= 0) & (features <= 1)).all()
    # The last 3×3 map is pooled to the mean of 2×2 spikes, then averaged over 4 steps.
    assert torch.equal(features * 16, (features * 16).round())


# Rates


def config(folder: Path, packed: Path, workers: int = 1, **model: Any) -> Config:
    content = {
        "run_folder": str(folder),
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"queries": 3, "episodes": 12, "val_episodes": 12}},
        "model": {"name": "spiking_conv4", "filters": 4, "steps": 3} | model,
        "learner": {"name": "maml", "inner_lr": 0.2, "inner_steps": 1},
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 5},
        "train": {"workers": workers, "cpus_per_worker": 0.5, "checkpoint_every": 4, "validate_every": 2, "device": "cpu"},
        "tracking": {"uri": f"sqlite:///{folder.parent / 'mlflow.db'}", "model": "spikes"},
    }
    return validate(content, "test")


def test_rates_are_means_over_adapted_episodes(packed: Path, tmp_path: Path) -> None:
    this = Run.of(config(tmp_path / "run", packed))
    params, stream = this.start(), this.domain.evaluation("val")
    each = []
    for number in range(10):
        (episode,) = stream.evaluation([number])
        assert isinstance(episode, EpisodeBatch)
        spikes: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _module, _given, found, name=name, into=spikes: into.update({name: found}))
            for name, module in this.learner.model.named_modules()
            if isinstance(module, LeakyIntegrateAndFire)
        ]
        this.learner.predict(this.learner.adapt(params, episode), episode.query_images[0])
        for hook in hooks:
            hook.remove()
        each.append({name: found.mean().item() for name, found in spikes.items()})
    rates = spike_rates(this.domain.metric, this.learner, params, stream)
    assert list(rates) == [f"blocks.{number}.neurons" for number in range(4)]
    for name, rate in rates.items():
        assert rate == pytest.approx(sum(one[name] for one in each) / 10)
        assert 0 < rate < 1


def test_a_network_without_spiking_neurons_has_no_rates(packed: Path, tmp_path: Path) -> None:
    made = config(tmp_path / "run", packed).model_dump(exclude_none=True) | {"model": {"name": "conv4", "filters": 4}}
    this = Run.of(validate(made, "test"))
    assert spike_rates(this.domain.metric, this.learner, this.start(), this.domain.evaluation("val")) == {}


def test_silent_and_saturated_layers_are_warned_of() -> None:
    assert warning({"a": 0.02, "b": 0.5}) is None
    silent, remedy = (warning({"a": 0.004, "b": 0.3}) or "").splitlines()
    assert silent == "silent layers: a fires in 0.4 % of time steps"
    assert remedy == "lower model.threshold, or raise model.beta"
    both = (warning({"a": 0.0, "b": 0.6, "c": 0.7}) or "").splitlines()
    assert both[2] == "saturated layers: b fires in 60.0 % of time steps, c fires in 70.0 % of time steps"


def test_a_warning_is_said_whenever_it_changes() -> None:
    terminal, status = io.StringIO(), {"phase": "training", "step": 1}
    with RunDisplay(terminal, 9) as display:
        for found in (None, "silent", "silent", "saturated", None, None):
            display.show(status | {"warning": found})
    said = [line for line in terminal.getvalue().splitlines() if not line.startswith("training")]
    assert said == ["silent", "saturated", "the last warning no longer applies"]


def test_the_remedies_for_silent_neurons_work() -> None:
    images, rates = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), {}
    cases: dict[str, dict[str, Any]] = {"silent": {}, "threshold": {"threshold": 0.5}, "beta": {"beta": 1.0}}
    for name, settings in cases.items():
        neurons: dict[str, Any] = {"threshold": 3.0, "beta": 0.1, "steps": 8} | settings
        model: Any = build_model("spiking_conv4", (1, 16, 16), 3, filters=4, seed=1, **neurons)
        model(images)
        rates[name] = model.blocks[0].neurons.spike_rate.item()
    assert rates["silent"] < 0.02 < min(rates["threshold"], rates["beta"])


def test_any_number_of_workers_ends_in_the_same_weights_and_rates(packed: Path, tmp_path: Path, address: str) -> None:
    """A threshold that nothing reaches is warned of; rates stand in the records and in MLflow; the model is loaded and predicts."""
    results = [run(config(tmp_path / f"run-{workers}", packed, workers, threshold=50.0), address=address) for workers in (1, 2, 3)]
    assert len({result["weights_sha256"] for result in results}) == 1
    kept = [[record.get("spike_rate") for record in RunFolder(result["run_folder"]).metrics.read()] for result in results]
    assert kept[0] == kept[1] == kept[2]
    assert [rates is not None for rates in kept[0]] == [False, True, False, True]
    assert kept[0][-1] == {f"blocks.{number}.neurons": 0.0 for number in range(4)}
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    history = MlflowClient(uri).get_metric_history(results[0]["run_id"], "spike_rate/blocks/0/neurons")
    assert [(point.step, point.value) for point in history] == [(2, 0.0), (4, 0.0)]
    model = load_model(uri, results[0]["model"])
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert model.adapt(images, ["a", "b", "c"]).predict(images).sum(1).tolist() == pytest.approx([1.0] * 3)
