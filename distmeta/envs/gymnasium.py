"""Gymnasium environments as families of tasks (the extra `distmeta[rl]`). Each trajectory has its own instance."""

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as library_version
from importlib.util import find_spec
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distmeta.envs.environment import Continuous, Discrete, Environment, Step
from distmeta.envs.watch import Hung, Watch
from distmeta.errors import ConfigError, DataError, DistmetaError
from distmeta.seeds import generator

_Seconds = Annotated[float, Field(gt=0, le=10**6)]  # the longest wait that Python supports (seconds)
_SEEDS = 2**31
_REPLAYED = 20  # steps of the two rollouts that are compared
_watch = Watch()  # one per process, because all environments share its thread
R = TypeVar("R")


@dataclass
class Playing:
    """The state of T × N trajectories: an instance of each, whether it has ended, and its last observation (T, N, O)."""

    instances: list[Any]
    ended: list[bool]
    observations: Tensor


class GymnasiumEnvironment(Environment):
    """Any Gymnasium environment with vectors as observations, and vectors or one of n choices as actions.

    `id` is registered with Gymnasium, or the import path of a class ("my_package.my_module.MyEnv"); `arguments` are passed to its
    constructor. If it has `draw_task(random) -> array`, `set_task(array)` and `task_fields`, it is a family of tasks, else a single one.
    Instances are reused: a trajectory starts by `reset(seed=…)`, after which an instance must behave as a new one does. One that does not
    is refused by `check`, unless it is declared with `deterministic: false`: its runs cannot be repeated bit for bit. DataError is raised
    if `reset` or `step` does not return within `step_timeout_s` seconds. Instances are created, reset and stepped in one thread, which is
    not the main thread.
    """

    version = 1
    tensor_program = False

    def __init__(
        self,
        id: str,
        horizon: Annotated[int, Field(ge=1)] = 200,
        arguments: dict[str, Any] | None = None,
        deterministic: bool = True,
        step_timeout_s: _Seconds = 60.0,
    ) -> None:
        self.id = id
        self.horizon = horizon
        self.deterministic = deterministic
        self.step_timeout_s = step_timeout_s
        self._arguments = arguments or {}
        self._make = _maker(id)
        self._pool: list[Any] = [self._new()]
        first = self._pool[0]
        self.actions = _actions(id, first.action_space)
        self.observation_size = _observation_size(id, first.observation_space)
        self.task_fields = tuple(getattr(first.unwrapped, "task_fields", ()))
        self._starts_at = int(getattr(first.action_space, "start", 0))

    @property
    def name(self) -> str:
        arguments = "".join(f" {key}={value}" for key, value in sorted(self._arguments.items()))
        return f"gymnasium {self.id} horizon={self.horizon}{arguments}{'' if self.deterministic else ' deterministic=False'}"

    @property
    def software(self) -> dict[str, str]:
        return {library: library_version(library) for library in ("gymnasium", "mujoco") if find_spec(library)}

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        if not self.task_fields:
            return np.zeros(0)
        return np.asarray(self._pool[0].unwrapped.draw_task(random), np.float64)

    def draw_starts(self, random: np.random.Generator, trajectories: int) -> NDArray[np.float64]:
        return random.integers(_SEEDS, size=(trajectories, 1)).astype(np.float64)

    def start(self, tasks: Tensor, starts: Tensor) -> Playing:
        seeds = starts.long().flatten().tolist()
        while len(self._pool) < len(seeds):
            self._pool.append(self._new())
        instances = self._pool[: len(seeds)]
        of_tasks = tasks.double().cpu().numpy().repeat(starts.shape[1], 0)
        observed = self._watched(lambda: [self._reset(*each) for each in zip(instances, of_tasks, seeds, strict=True)])
        observations = torch.from_numpy(np.stack(observed)).to(tasks).view(*starts.shape[:2], -1)
        return Playing(instances, [False] * len(seeds), observations)

    def _reset(self, instance: Any, task: NDArray[np.float64], seed: int) -> NDArray[Any]:
        """The first observation (O,)."""
        if self.task_fields:
            self.set_task(instance, task)
        observation = np.ravel(instance.reset(seed=seed)[0])
        _watch.progress += 1
        return observation

    def _watched(self, call: Callable[[], R]) -> R:
        try:
            return _watch(call, self.step_timeout_s)
        except Hung:
            raise DataError(
                f"environment {self.id} did not return from reset or step within {self.step_timeout_s:g} s",
                "fix it, or raise data.settings.options.step_timeout_s",
            ) from None

    def observe(self, state: Playing) -> Tensor:
        return state.observations

    def step(self, tasks: Tensor, state: Playing, actions: Tensor) -> Step:
        shape, count = state.observations.shape[:2], len(state.instances)
        taken = self._taken(actions.reshape(count, *actions.shape[2:]).cpu().numpy())
        observed = state.observations.reshape(count, -1).double().cpu().numpy().copy()  # the last valid observation is kept
        rewards, terminated, truncated = np.zeros(count), np.zeros(count, bool), np.zeros(count, bool)
        infos: dict[int, dict[str, Any]] = {}

        def advance() -> None:
            for index, instance in enumerate(state.instances):
                if not state.ended[index]:
                    observation, rewards[index], terminated[index], truncated[index], infos[index] = instance.step(taken[index])
                    observed[index] = observation if observation.ndim == 1 else observation.ravel()
                    _watch.progress += 1

        self._watched(advance)
        playing = list(infos)
        if playing:
            of_tasks = tasks.double().cpu().numpy().repeat(shape[1], 0)
            rewards[playing] = self.rewards(of_tasks[playing], rewards[playing], list(infos.values()))
        if not (np.isfinite(observed).all() and np.isfinite(rewards).all()):
            raise DataError(f"environment {self.id} returned an observation or reward that is not finite", "fix it, or clip its actions")
        ended = (np.array(state.ended) | terminated | truncated).tolist()
        observations = torch.from_numpy(observed).to(tasks).view(*shape, -1)
        facts = (torch.from_numpy(fact).view(shape) for fact in (rewards, terminated, truncated))
        reward, *ends = facts
        return Step(Playing(state.instances, ended, observations), reward.to(tasks), *ends)

    def set_task(self, instance: Any, task: NDArray[np.float64]) -> None:
        instance.unwrapped.set_task(task)

    def rewards(self, tasks: NDArray[np.float64], rewards: NDArray[np.float64], infos: list[dict[str, Any]]) -> NDArray[np.float64]:
        """The rewards (M,) of a step in tasks (M, D), given what Gymnasium returned. Default: Gymnasium's rewards."""
        return rewards

    def check(self) -> None:
        """Raises ConfigError if a short trial fails, or if a reused instance behaves differently from a new one; DataError if it hangs."""
        new, reused = self._new(), self._new()
        self._try(reused, seed=1)
        if self.deterministic and not np.array_equal(self._try(new, seed=0), self._try(reused, seed=0)):
            raise ConfigError(
                f"environment {self.id} is not deterministic: a reset instance and a new one differ under the same seed and actions",
                "make reset(seed=…) restore everything, or set data.settings.options.deterministic=false and lose equal bits",
            )

    def _try(self, instance: Any, seed: int) -> NDArray[np.float64]:
        try:
            return self._watched(lambda: self._replay(instance, seed))
        except DistmetaError:
            raise
        except Exception as error:  # a user's class may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"environment {self.id} fails within {_REPLAYED} steps: {reason}", "fix its reset or step") from None

    def _replay(self, instance: Any, seed: int) -> NDArray[np.float64]:
        random = generator(seed, "environment check")
        seen: list[NDArray[Any]] = [self._reset(instance, self.draw(random), seed)]
        noise = self.actions.draw_noise(random, 1, _REPLAYED)[0]
        chosen = noise if isinstance(self.actions, Continuous) else (noise[:, 0] * self.actions.number).astype(np.int64)
        for action in self._taken(chosen):
            observation, reward, terminated, truncated, _ = instance.step(action)
            seen.append(np.append(np.ravel(observation), [reward, terminated, truncated]))
            _watch.progress += 1
            if terminated or truncated:
                break
        return np.concatenate(seen)

    def frames(self, task: NDArray[np.float64], start: NDArray[np.float64], actions: NDArray[Any]) -> list[NDArray[np.uint8]] | None:
        if "rgb_array" not in self._pool[0].metadata.get("render_modes", []):
            return None
        if not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a screen
        try:
            instance = self._make(**self._arguments | {"render_mode": "rgb_array"})
            if self.task_fields:
                self.set_task(instance, task)
            instance.reset(seed=int(start[0]))
            seen = [np.asarray(instance.render())]
            for action in self._taken(actions):
                *_, terminated, truncated, _ = instance.step(action)
                seen.append(np.asarray(instance.render()))
                if terminated or truncated:
                    break
            instance.close()
        except Exception as error:  # a renderer without a graphics library may raise anything
            reason = " ".join(str(error).split())
            raise DataError(
                f"environment {self.id} cannot be drawn here: {reason}", "install EGL, or set MUJOCO_GL to an installed renderer"
            ) from None
        return seen

    def _taken(self, actions: NDArray[Any]) -> Any:
        """The instances' actions for a policy's actions (M, size) or choices (M,)."""
        if isinstance(self.actions, Continuous):
            space = self._pool[0].action_space
            return np.clip(actions, space.low, space.high).astype(space.dtype)
        return [int(action) + self._starts_at for action in actions]

    def _new(self) -> Any:
        try:
            return self._watched(lambda: self._make(**self._arguments))
        except DataError:
            raise
        except Exception as error:  # Gymnasium or a user's class may raise anything
            raise ConfigError(
                f"environment {self.id} cannot be made: {' '.join(str(error).split())}", "check data.settings.options.id and its arguments"
            ) from None


class HalfCheetahDirection(GymnasiumEnvironment):
    """HalfCheetah-v5, which is to run forwards (+1) or backwards (-1) (Finn, Abbeel & Levine 2017, section 5.3).

    The reward is the velocity in that direction minus 0.05 times the action's square, as in the code of MAML's authors.
    """

    def __init__(self, horizon: Annotated[int, Field(ge=1)] = 200, step_timeout_s: _Seconds = 60.0) -> None:
        super().__init__("HalfCheetah-v5", horizon, {"ctrl_cost_weight": 0.05}, step_timeout_s=step_timeout_s)
        self.task_fields = ("direction",)

    @property
    def name(self) -> str:
        return f"half-cheetah-direction horizon={self.horizon}"

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        return random.choice([-1.0, 1.0], 1)

    def set_task(self, instance: Any, task: NDArray[np.float64]) -> None:
        """The task changes only the reward."""

    def rewards(self, tasks: NDArray[np.float64], rewards: NDArray[np.float64], infos: list[dict[str, Any]]) -> NDArray[np.float64]:
        velocity, control = _velocity_and_control(infos)
        return tasks[:, 0] * velocity + control


class HalfCheetahVelocity(HalfCheetahDirection):
    """HalfCheetah-v5, which is to run at a speed drawn from [0, 2]. The reward is minus the deviation from it, and minus the same penalty
    on actions.
    """

    def __init__(self, horizon: Annotated[int, Field(ge=1)] = 200, step_timeout_s: _Seconds = 60.0) -> None:
        super().__init__(horizon, step_timeout_s)
        self.task_fields = ("velocity",)

    @property
    def name(self) -> str:
        return f"half-cheetah-velocity horizon={self.horizon}"

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        return random.uniform(0.0, 2.0, 1)

    def rewards(self, tasks: NDArray[np.float64], rewards: NDArray[np.float64], infos: list[dict[str, Any]]) -> NDArray[np.float64]:
        velocity, control = _velocity_and_control(infos)
        return control - np.abs(velocity - tasks[:, 0])


def _velocity_and_control(infos: list[dict[str, Any]]) -> NDArray[np.float64]:
    """HalfCheetah's velocity and its penalty on actions, (2, M)."""
    return np.array([(info["x_velocity"], info["reward_ctrl"]) for info in infos]).T


def _maker(id: str) -> Callable[..., Any]:
    """The function that creates an instance. Raises ConfigError naming the extra if Gymnasium is missing."""
    try:
        import gymnasium
    except ImportError:
        raise ConfigError(f"environment {id} needs Gymnasium, which is not installed", "pip install 'distmeta[rl]'") from None
    _log_mujocos_warnings()
    module, _, attribute = id.rpartition(".")
    if not module:
        return lambda **arguments: gymnasium.make(id, **arguments)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment {id} cannot be imported: {error}", "give the import path of a class of gymnasium.Env") from None


def _log_mujocos_warnings() -> None:
    """Send MuJoCo's warnings to Python's log. Otherwise MuJoCo prints them, and writes MUJOCO_LOG.TXT into the working folder."""
    try:
        import mujoco
    except ImportError:
        return
    mujoco.set_mju_user_warning(logging.getLogger("mujoco").info)


def _actions(id: str, space: Any) -> Continuous | Discrete:
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return Continuous(space.shape[0])
    raise ConfigError(f"environment {id} has actions {space}; a policy needs a Box of one dimension or a Discrete", "wrap the environment")


def _observation_size(id: str, space: Any) -> int:
    import gymnasium

    if isinstance(space, gymnasium.spaces.Box):
        return int(np.prod(space.shape))
    raise ConfigError(f"environment {id} has observations {space}; a policy needs a Box", "wrap the environment")
