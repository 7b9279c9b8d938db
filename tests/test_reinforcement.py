"""Reinforcement learning as a domain: the same learners over a policy's objective, its metric, its runs and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distmeta.assembly.reinforcement import Reinforcement
from distmeta.assembly.run import Run
from distmeta.config import Config, validate
from distmeta.envs.environment import Step
from distmeta.envs.navigation import Navigation
from distmeta.envs.stream import TaskBatch
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward, Network
from distmeta.learners.params import Params, flatten, unflatten
from distmeta.learners.policy import Gaussian
from distmeta.learners.policy_gradient import PolicyGradient
from distmeta.learners.trajectories import Trajectories, decay_matrix
from distmeta.models import build_model
from distmeta.training.evaluate import evaluate

ADAPTING = sorted(name for name, kind in LEARNERS.items() if issubclass(kind, FineTuning))
ENVIRONMENTS: dict[str, dict[str, int]] = {"navigation": {"horizon": 8}, "grid": {"horizon": 6, "side": 3}}


def config(run_folder: Path | str = "unused", **sections: dict[str, Any]) -> Config:
    """A small run in 2D navigation."""
    content: dict[str, Any] = {
        "run_folder": str(run_folder),
        "data": {
            "domain": "reinforcement",
            "shot": 4,
            "settings": {"environment": "navigation", "options": {"horizon": 8}},
            "eval": {"shot": 5, "episodes": 7, "val_episodes": 3},
        },
        "model": {"name": "mlp", "norm": "none", "widths": [8]},
        "learner": {"name": "maml", "inner_lr": 0.3, "inner_steps": 1, "inner_steps_eval": 2, "tasks_per_chunk": 2},
        "outer": {"lr": 0.01, "steps": 6, "meta_batch_size": 3},
        "train": {"device": "cpu", "cpus_per_worker": 0.5, "checkpoint_every": 2, "validate_every": 3},
    }
    for section, keys in sections.items():
        content[section] = content.get(section, {}) | keys
    return validate(content, "test")


def made(**sections: dict[str, Any]) -> tuple[Reinforcement, FineTuning, Params]:
    """Domain, learner and initial meta_params, in float64."""
    from_config = config(**sections)
    run = Run.of(from_config, dtype=torch.float64)
    domain, learner = run.domain, run.learner
    assert isinstance(domain, Reinforcement)
    assert isinstance(learner, FineTuning)
    return domain, learner, run.start()


def batch(domain: Reinforcement, slots: list[int]) -> TaskBatch:
    found = next(domain.training(slots, 0)).like(torch.zeros((), dtype=torch.float64))
    assert isinstance(found, TaskBatch)
    return found


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
@pytest.mark.parametrize("name", ADAPTING)
def test_a_slots_bits_do_not_depend_on_its_neighbours(name: str, environment: str) -> None:
    settings = {"environment": environment, "options": ENVIRONMENTS[environment]}
    data = {"domain": "reinforcement", "shot": 4, "settings": settings}
    domain, learner, params = made(data=data, learner={"name": name})
    together, metrics = learner.slot_gradients(params, batch(domain, [0, 1, 2]))
    alone, alone_metrics = learner.slot_gradients(params, batch(domain, [2]))
    assert torch.equal(together[2], alone[0])
    assert torch.equal(metrics.score[2], alone_metrics.score[0])
    assert together.isfinite().all()
    assert together.abs().amax(1).min() > 0


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_both_engines_find_the_same_meta_gradient(decay: float) -> None:
    """checkpointed acts again on its way back; the same noise gives the same trajectories."""
    data = {"domain": "reinforcement", "shot": 4, "settings": {"options": {"horizon": 8}, "surrogate_decay": decay}}
    found = []
    for gradient in ("unrolled", "checkpointed"):
        domain, learner, params = made(data=data, learner={"name": "maml", "inner_lr": 0.3, "inner_steps": 2, "gradient": gradient})
        found.append(learner.slot_gradients(params, batch(domain, [0, 1]))[0])
    torch.testing.assert_close(*found)


def test_without_second_derivatives_maml_is_fomaml_and_with_them_it_is_not() -> None:
    found = {}
    for name in ("maml", "fomaml"):
        for rate in (1e-12, 0.3):
            domain, learner, params = made(learner={"name": name, "inner_lr": rate, "inner_steps": 1})
            found[name, rate] = learner.slot_gradients(params, batch(domain, [0]))[0]
    torch.testing.assert_close(found["maml", 1e-12], found["fomaml", 1e-12])
    assert not torch.allclose(found["maml", 0.3], found["fomaml", 0.3])


def test_inner_lr_decay_multiplies_every_inner_step_but_the_first() -> None:
    domain, decayed, params = made(learner={"name": "maml", "inner_lr": 0.3, "inner_lr_decay": 0.5, "inner_steps_eval": 3})
    episode = next(domain.evaluation("val").evaluation([0])).like(next(iter(params.values())))
    before, first, second, _ = decayed.adaptation(params, episode)
    forward = decayed.forward()
    for start, end, rate in ((before, first, 0.3), (first, second, 0.15)):
        step = 0 if rate == 0.3 else 1
        leaves = {name: value.detach().requires_grad_() for name, value in start.items()}
        cost = domain.objective.support(Network(forward, leaves), episode, step)
        gradients = torch.autograd.grad(cost.losses.sum(), list(leaves.values()))
        for (name, value), gradient in zip(start.items(), gradients, strict=True):
            torch.testing.assert_close(end[name], value - rate * gradient)


def test_a_tasks_score_does_not_depend_on_which_others_are_scored() -> None:
    domain, learner, params = made()
    stream = domain.evaluation("test")
    everything = evaluate(domain.metric, learner, params, stream, 7, "none")
    (episode,) = stream.evaluation([4])
    alone = domain.metric.score(learner, params, episode.like(next(iter(params.values()))))
    assert torch.equal(everything.by_episode[4], alone)
    assert everything.measurement.columns == ["0", "1", "2"]
    assert everything.measurement.more_is_better
    played = domain.objective.trajectories(Network(learner.forward(), params), episode.like(next(iter(params.values()))), 0)
    assert played.returns.mean().item() == pytest.approx(alone[0].item(), rel=1e-9)


def test_a_policy_that_is_not_finite_is_worse_than_any_other() -> None:
    domain, learner, params = made()
    good = evaluate(domain.metric, learner, params, domain.evaluation("val"), 3, "none")
    broken = params | {"log_std": torch.full_like(params["log_std"], torch.nan)}
    assert good.score < 0
    assert evaluate(domain.metric, learner, broken, domain.evaluation("val"), 3, "none").score == float("-inf")


def begun(from_config: Config) -> None:
    """What a run does before it starts workers."""
    run = Run.of(from_config)
    run.domain.check()
    assert run.learner


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"data": {"domain": "reinforcement", "shot": 1}}, r"data.shot=1: a baseline needs more"),
        ({"data": {"domain": "reinforcement", "settings": {"options": {"horizon": 0}}}}, r"horizon=0"),
        ({"data": {"domain": "reinforcement", "settings": {"environment": "chess"}}}, r"environment 'chess' does not exist"),
        ({"data": {"domain": "reinforcement", "settings": {"discout": 1}}}, r"data.settings.discout"),
        ({"data": {"domain": "reinforcement", "shot": 4, "class_rotations": True}}, r"has no images"),
        ({"model": {"name": "mlp", "norm": "batch"}}, r"is batch normalisation"),
        ({"learner": {"name": "protonet"}}, r"protonet classifies"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        begun(config(**sections))


def test_a_task_is_described_by_its_fields() -> None:
    domain, _, _ = made()
    x, y = batch(domain, [1]).tasks[0].tolist()
    assert domain.describe(0, 1) == f"navigation, goal_x={x:.3f}, goal_y={y:.3f}"


class Endless(Navigation):
    """Nobody arrives."""

    def step(self, tasks: Tensor, state: Tensor, actions: Tensor) -> Step:
        found = super().step(tasks, state, actions)
        return found._replace(terminated=torch.zeros_like(found.terminated))


class FixedBaseline(PolicyGradient):
    """Advantages are rewards to go beyond a fixed course, neither fitted nor normalised: the update is a plain function of trajectories."""

    course: Tensor

    def advantages(self, trajectories: Trajectories) -> Tensor:
        return trajectories.rewards @ decay_matrix(1.0, trajectories.rewards).T - self.course


def test_dice_against_finite_differences_of_the_return_after_adaptation() -> None:
    """d/dθ of the expected return after one step on 200 trajectories, by central differences with common random numbers.

    At this inner_lr the second-order term is small; that it is right is the law of the exact Hessian in test_policy_gradient.py.
    """
    horizon, trajectories, replicates = 10, 200, 10
    torch.manual_seed(3)
    environment = Endless(horizon=horizon)
    objective = FixedBaseline(environment, Gaussian(environment.actions, log_std=-0.5), surrogate_decay=1.0)
    objective.course = torch.zeros(horizon, dtype=torch.float64)
    network = build_model("mlp", (2,), 2, "none", widths=[6], activation="tanh").double()
    learner = LEARNERS["maml"](network, objective=objective, inner_lr=0.1, inner_steps=1, tasks_per_chunk=replicates)
    theta = learner.initial_params()
    random = torch.Generator().manual_seed(0)

    def drawn(count: int, tasks: int) -> TaskBatch:
        noise = torch.randn(tasks, 2, count, horizon, 2, generator=random, dtype=torch.float64)
        goals = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(tasks, 2)
        return TaskBatch(step=0, slots=list(range(tasks)), tasks=goals, starts=torch.zeros(tasks, 2, count, 2), noise=noise)

    many = objective.trajectories(Network(learner.forward(), theta), drawn(20000, 1), 0)
    objective.course = (many.rewards @ decay_matrix(1.0, many.rewards).T).mean((0, 1))

    def after(vector: Tensor, tasks: TaskBatch) -> float:
        assert isinstance(learner, FineTuning)
        params = {name: value.expand(len(tasks), *value.shape).clone() for name, value in unflatten(vector, theta).items()}
        forward = Forward(learner.model, batched=True)
        *_, adapted = learner.adaptations(forward, params, tasks)
        return objective.trajectories(Network(forward, adapted), tasks, 1).returns.mean().item()

    at, width = flatten(theta), 0.02
    tasks, truth = drawn(trajectories, replicates), torch.zeros_like(at)
    found = -learner.slot_gradients(theta, tasks)[0].mean(0)
    for place in range(len(at)):
        moved = torch.zeros_like(at)
        moved[place] = width
        truth[place] = (after(at + moved, tasks) - after(at - moved, tasks)) / (2 * width)
    assert torch.nn.functional.cosine_similarity(found, truth, dim=0).item() >= 0.99


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
def test_the_report_draws_the_paths_of_test_tasks(environment: str) -> None:
    settings = {"environment": environment, "options": ENVIRONMENTS[environment]}
    domain, learner, params = made(data={"domain": "reinforcement", "shot": 4, "settings": settings})
    (section,) = domain.sections(learner, params, params)
    assert section.title == "Paths"
    assert "a policy that knows the goals" in section.text
    assert section.plots[0].svg.count("after 1 step") == 1
    assert section.plots[0].svg.startswith("<svg")


def test_an_environment_that_is_no_plane_has_no_paths() -> None:
    settings = {"environment": "gymnasium", "options": {"id": "CartPole-v1", "horizon": 5}}
    domain, learner, params = made(data={"domain": "reinforcement", "shot": 4, "settings": settings})
    assert domain.sections(learner, params, params) == []
