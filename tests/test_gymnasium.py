"""Gymnasium environments: what fits is played like ours, what does not is refused with a reason."""

import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from constant_network import Constant

from distmeta.envs import ENVIRONMENTS, build_environment
from distmeta.envs.environment import Continuous, Discrete, Environment
from distmeta.envs.gymnasium import GymnasiumEnvironment
from distmeta.envs.stream import TaskStream, fingerprint
from distmeta.errors import ConfigError, DataError
from distmeta.learners.policy import policy_for
from distmeta.learners.trajectories import Trajectories, rollout

gymnasium = pytest.importorskip("gymnasium")
HERE = __name__


class Drift(gymnasium.Env):
    """A number that actions move; a task is the number to be at. Ends after `ends` steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    task_fields = ("target",)

    def __init__(self, ends: int = 1000, truncates: int = 1000) -> None:
        self.ends, self.truncates, self.target = ends, truncates, 0.0

    def draw_task(self, random: np.random.Generator) -> np.ndarray:
        return random.uniform(-1, 1, 1)

    def set_task(self, task: np.ndarray) -> None:
        self.target = float(task[0])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position, self.time = self.np_random.uniform(-0.1, 0.1), 0
        return np.array([self.position], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position, self.time = self.position + 0.1 * float(np.ravel(action)[0]), self.time + 1
        reward = -abs(self.position - self.target)
        return np.array([self.position], np.float32), reward, self.time >= self.ends, self.time >= self.truncates, {}


class Remembering(Drift):
    """Does not forget its last trajectory when it is reset."""

    memory = 0.0

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.memory += 1e-9
        observation, reward, *rest = super().step(action)
        return observation, reward + self.memory, *rest  # type: ignore[return-value]


class Broken(Drift):
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest  # type: ignore[return-value]


class Stuck(Drift):
    """Waits for an event that never comes, in step number `at`."""

    def __init__(self, at: int = 1, **ends: int) -> None:
        super().__init__(**ends)
        self.at = at

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.time + 1 == self.at:
            threading.Event().wait()
        return super().step(action)


class Slow(Drift):
    """Takes a while for each step."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        threading.Event().wait(0.05)
        return super().step(action)


class Failing(Drift):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        raise TimeoutError("no answer from the simulator")


class Seen(Drift):
    """Can be looked at: a picture is as bright as the position, in hundredths."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None, **ends: int) -> None:
        super().__init__(**ends)
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return np.full((4, 6, 3), 100 + round(100 * self.position), np.uint8)


class Worded(Drift):
    observation_space = gymnasium.spaces.Text(5)


class ManyHanded(Drift):
    action_space = gymnasium.spaces.MultiDiscrete([2, 2])


def made(name: str, horizon: int = 6, **options: Any) -> Environment:
    return build_environment("gymnasium", id=f"{HERE}.{name}", horizon=horizon, **options)


def played(environment: Environment, trajectories: int = 3, slots: tuple[int, ...] = (0, 1), bias: float = 0.0) -> Trajectories:
    """Trajectories of a policy that only makes noise around `bias`."""
    batch = next(TaskStream(environment=environment, split="train", trajectories=trajectories, phases=1, seed=0).training(slots)).like(
        torch.zeros((), dtype=torch.float64)
    )
    policy = policy_for(environment.actions)
    params = {name: value.double() for name, value in policy.own_params().items()}
    outputs = torch.full((len(slots), trajectories, policy.outputs), bias, dtype=torch.float64)
    return rollout(environment, policy, Constant(outputs, params), batch.tasks, batch.starts[:, 0], batch.noise[:, 0])  # type: ignore[arg-type]


def test_a_family_of_the_users_own_is_played_task_by_task() -> None:
    environment = made("Drift")
    assert environment.actions == Continuous(1)
    assert environment.task_fields == ("target",)
    environment.check()
    found = played(environment)
    batch = next(TaskStream(environment=environment, split="train", trajectories=3, phases=1, seed=0).training([0, 1]))
    assert found.observations.shape == (2, 3, 7, 1)
    expected = -(found.observations[:, :, 1:, 0] - batch.tasks.view(2, 1, 1)).abs()
    torch.testing.assert_close(found.rewards, expected, rtol=0, atol=1e-6)


def test_reused_instances_give_the_bits_of_new_ones() -> None:
    reused = made("Drift")
    first, again, fresh = played(reused), played(reused), played(made("Drift"))
    for one, two, three in zip(first, again, fresh, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_trajectory_has_the_same_bits_alone_and_among_others() -> None:
    alone, among = played(made("Drift"), slots=(1,)), played(made("Drift"), slots=(0, 1))
    for one, many in zip(alone, among, strict=True):
        assert torch.equal(one[0], many[1])


@pytest.mark.parametrize(("arguments", "lived", "bootstrapped"), [({"ends": 4}, 4, 0), ({"truncates": 4}, 4, 1), ({"truncates": 6}, 6, 0)])
def test_ends_and_cuts_are_told_apart(arguments: dict[str, int], lived: int, bootstrapped: int) -> None:
    """An environment's own time limit before the horizon bootstraps; the horizon itself does not."""
    found = played(made("Drift", arguments=arguments))
    assert (found.lived.sum(-1) == lived).all()
    assert (found.bootstrapped.sum(-1) == bootstrapped).all()
    assert not found.rewards[..., lived:].any()


def test_actions_are_clipped_to_the_environments_bounds() -> None:
    found = played(made("Drift"), bias=100.0)
    moved = found.observations[..., 1:, 0] - found.observations[..., :-1, 0]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=0, atol=1e-6)


def test_a_discrete_environment_by_its_registered_id() -> None:
    environment = build_environment("gymnasium", id="CartPole-v1", horizon=30)
    environment.check()
    assert environment.actions == Discrete(2)
    found = played(environment)
    assert torch.equal(found.returns, found.lived.sum(-1))
    assert (found.lived.sum(-1) < 30).any()


def test_an_environment_that_remembers_is_refused_unless_it_is_declared() -> None:
    with pytest.raises(ConfigError, match="is not deterministic"):
        made("Remembering").check()
    declared = made("Remembering", deterministic=False)
    declared.check()
    assert "deterministic=False" in declared.name


def test_another_version_of_gymnasium_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = made("Drift")
    before = fingerprint(environment)
    assert fingerprint(made("Drift")) == before
    monkeypatch.setattr("distmeta.envs.gymnasium.library_version", lambda library: "0.0.1")
    assert fingerprint(environment) != before


@pytest.mark.parametrize(("name", "reason"), [("Worded", "has observations Text"), ("ManyHanded", "has actions MultiDiscrete")])
def test_spaces_that_no_policy_fits_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        made(name)


def test_a_reward_that_is_not_a_number_names_the_environment() -> None:
    with pytest.raises(DataError, match=r"Broken returned an observation or reward that is not finite"):
        played(made("Broken"))


def test_an_environment_that_hangs_is_left_behind() -> None:
    with pytest.raises(DataError, match=r"Stuck did not return from reset or step within 0.1 s"):
        made("Stuck", step_timeout_s=0.1).check()
    late = made("Stuck", arguments={"at": 4}, deterministic=False, step_timeout_s=1)
    with pytest.raises(DataError, match=r"raise data.settings.options.step_timeout_s"):
        played(late)
    made("Drift").check()  # another thread serves the others


@pytest.mark.parametrize("name", [name for name, kind in ENVIRONMENTS.items() if issubclass(kind, GymnasiumEnvironment)])
def test_every_environment_of_gymnasiums_takes_a_time_limit(name: str) -> None:
    pytest.importorskip("mujoco")
    options = {"id": "CartPole-v1"} if name == "gymnasium" else {}
    environment = build_environment(name, horizon=2, step_timeout_s=90, **options)
    assert isinstance(environment, GymnasiumEnvironment)
    assert environment.step_timeout_s == 90
    for never in (0, -1, float("inf"), float("nan"), 1e9):
        with pytest.raises(ConfigError, match=rf"step_timeout_s={never}: .*\nchange step_timeout_s"):
            build_environment(name, step_timeout_s=never, **options)


def test_the_time_limit_is_a_steps_not_a_rollouts() -> None:
    slow = made("Slow", horizon=2, step_timeout_s=1.5)
    assert played(slow, trajectories=20).rewards.shape == (2, 20, 2)  # 80 steps of 0.05 s


def test_an_environment_that_fails_in_its_trial_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match=r"Failing fails within 20 steps: TimeoutError: no answer from the simulator"):
        made("Failing").check()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"id": "NoSuch-v1"}, "cannot be made"),
        ({"id": f"{HERE}.NoSuch"}, "cannot be imported"),
        ({"id": f"{HERE}.Drift", "horizon": 0}, "horizon=0"),
        ({"id": f"{HERE}.Drift", "speed": 3}, "has no option speed"),
        ({}, "needs the option id"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_reason(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_environment("gymnasium", **options)


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"pip install 'distmeta\[rl\]'"):
        build_environment("half-cheetah-direction")


@pytest.mark.parametrize(("name", "of_step"), [("half-cheetah-direction", "direction"), ("half-cheetah-velocity", "velocity")])
def test_half_cheetahs_rewards_follow_its_task(name: str, of_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the velocity that the first coordinate's differences give, on MuJoCo itself; which leaves no file behind."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    environment = build_environment(name, horizon=5)
    environment.check()
    assert environment.task_fields == (of_step,)
    instance = gymnasium.make("HalfCheetah-v5")
    batch = next(TaskStream(environment=environment, split="train", trajectories=1, phases=1, seed=0).training([0, 1])).like(
        torch.zeros((), dtype=torch.float64)
    )
    actions = torch.full((2, 1, 6), 0.5, dtype=torch.float64)
    state = environment.start(batch.tasks, batch.starts[:, 0])
    step = environment.step(batch.tasks, state, actions)
    for task in range(2):
        instance.reset(seed=int(batch.starts[task, 0, 0, 0]))
        before = instance.unwrapped.data.qpos[0].item()
        instance.step(np.full(6, 0.5, np.float32))
        velocity = (instance.unwrapped.data.qpos[0].item() - before) / instance.unwrapped.dt
        target = batch.tasks[task, 0].item()
        gain = target * velocity if of_step == "direction" else -abs(velocity - target)
        assert step.reward[task, 0].item() == pytest.approx(gain - 0.05 * 6 * 0.25, rel=1e-6)
    assert not list(tmp_path.iterdir())


def test_frames_show_the_trajectory_that_was_played() -> None:
    environment = made("Seen", arguments={"ends": 4})
    found = played(environment)
    batch = next(TaskStream(environment=environment, split="train", trajectories=3, phases=1, seed=0).training((0, 1)))
    frames = environment.frames(batch.tasks[1].numpy(), batch.starts[1, 0, 2].numpy(), found.actions[1, 2].numpy())
    assert frames is not None
    assert [int(frame[0, 0, 0]) for frame in frames] == [100 + round(100 * x) for x in found.observations[1, 2, :5, 0].tolist()]
    assert made("Drift").frames(batch.tasks[1].numpy(), batch.starts[1, 0, 2].numpy(), found.actions[1, 2].numpy()) is None
