"""ProMP and TRPO: held trajectories, Fisher-vector products against differences of the divergence, and steps that keep their bounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from test_loop import PLAN, Recorder
from test_reinforcement import batch, config, made
from torch import Tensor

from distmeta.assembly.run import Run
from distmeta.errors import ConfigError, DataError
from distmeta.learners.held import HeldBatch
from distmeta.learners.learner import SlotMetrics
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, flatten, unflatten, weights_sha256
from distmeta.learners.trajectories import ratio_loss, surrogate_loss
from distmeta.learners.trust_region import Curvature, hold, loss_and_divergence
from distmeta.training.evaluate import block
from distmeta.training.loop import Progress, train
from distmeta.training.reduce import Request
from distmeta.training.trpo import conjugate_gradients

SETTINGS: dict[str, dict[str, Any]] = {"navigation": {"horizon": 8}, "grid": {"horizon": 6, "side": 3}}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def held(environment: str, learner_name: str, steps: int = 2, batching: str = "vmap", **outer: Any) -> tuple[MAML, Params, HeldBatch, Any]:
    """A learner of three tasks, its meta_params, what they played, and the tasks themselves."""
    domain, learner, params = made(
        data={"domain": "reinforcement", "shot": 4, "settings": {"environment": environment, "options": SETTINGS[environment]}},
        learner={"name": learner_name, "inner_lr": 0.3, "inner_steps": steps, "tasks_per_chunk": 2, "task_batching": batching},
        outer=outer,
    )
    assert isinstance(learner, MAML)
    tasks = batch(domain, [0, 1, 2])
    return learner, params, hold(learner, params, tasks), tasks


@pytest.mark.parametrize("environment", SETTINGS)
@pytest.mark.parametrize("learner_name", ["maml", "fomaml", "anil", "meta-sgd", "maml++"])
def test_the_first_meta_gradient_of_held_trajectories_is_that_of_trajectories_drawn_anew(environment: str, learner_name: str) -> None:
    learner, params, kept, tasks = held(environment, learner_name, update="promp")
    (ours, metrics), (theirs, plain) = (learner.slot_gradients(params, of) for of in (kept, tasks))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(metrics.score, plain.score)
    assert ours.any()


@pytest.mark.parametrize("environment", SETTINGS)
def test_tasks_computed_one_after_another_are_held_and_bent_alike(environment: str) -> None:
    (learner, params, together, _), (loop, _, single, _) = (held(environment, "maml", batching=batching) for batching in ("vmap", "loop"))
    for name in ("advantages", "log_probs", "outputs", "own"):
        torch.testing.assert_close(getattr(single, name), getattr(together, name))
    vector = random(2, len(flatten(params)))
    found = [
        torch.cat([part for part, _ in Curvature.of(of, params, kept).times(vector)]) for of, kept in ((learner, together), (loop, single))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("environment", SETTINGS)
def test_a_policy_is_no_distance_from_itself(environment: str) -> None:
    learner, params, kept, _ = held(environment, "maml")
    values = torch.cat([found for found, _ in loss_and_divergence(learner, params, kept)])
    assert values.shape == (3, 2)
    assert values.abs().max().item() < 1e-12  # advantages have mean 0


@pytest.mark.parametrize("environment", SETTINGS)
@pytest.mark.parametrize("learner_name", ["maml", "meta-sgd"])
def test_the_curvature_is_the_divergences_second_difference(environment: str, learner_name: str) -> None:
    """Also between two directions, where the divergence's second differences are a parallelogram's."""
    learner, params, kept, _ = held(environment, learner_name)
    curvature, origin = Curvature.of(learner, params, kept), flatten(params)
    one, other = (random(seed, len(origin)) / len(origin) ** 0.5 for seed in (0, 1))

    def divergence(vector: Tensor) -> Tensor:
        return torch.cat([found[:, 1] for found, _ in loss_and_divergence(learner, unflatten(origin + vector, params), kept)])

    def bend(direction: Tensor) -> Tensor:
        width = 1e-4
        return (divergence(width * direction) + divergence(-width * direction)) / width**2

    products = torch.cat([found for found, _ in curvature.times(one)])
    torch.testing.assert_close(products @ one, bend(one), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(products @ other, (bend(one + other) - bend(one - other)) / 4, rtol=1e-3, atol=1e-6)
    again = torch.cat([found for found, _ in curvature.times(one)])
    assert torch.equal(products, again)


def test_a_ratio_earns_nothing_beyond_its_bounds() -> None:
    ratios, worth = torch.tensor([0.5, 0.9, 1.1, 2.0] * 2), torch.tensor([1.0] * 4 + [-1.0] * 4)
    log_probs, old = ratios.log().view(1, 2, 4), torch.zeros(1, 2, 4)
    loss = ratio_loss(log_probs, worth.view(1, 2, 4), torch.ones(1, 2, 4), old, 0.3)
    gains = np.minimum(ratios.numpy() * worth.numpy(), np.clip(ratios.numpy(), 0.7, 1.3) * worth.numpy())
    assert loss.item() == pytest.approx(-gains.mean())
    plain = ratio_loss(log_probs, worth.view(1, 2, 4), torch.ones(1, 2, 4), old, None)
    assert plain.item() == pytest.approx(-(ratios * worth).mean().item())


@given(seed=st.integers(0, 99), decay=st.floats(0, 1))
def test_the_surrogate_of_held_actions_weighs_each_by_its_likelihood(seed: int, decay: float) -> None:
    """With λ = 1 by the likelihood of the whole trajectory up to it, less that of the trajectory before it."""
    log_probs, old, worth = (random(seed + shift, 1, 2, 5) for shift in (0, 100, 200))
    lived = torch.tensor([[[1.0] * 5, [1.0] * 3 + [0.0] * 2]], dtype=torch.float64)
    loss = surrogate_loss(log_probs, worth, lived, decay, old)
    by_hand = 0.0
    for row in range(2):
        reached = 0.0
        for time in range(5 if row == 0 else 3):
            change, before = (log_probs - old)[0, row, time].item(), decay * reached
            reached = before + change
            by_hand -= worth[0, row, time].item() * (np.exp(reached) - np.exp(before)) / 8
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


@given(seed=st.integers(0, 999), size=st.integers(1, 8))
def test_conjugate_gradients_solve(seed: int, size: int) -> None:
    root, target = random(seed, size, size), random(seed + 1000, size)
    matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
    found = conjugate_gradients(lambda vector: matrix @ vector, target)
    torch.testing.assert_close(matrix @ found, target, rtol=1e-4, atol=1e-4)


def trained(steps: int, hooks: Recorder, **sections: Any) -> tuple[Run, Params]:
    """Meta_params of a small run of so many steps, on one worker and without Ray."""
    run = Run.of(config(**sections), dtype=torch.float64)
    outer, progress = run.outer(), Progress()
    plan = PLAN._replace(steps=steps, validate_every=100, meta_batch_size=3, slots=[0, 1, 2])
    train(run.learner, outer, run.domain.training([0, 1, 2], 0), progress, plan, hooks)
    return run, outer.meta_params


def test_a_trpo_step_lowers_the_loss_within_its_divergence() -> None:
    hooks = Recorder()
    run, after = trained(1, hooks, outer={"update": "trpo", "max_divergence": 0.02, "meta_batch_size": 3})
    (record,), before = hooks.records, run.start()
    kept = hold(run.learner, before, batch(run.domain, [0, 1, 2]))  # type: ignore[arg-type]
    loss, divergence = torch.cat([found for found, _ in loss_and_divergence(run.learner, after, kept)]).mean(0).tolist()  # type: ignore[arg-type]
    assert loss < 0
    assert 0.002 < divergence <= 0.02
    assert record["divergence"] == pytest.approx(divergence)


def test_an_epoch_of_promp_is_a_gradient_step_and_more_go_further() -> None:
    sections = {"lr": 0.01, "meta_batch_size": 3}
    plain = trained(2, Recorder(), outer=sections)[1]
    once, often = (trained(2, Recorder(), outer=sections | {"update": "promp", "epochs": epochs})[1] for epochs in (1, 4))
    torch.testing.assert_close(flatten(once), flatten(plain))
    start = flatten(Run.of(config(), dtype=torch.float64).start())
    assert (flatten(often) - start).norm() > 1.5 * (flatten(once) - start).norm()


@pytest.mark.parametrize("update", ["promp", "trpo"])
def test_a_stop_request_acts_at_the_end_of_a_step_of_several_reductions(update: str) -> None:
    hooks = Recorder(asked={2: Request.STOP})
    trained(4, hooks, outer={"update": update, "meta_batch_size": 3})
    assert [checkpoint.step for checkpoint in hooks.checkpoints] == [2]


class Poisoned(Curvature):
    """Products whose second slot is not finite."""

    def times(self, vector: Tensor) -> Iterator[tuple[Tensor, SlotMetrics]]:
        for found, metrics in super().times(vector):
            found[-1, 0] = torch.nan
            yield found, metrics


def test_a_product_that_is_not_finite_skips_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.training.trpo.Curvature", Poisoned)
    hooks = Recorder()
    run, after = trained(2, hooks, outer={"update": "trpo", "meta_batch_size": 3})
    assert [record["bad_slot"] for record in hooks.records] == [1, 1]
    assert torch.equal(flatten(after), flatten(run.start()))


class Broken(Curvature):
    """Products that raise."""

    def times(self, vector: Tensor) -> Iterator[tuple[Tensor, SlotMetrics]]:
        raise DataError("the products are lost", "try again")


def test_a_failure_inside_conjugate_gradients_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.training.trpo.Curvature", Broken)
    with pytest.raises(DataError, match="the products are lost"):
        trained(1, Recorder(), outer={"update": "trpo", "meta_batch_size": 3})


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (
            {"learner": {"name": "reptile"}, "outer": {"update": "promp"}},
            r"outer.update=promp needs a meta-gradient through the inner loop",
        ),
        ({"learner": {"name": "transfer"}, "outer": {"update": "trpo"}}, r"outer.update=trpo needs a meta-gradient"),
        ({"data": {"domain": "regression", "functions": "sinusoid", "settings": {}}, "outer": {"update": "trpo"}}, r"is for policies"),
    ],
)
def test_updates_of_policies_are_refused_elsewhere(sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Run.of(config(**sections)).domain.check()


def weights_of(update: str, steps: int, rank: int, workers: int) -> str:
    """The weights after so many steps in 2D navigation, of this worker's slots of four; two slots stay with a worker of three."""
    run = Run.of(config(outer={"update": update, "meta_batch_size": 4}))
    slots = block(4, rank, workers)
    plan = PLAN._replace(steps=steps, validate_every=steps, meta_batch_size=4, slots=slots, rank=rank, workers=workers)
    outer = run.outer()
    train(run.learner, outer, run.domain.training(slots, 0), Progress(), plan, Recorder())
    return weights_sha256(run.learner.whole(outer.meta_params))


def one_of_three(rank: int, meeting: str, steps: int, expected: dict[str, str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
    for update, sha in expected.items():
        assert weights_of(update, steps, rank, 3) == sha, update
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_workers_have_the_bits_of_one_by_every_update(tmp_path: Path) -> None:
    steps = 4
    expected = {update: weights_of(update, steps, 0, 1) for update in ("gradient", "promp", "trpo")}
    assert len(set(expected.values())) == 3
    mp.spawn(one_of_three, (str(tmp_path / "meeting"), steps, expected), nprocs=3)
