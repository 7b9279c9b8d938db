"""The meta-gradient is the derivative of the query loss after the inner steps: against finite differences and explicit Hessians."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners import inner
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, flatten, initial_params, unflatten, weights_sha256
from distmeta.models import build_model

WAY, SHOT, QUERIES = 3, 2, 2


def conv4(downsample: str = "stride") -> nn.Module:
    return build_model("conv4", way=WAY, channels=1, image_size=16, filters=4, downsample=downsample).double()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 4), nn.Tanh(), nn.Linear(4, WAY)).double()


def batch(slots: int, seed: int = 0) -> EpisodeBatch:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(slots, WAY * (SHOT + QUERIES), 1, 16, 16, generator=random, dtype=torch.float64)
    labels = torch.arange(WAY).expand(slots, WAY)
    support, queries = images[:, : WAY * SHOT], images[:, WAY * SHOT :]
    return EpisodeBatch(0, list(range(slots)), support, labels.repeat_interleave(SHOT, 1), queries, labels.repeat_interleave(QUERIES, 1))


def query_loss(learner: MAML, theta: Params, episodes: EpisodeBatch, slot: int) -> float:
    fast_weights = inner.adapt(
        learner.model, theta, episodes.support_images[slot], episodes.support_labels[slot], learner.inner_lr, learner.inner_steps, False
    )
    with torch.no_grad():
        logits = functional_call(learner.model, fast_weights, (episodes.query_images[slot],))
        return cross_entropy(logits, episodes.query_labels[slot]).item()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("downsample", ["stride", "max-pool"])
def test_meta_gradient_against_finite_differences(steps: int, downsample: str) -> None:
    """Conv-4 with batch norm, in float64, central differences along single parameters and random directions of every tensor."""
    model = conv4(downsample)
    learner = MAML(model, inner_lr=0.1, inner_steps=steps, inner_steps_eval=steps)
    theta, episodes = initial_params(model, 1), batch(1)
    gradient = unflatten(learner.slot_gradients(theta, episodes)[0][0], theta)
    random = torch.Generator().manual_seed(3)
    width = 1e-6
    for name, value in theta.items():
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        direction /= direction.norm()
        up, down = (query_loss(learner, theta | {name: value + sign * width * direction}, episodes, 0) for sign in (1, -1))
        assert (up - down) / (2 * width) == pytest.approx((gradient[name] * direction).sum().item(), rel=2e-5, abs=2e-8), name


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_meta_gradient_against_explicit_hessians(steps: int) -> None:
    """(I - αH₀)(I - αH₁)…(I - αH₍ₖ₋₁₎) ∇L_query(φₖ), with Hessians written out."""
    model, alpha = mlp(), 0.3
    theta, episodes = initial_params(model, 2), batch(1)
    support, labels, queries, query_labels = (part[0] for part in episodes[2:])

    def loss(vector: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, unflatten(vector, theta), (images,)), targets)

    phi = flatten(theta)
    hessians = []
    for _ in range(steps):
        hessians.append(hessian(loss)(phi, support, labels))
        phi = phi - alpha * torch.func.grad(loss)(phi, support, labels)
    expected = torch.func.grad(loss)(phi, queries, query_labels)
    for h in reversed(hessians):
        expected = expected - alpha * h @ expected
    ours, _ = MAML(model, alpha, steps, steps).slot_gradients(theta, episodes)
    torch.testing.assert_close(ours[0], expected, rtol=1e-9, atol=1e-12)


def test_a_slots_bits_do_not_depend_on_its_neighbours() -> None:
    model = build_model("conv4", way=WAY, channels=1, image_size=16, filters=8)
    learner, theta = MAML(model, 0.1, 2, 2), initial_params(model, 0)
    episodes = batch(4)
    episodes = EpisodeBatch(0, episodes.slots, *(t.float() if t.is_floating_point() else t for t in episodes[2:]))
    together, metrics = learner.slot_gradients(theta, episodes)
    for order in ([2], [3, 1], [1, 0, 3]):
        subset = EpisodeBatch(0, order, *(t[order] for t in episodes[2:]))
        gradients, own = learner.slot_gradients(theta, subset)
        assert torch.equal(gradients, together[order])
        assert torch.equal(own.loss, metrics.loss[order])


def test_metrics_count_what_the_adapted_network_gets_right() -> None:
    model = conv4()
    learner, theta, episodes = MAML(model, 0.1, 1, 1), initial_params(model, 0), batch(3)
    _, metrics = learner.slot_gradients(theta, episodes)
    for slot in range(3):
        assert metrics.loss[slot].item() == pytest.approx(query_loss(learner, theta, episodes, slot))
    assert metrics.total.tolist() == [WAY * QUERIES] * 3
    assert ((metrics.correct >= 0) & (metrics.correct <= metrics.total)).all()


def test_inductive_prediction_does_not_depend_on_company() -> None:
    """Law 8: alone, shuffled and in chunks a query gets the same logits; transductive ones do depend, so the test can fail."""
    model = conv4()
    learner, theta, episodes = MAML(model, 0.1, 2, 2), initial_params(model, 0), batch(1)
    adapted = learner.adapt(theta, episodes.support_images[0], episodes.support_labels[0])
    queries = episodes.query_images[0]
    together = learner.predict(adapted, queries)
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
    shuffled = learner.predict(adapted, queries[order])
    torch.testing.assert_close(shuffled.inductive, together.inductive[order], rtol=0, atol=1e-12)
    for i in range(len(queries)):
        alone = learner.predict(adapted, queries[i : i + 1])
        torch.testing.assert_close(alone.inductive, together.inductive[i : i + 1], rtol=0, atol=1e-12)
        assert not torch.allclose(alone.transductive, together.transductive[i : i + 1], atol=1e-3)


def test_inductive_statistics_are_the_support_sets() -> None:
    """On the support set itself, support statistics and batch statistics are the same thing."""
    model = conv4()
    learner, theta, episodes = MAML(model, 0.1, 2, 2), initial_params(model, 0), batch(1)
    support = episodes.support_images[0]
    both = learner.predict(learner.adapt(theta, support, episodes.support_labels[0]), support)
    torch.testing.assert_close(both.inductive, both.transductive, rtol=1e-9, atol=1e-9)


def test_permuting_labels_and_head_rows_permutes_the_gradient() -> None:
    model = conv4()
    learner, theta, episodes = MAML(model, 0.1, 2, 2), initial_params(model, 0), batch(2)
    order = torch.tensor([2, 0, 1])
    renamed = episodes._replace(support_labels=order[episodes.support_labels], query_labels=order[episodes.query_labels])

    def permuted(params: Params) -> Params:
        inverse = order.argsort()
        return params | {name: params[name][inverse] for name in ("head.weight", "head.bias")}

    plain = [unflatten(g, theta) for g in learner.slot_gradients(theta, episodes)[0]]
    turned = [unflatten(g, theta) for g in learner.slot_gradients(permuted(theta), renamed)[0]]
    for a, b in zip(plain, turned, strict=True):
        torch.testing.assert_close(flatten(permuted(a)), flatten(b), rtol=1e-8, atol=1e-10)


def test_initial_params_come_from_the_seed_alone() -> None:
    model, other = conv4(), conv4()
    first = weights_sha256(initial_params(model, 5))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert weights_sha256(initial_params(other, 5)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(initial_params(model, 6)) != first
