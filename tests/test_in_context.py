"""Learning in context is held to the laws of all learners, for classes and for values, with a transformer and an LSTM."""

from typing import Any

import pytest
import torch

from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners import build_learner
from distmeta.learners.in_context import InContext, examples, sequences
from distmeta.learners.objective import CrossEntropy, Objective, SquaredError
from distmeta.learners.params import Params, weights_sha256
from distmeta.models import build_model

WAY, SHOT, QUERIES, INPUT = 3, 2, 4, (2, 3)
NETWORKS: dict[str, dict[str, Any]] = {"transformer": {"width": 8, "heads": 2, "depth": 1, "positions": False}, "lstm": {"width": 5}}
CASES = pytest.mark.parametrize(("network", "kind"), [(network, kind) for network in NETWORKS for kind in ("classes", "values")])


def made(network: str, kind: str, slots: int, seed: int = 1, **settings: Any) -> tuple[Any, Params, EpisodeBatch]:
    objective: Objective = CrossEntropy() if kind == "classes" else SquaredError()
    outputs = WAY if kind == "classes" else 1
    model = build_model(network, InContext.network_shape(INPUT, outputs), outputs, seed=seed, **NETWORKS[network]).double()
    learner = build_learner("in-context", model, objective=objective, **settings)
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(slots, WAY * (SHOT + QUERIES), *INPUT, generator=random, dtype=torch.float64)
    if kind == "classes":
        targets = torch.arange(WAY).repeat(SHOT + QUERIES).expand(slots, -1)
    else:
        targets = torch.randn(*inputs.shape[:2], 1, generator=random, dtype=torch.float64)
    support = WAY * SHOT
    batch = EpisodeBatch(
        step=0,
        slots=list(range(slots)),
        support_images=inputs[:, :support],
        support_labels=targets[:, :support],
        query_images=inputs[:, support:],
        query_labels=targets[:, support:],
    )
    return learner, learner.initial_params(), batch


def test_a_sequence_is_the_examples_and_one_query_without_its_target() -> None:
    inputs, labels, queries = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1, 0]]), torch.tensor([[[7.0], [8.0], [9.0]]])
    found = sequences(examples(inputs, labels, 2), queries)
    shown = [[1.0, 0.0, 1.0, 1.0], [2.0, 1.0, 0.0, 1.0]]
    assert found.tolist() == [[[*shown, [query, 0.0, 0.0, 0.0]] for query in (7.0, 8.0, 9.0)]]


@CASES
def test_the_gradient_agrees_with_finite_differences(network: str, kind: str) -> None:
    learner, theta, batch = made(network, kind, 1)
    gradient, width = learner.slot_gradients(theta, batch)[0][0], 1e-6
    parts = gradient.split([value.numel() for value in theta.values()])
    for part, (name, value) in zip(parts, theta.items(), strict=True):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        up, down = (learner.slot_gradients(theta | {name: value + s * width * direction}, batch)[1].loss.item() for s in (1, -1))
        assert (up - down) / (2 * width) == pytest.approx((part.view(value.shape) * direction).sum().item(), rel=1e-6, abs=1e-9), name


@CASES
def test_slots_in_chunks_are_slots_one_by_one_and_their_bits_do_not_depend_on_their_neighbours(network: str, kind: str) -> None:
    loop, theta, batch = made(network, kind, 5, task_batching="loop")
    vmap, _, _ = made(network, kind, 5, task_batching="vmap", tasks_per_chunk=2)
    torch.testing.assert_close(loop.slot_gradients(theta, batch)[0], vmap.slot_gradients(theta, batch)[0], rtol=1e-10, atol=1e-12)
    for learner in (loop, vmap):
        together = learner.slot_gradients(theta, batch)[0]
        alone = torch.cat([learner.slot_gradients(theta, batch.take([slot]))[0] for slot in range(5)])
        assert torch.equal(together, alone)


@CASES
def test_an_answer_does_not_depend_on_who_else_is_asked(network: str, kind: str) -> None:
    learner, theta, batch = made(network, kind, 1)
    adapted = learner.adapt(theta, batch)
    queries = batch.query_images[0]
    together = learner.predict(adapted, queries)
    assert torch.equal(together.transductive, together.inductive)
    alone = torch.cat([learner.predict(adapted, query[None]).inductive for query in queries])
    torch.testing.assert_close(together.inductive, alone, rtol=1e-12, atol=1e-12)


def test_without_positions_a_transformer_reads_the_support_set_as_a_set() -> None:
    learner, theta, batch = made("transformer", "classes", 1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    turned = EpisodeBatch(
        step=0,
        slots=[0],
        support_images=batch.support_images[:, order],
        support_labels=batch.support_labels[:, order],
        query_images=batch.query_images,
        query_labels=batch.query_labels,
    )
    answers = [learner.predict(learner.adapt(theta, episode), batch.query_images[0]).inductive for episode in (batch, turned)]
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)


def test_it_learns_what_its_examples_say() -> None:
    """y = a x with a new slope in every task: after a little training it knows much more with examples than the mean of all slopes does."""
    model = build_model("transformer", InContext.network_shape((1,), 1), 1, seed=0, width=16, positions=False)
    learner = build_learner("in-context", model, objective=SquaredError(), tasks_per_chunk=8)
    theta = {name: value.clone() for name, value in learner.initial_params().items()}
    optimizer = torch.optim.Adam(list(theta.values()), lr=3e-3)
    random, losses = torch.Generator().manual_seed(0), []
    for step in range(300):
        x, slopes = torch.randn(8, 12, 1, generator=random), torch.randn(8, 1, 1, generator=random)
        batch = EpisodeBatch(
            step=step,
            slots=list(range(8)),
            support_images=x[:, :6],
            support_labels=slopes * x[:, :6],
            query_images=x[:, 6:],
            query_labels=slopes * x[:, 6:],
        )
        gradients, metrics = learner.slot_gradients(theta, batch)
        parts = gradients.mean(0).split([value.numel() for value in theta.values()])
        for value, part in zip(theta.values(), parts, strict=True):
            value.grad = part.view(value.shape).clone()
        optimizer.step()
        losses.append(metrics.loss.mean().item())
    assert sum(losses[-50:]) / 50 < 0.3  # the variance of a x is 1


def test_it_starts_as_its_seed_says() -> None:
    first, again, other = (weights_sha256(made("lstm", "values", 1, seed=seed)[1]) for seed in (5, 5, 6))
    assert first == again != other


def test_a_network_that_reads_sequences_of_one_length_alone_is_refused() -> None:
    shape = InContext.network_shape(INPUT, WAY)
    inputs = torch.zeros(2, *shape)
    for name, settings in NETWORKS.items():
        build_learner("in-context", build_model(name, shape, WAY, seed=1, **settings)).check_network(inputs)
    learner = build_learner("in-context", build_model("mlp", shape, WAY, seed=1, norm="none"))
    with pytest.raises(ConfigError, match=r"reads sequences of any length: .*\nset model.name=transformer or lstm"):
        learner.check_network(inputs)


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = build_model("mlp", (7,), 1, "none", output_activation="sigmoid")
    with pytest.raises(ConfigError, match=r"learner in-context needs a linear head; head is Sequential\nchoose another network"):
        build_learner("in-context", model)
