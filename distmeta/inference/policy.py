"""A meta-trained policy in use: adapt it to a task of an environment by acting in it, then map observations to actions."""

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distmeta.envs import build_environment
from distmeta.envs.environment import Continuous, Environment
from distmeta.envs.stream import TaskBatch, TaskStream
from distmeta.errors import ConfigError
from distmeta.inference.actor import Actor, ActorDescription
from distmeta.inference.limits import limits
from distmeta.inference.model import build
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Network
from distmeta.learners.params import Params, floating
from distmeta.learners.policy import LOG_STD
from distmeta.learners.policy_gradient import PolicyGradient, policy_gradient
from distmeta.learners.trajectories import Trajectories
from distmeta.yaml12 import load

TRAJECTORIES = 20  # default number of trajectories, before the first inner step and after each


class PolicyModel(NamedTuple):
    """A meta-trained policy, ready to adapt. `description` is the description published with its weights."""

    uri: str
    description: dict[str, Any]
    learner: FineTuning
    meta_params: Params

    def adapt(
        self,
        environment: Environment | None = None,
        task: Sequence[float] | None = None,
        inner_steps: int | None = None,
        trajectories: int = TRAJECTORIES,
        seed: int = 0,
    ) -> "AdaptedPolicy":
        """The policy adapted to a task by acting in it. Default: a task drawn from `seed`, in the environment that it was trained in.

        Each of `inner_steps` (default: those of its evaluation) learns from `trajectories` trajectories. The same number after the last
        step measure the result. The same arguments give the same policy. Raises ConfigError if environment, task or steps do not fit;
        DataError if `inner_steps` or `trajectories` are above the limits in `Limits`.
        """
        learner = copy.deepcopy(self.learner)
        limits().check("trajectories", trajectories)
        if inner_steps is not None:
            limits().check("inner_steps", inner_steps)
            learner.check_steps(self.meta_params, inner_steps)
            learner.inner_steps_eval = inner_steps
        if trajectories < 2:
            raise ConfigError(f"{trajectories} trajectories: a baseline needs more than one", "give 2 or more, such as 20")
        objective = learner.objective
        assert isinstance(objective, PolicyGradient)
        environment = environment or objective.environment
        self._check(environment, objective)
        objective.environment = environment
        stream = TaskStream(
            environment=environment, split="test", trajectories=trajectories, phases=learner.inner_steps_eval + 1, seed=seed
        )
        (episode,) = stream.evaluation([0])
        if task is not None:
            episode = _with_task(episode, environment, task)
        episode = episode.like(floating(self.meta_params))
        played, params = [], self.meta_params
        for step, params in enumerate(learner.adaptation(self.meta_params, episode)):
            played.append(objective.trajectories(Network(learner.forward(), params), episode, step))
        return AdaptedPolicy(
            description=self.description,
            learner=learner,
            params=params,
            environment=environment,
            task=episode.tasks[0].tolist(),
            played=played,
            starts=episode.starts[0],
        )

    def _check(self, environment: Environment, objective: PolicyGradient) -> None:
        wanted, given = [(like.observation_size, like.actions) for like in (objective.environment, environment)]
        if wanted != given:
            raise ConfigError(
                f"{environment.name} has observations and actions {given}; {self.uri} was trained with {wanted}",
                "choose an environment like the one it was trained in",
            )


class AdaptedPolicy(NamedTuple):
    """A policy adapted to one task. `played` holds its trajectories after 0, 1, … inner steps, `task` the task's components.

    `starts` (P, N, S) are the random numbers of the trajectories' first states.
    """

    description: dict[str, Any]
    learner: FineTuning
    params: Params
    environment: Environment
    task: list[float]
    played: list[Trajectories]
    starts: Tensor

    @property
    def returns(self) -> list[float]:
        """The mean return after 0, 1, … inner steps."""
        return [trajectories.returns.mean().item() for trajectories in self.played]

    def frames(self) -> list[NDArray[np.uint8]]:
        """Pictures of the first trajectory after the last inner step. Raises ConfigError if the environment cannot be drawn, DataError."""
        actions = self.played[-1].actions[0, 0].cpu().numpy()
        frames = self.environment.frames(np.array(self.task), self.starts[-1, 0].double().cpu().numpy(), actions)
        if frames is None:
            raise ConfigError(f"environment {self.environment.name} has no pictures of its states", "write a PNG file")
        return frames

    def __call__(self, observations: Tensor) -> Tensor:
        """The most probable actions (M, size), or integers (M,), for observations (M, O). An action does not depend on the other
        observations.
        """
        objective = self.learner.objective
        assert isinstance(objective, PolicyGradient)
        return Actor(self.learner.forward(), objective.policy, self.params)(observations)

    def as_actor(self) -> tuple[ActorDescription, Params]:
        """The description from which `build_actor` rebuilds the policy without its environment."""
        actions = self.environment.actions
        kind, size = ("continuous", actions.size) if isinstance(actions, Continuous) else ("discrete", actions.number)
        description = ActorDescription(
            model=self.description["model"],
            observation_size=self.environment.observation_size,
            kind=kind,
            size=size,
            environment=self.environment.name,
            task=dict(zip(self.environment.task_fields, self.task, strict=True)),
        )
        return description, {name: value.detach().cpu().contiguous() for name, value in self.learner.whole(self.params).items()}


def build_policy(
    uri: str, description: dict[str, Any], weights: Params, own: Collection[str] = (), environment: Environment | None = None
) -> PolicyModel:
    """The model for `description`, in `environment` (default: the one it was trained in, if distmeta has it). Raises the same errors as
    `build`, and ConfigError for other environments, because a name from a registry is never imported.
    """
    settings = dict(description["domain"]["settings"])
    name, options = settings.pop("environment"), settings.pop("options")
    if environment is None and name == "gymnasium":
        raise ConfigError(f"{uri} was trained in {options.get('id')}, which is imported only if you name it", "name it with --env")
    objective = policy_gradient(environment or build_environment(name, **options), **settings)
    if environment is not None:
        _check_fits(environment, objective, description["model"], weights, uri)
    learner = build(description, weights, own, objective)
    assert isinstance(learner, FineTuning)
    return PolicyModel(uri, description, learner, weights)


def _check_fits(environment: Environment, objective: PolicyGradient, model: dict[str, Any], weights: Params, uri: str) -> None:
    """Raises ConfigError unless the policy's network and own parameters are those that `environment` needs."""
    wanted = [environment.observation_size], objective.policy.outputs, set(objective.policy.own_params())
    held = list(model["input_shape"]), model["outputs"], {LOG_STD} & weights.keys()
    if wanted != held:
        kind = "continuous" if held[2] else "discrete"
        raise ConfigError(
            f"{environment.name} has {environment.observation_size} observations and actions {environment.actions}; "
            f"{uri} was trained with {held[0][0]} and {held[1]} {kind} ones",
            "choose an environment like the one it was trained in",
        )


def environment_of(name: str | None, options: Sequence[str]) -> Environment | None:
    """The environment `name` with options written "key=value", values in YAML; None without a name. Raises ConfigError."""
    if name is None:
        if options:
            raise ConfigError(f"--option {options[0]} is for an environment that --env names", "add --env")
        return None
    pairs = [option.partition("=") for option in options]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"--option {key} has no value", f"write --option {key}=VALUE")
    environment = build_environment(name, **{key: load(value) for key, _, value in pairs})
    environment.check()
    return environment


def task_of(text: str | None) -> list[float] | None:
    """The components of a task written "0.3,-0.2"; None for None. Raises ConfigError."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--task {text}: numbers are needed", "write --task 0.3,-0.2") from None


def _with_task(episode: TaskBatch, environment: Environment, task: Sequence[float]) -> TaskBatch:
    if len(task) != len(environment.task_fields):
        fields = ", ".join(environment.task_fields)
        raise ConfigError(f"a task of {environment.name} has {len(environment.task_fields)} components, not {len(task)}", f"give {fields}")
    if not all(map(math.isfinite, task)):
        raise ConfigError(f"a task of {list(task)}: its components must be finite", "give numbers such as 0.3")
    return episode.map(lambda tensor: tensor.new_tensor([list(task)]) if tensor is episode.tasks else tensor)
