"""Laws of environments and their streams, over the table of all environments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmeta.envs import ENVIRONMENTS, Grid, Navigation, build_environment
from distmeta.envs.environment import Continuous, Environment
from distmeta.envs.stream import TaskBatch, TaskStream, fingerprint
from distmeta.learners.trajectories import best_returns, play
from distmeta.seeds import generator

NAMES = sorted(name for name, kind in ENVIRONMENTS.items() if kind.tensor_program)


def first(stream: TaskStream, slots: list[int], step: int = 0) -> TaskBatch:
    return next(stream.training(slots, step))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_and_its_noise_depend_on_step_and_slot_alone(name: str) -> None:
    stream = TaskStream(build_environment(name), "train", 3, 2, seed=5)
    everything = first(stream, [0, 1, 2, 3], step=7)
    alone = first(TaskStream(build_environment(name), "train", 3, 2, seed=5), [2], step=7)
    for field in ("tasks", "starts", "noise"):
        assert torch.equal(getattr(everything, field)[2:3], getattr(alone, field))
    walked = stream.training([2], 6)
    next(walked)
    assert torch.equal(next(walked).noise, alone.noise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [{"split": "val"}, {"seed": 6}, {"step": 8}, {"slot": 1}])
def test_another_split_seed_step_or_slot_draws_other_noise(name: str, change: dict) -> None:
    def drawn(split: str = "train", seed: int = 5, step: int = 7, slot: int = 0) -> TaskBatch:
        return first(TaskStream(environment=build_environment(name), split=split, trajectories=3, phases=2, seed=seed), [slot], step)  # type: ignore[arg-type]

    assert not torch.equal(drawn().noise, drawn(**change).noise)


@pytest.mark.parametrize("name", NAMES)
@given(fewer=st.integers(1, 4), more=st.integers(0, 4), phases=st.integers(1, 3))
def test_more_trajectories_or_phases_leave_the_first_ones_alone(name: str, fewer: int, more: int, phases: int) -> None:
    few = first(TaskStream(environment=build_environment(name), split="test", trajectories=fewer, phases=phases, seed=0), [3])
    many = first(TaskStream(environment=build_environment(name), split="test", trajectories=fewer + more, phases=phases + 1, seed=0), [3])
    assert torch.equal(few.tasks, many.tasks)
    assert torch.equal(few.starts, many.starts[:, :phases, :fewer])
    assert torch.equal(few.noise, many.noise[:, :phases, :fewer])


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_tasks_do_not_depend_on_how_they_are_batched(name: str) -> None:
    stream = TaskStream(environment=build_environment(name), split="test", trajectories=2, phases=1, seed=0)
    (whole,) = stream.evaluation(range(5))
    parts = list(stream.evaluation(range(5), batch=2))
    assert [slot for part in parts for slot in part.slots] == whole.slots
    for field in ("tasks", "starts", "noise"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_names_the_task_that_it_gives(name: str) -> None:
    stream = TaskStream(environment=build_environment(name), split="train", trajectories=2, phases=1, seed=0)
    named = stream.described(4, 1)
    assert tuple(named) == stream.environment.task_fields
    assert list(named.values()) == first(stream, [1], 4).tasks[0].tolist()


def test_settings_that_change_trajectories_change_the_fingerprint() -> None:
    made: list[Environment] = [Navigation(), Navigation(horizon=50), Navigation(squared=True), Grid(), Grid(side=3), Grid(horizon=9)]
    assert len({fingerprint(environment) for environment in made}) == len(made)
    assert fingerprint(Navigation(horizon=100)) == fingerprint(Navigation())


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_that_an_environment_declares(name: str) -> None:
    environment = build_environment(name)
    batch = first(TaskStream(environment=environment, split="train", trajectories=3, phases=1, seed=0), [0, 1])
    state = environment.start(batch.tasks, batch.starts[:, 0])
    assert environment.observe(state).shape == (2, 3, environment.observation_size)
    continuous = isinstance(environment.actions, Continuous)
    actions = torch.zeros(2, 3, environment.actions.size) if continuous else torch.zeros(2, 3, dtype=torch.int64)  # type: ignore[union-attr]
    step = environment.step(batch.tasks, state, actions)
    assert environment.observe(step.state).shape == (2, 3, environment.observation_size)
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == (2, 3)
    assert step.terminated.dtype == step.truncated.dtype == torch.bool


@given(x=st.floats(-3, 3), y=st.floats(-3, 3))
def test_navigation_moves_by_a_tenth_of_the_clipped_action_and_pays_the_distance(x: float, y: float) -> None:
    goal = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    start, action = torch.tensor([[[0.1, 0.2]]], dtype=torch.float64), torch.tensor([[[x, y]]], dtype=torch.float64)
    position = [0.1 + 0.1 * min(max(x, -1), 1), 0.2 + 0.1 * min(max(y, -1), 1)]
    square = (position[0] - 0.3) ** 2 + (position[1] + 0.2) ** 2
    plain, squared = (Navigation(squared=squared).step(goal, start, action) for squared in (False, True))
    assert plain.state[0, 0].tolist() == pytest.approx(position)
    assert plain.reward.item() == pytest.approx(-(square**0.5))
    assert squared.reward.item() == pytest.approx(-square)


@pytest.mark.parametrize(("offset", "arrived"), [((0.009, -0.009), True), ((0.011, 0.0), False), ((0.0, 0.011), False)])
def test_navigation_ends_when_both_coordinates_are_within_a_hundredth(offset: tuple[float, float], arrived: bool) -> None:
    goal = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    step = Navigation().step(goal, torch.tensor([[offset]], dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.float64))
    assert step.terminated.item() is arrived


@pytest.mark.parametrize("side", [2, 3, 5])
def test_grid_goals_are_every_cell_but_the_first(side: int) -> None:
    grid = Grid(side=side)
    goals = {tuple(grid.draw(generator(0, "test", i)).tolist()) for i in range(40 * side * side)}
    start = tuple(grid.draw_starts(generator(0, "test"), 1)[0].tolist())
    assert goals == {(float(x), float(y)) for x in range(side) for y in range(side)} - {start}


@given(seed=st.integers(0, 99))
def test_a_walker_that_goes_straight_arrives_in_as_many_moves_as_the_grid_says(seed: int) -> None:
    grid = Grid()
    task = torch.from_numpy(grid.draw(generator(seed, "task")))[None]
    state = grid.start(task, torch.from_numpy(grid.draw_starts(generator(0, "start"), 1))[None])
    moves = [1 if task[0, 0] > 2 else 2] * int(abs(task[0, 0] - 2)) + [3 if task[0, 1] > 2 else 4] * int(abs(task[0, 1] - 2))
    for left, move in zip(range(len(moves) - 1, -1, -1), moves, strict=True):
        step = grid.step(task, state, torch.tensor([[move]]))
        state = step.state
        assert step.reward.item() == pytest.approx(-left / 5)
        assert step.terminated.item() is (left == 0)


def test_walls_stop_a_walker_and_its_observation_is_its_cell() -> None:
    grid, corner = Grid(side=3), torch.zeros(1, 1, 2)
    goal = torch.tensor([[2.0, 2.0]])
    assert torch.equal(grid.step(goal, corner, torch.tensor([[2]])).state, corner)
    assert torch.equal(grid.step(goal, corner, torch.tensor([[4]])).state, corner)
    beside = grid.step(goal, corner, torch.tensor([[3]])).state
    assert grid.observe(beside)[0, 0].nonzero().flatten().tolist() == [3]
    assert np.count_nonzero(grid.observe(corner)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_nobody_returns_more_than_who_knows_the_task(name: str) -> None:
    """Against random policies of several widths, on the same tasks; and it arrives."""
    environment = build_environment(name)
    batch = first(TaskStream(environment=environment, split="test", trajectories=30, phases=1, seed=0), list(range(10)))
    best = best_returns(environment, batch.tasks, batch.starts[:, 0])
    assert best is not None
    random = torch.Generator().manual_seed(0)

    def wander(time: int, state: torch.Tensor, observations: torch.Tensor) -> torch.Tensor:
        best_actions = environment.best_actions(batch.tasks, state)
        assert best_actions is not None
        if isinstance(environment.actions, Continuous):
            return best_actions + 0.3 * torch.randn(best_actions.shape, generator=random, dtype=torch.float64)
        other = torch.randint(environment.actions.number, best_actions.shape, generator=random)  # type: ignore[union-attr]
        return torch.where(torch.rand(best_actions.shape, generator=random) < 0.8, best_actions, other)

    wandering = play(environment, batch.tasks, batch.starts[:, 0], wander)
    assert (best >= wandering.returns - 1e-9).all()
    assert (best > wandering.returns).any()


@pytest.mark.parametrize("name", NAMES)
def test_places_are_where_steps_and_goals_are(name: str) -> None:
    environment = build_environment(name)
    batch = first(TaskStream(environment=environment, split="test", trajectories=2, phases=1, seed=0), [0, 1])

    def knowing(time: int, state: torch.Tensor, observations: torch.Tensor) -> torch.Tensor:
        actions = environment.best_actions(batch.tasks, state)
        assert actions is not None
        return actions

    played = play(environment, batch.tasks, batch.starts[:, 0], knowing)
    places = environment.places(played.observations)
    assert places is not None
    ends = played.lived.sum(-1).long()[..., None, None].expand(-1, -1, 1, 2)
    assert ((places.gather(2, ends).squeeze(2) - batch.tasks[:, None]).abs() < 0.01).all()
