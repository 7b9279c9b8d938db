"""Reinforcement learning: policies that adapt to a task of an environment by acting in it."""

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup
from pydantic import Field

from distmeta.assembly.domain import Domain, Settings
from distmeta.bounds import Fraction, PositiveFloat
from distmeta.config import AugmentConfig, Config
from distmeta.data.episodes import Batch, Task
from distmeta.data.splits import Split
from distmeta.envs import build_environment
from distmeta.envs.environment import Environment
from distmeta.envs.stream import TaskBatch, TaskStream, fingerprint
from distmeta.errors import ConfigError
from distmeta.learners.finetune import INNER_STEPS
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, floating
from distmeta.learners.policy_gradient import PolicyGradient, policy_gradient
from distmeta.learners.trajectories import best_returns
from distmeta.report.paths import paths_svg
from distmeta.report.section import Plot
from distmeta.report.section import Section as ReportSection
from distmeta.training.evaluate import Stream
from distmeta.training.mean_return import MeanReturn, after_each_step

_PICTURED = 4  # test tasks


class ReinforcementSettings(Settings):
    environment: str = "navigation"
    """Family of tasks: navigation, grid, half-cheetah-direction, half-cheetah-velocity, or gymnasium (with options.id)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment's constructor, such as horizon."""
    discount: Fraction = 0.99
    """γ: discount factor of rewards per step."""
    gae_decay: Fraction = 1.0
    """λ of generalised advantage estimation: 1 uses sampled returns, 0 the baseline."""
    surrogate_decay: Fraction = 0.0
    """λ of the surrogate loss: 0 is LVC, 1 is DiCE (unbiased, highest variance)."""
    log_std: float = 0.0
    """Initial logarithm of a Gaussian policy's standard deviation."""
    std_floor: PositiveFloat = 1e-6
    """Lower limit of a Gaussian policy's standard deviation."""


class Reinforcement(Domain):
    """Tasks of one environment. An episode is a task and data.shot trajectories before the first inner step and after each."""

    Settings = ReinforcementSettings
    metric = MeanReturn()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings: ReinforcementSettings = self.settings
        self.environment: Environment = build_environment(settings.environment, **settings.options)
        self.name = settings.environment
        self.fingerprint = fingerprint(self.environment)
        self.input_shape: tuple[int, ...] = (self.environment.observation_size,)
        outer = config.outer
        self.objective: PolicyGradient = policy_gradient(
            self.environment,
            clip_ratio=outer.clip_ratio if outer.update == "promp" else None,
            **settings.model_dump(exclude={"environment", "options"}),
        )
        self.outputs = self.objective.policy.outputs

    @property
    def software(self) -> dict[str, str]:
        return self.environment.software

    @property
    def train_task(self) -> Task:
        return Task(1, self.config.data.shot, self.config.data.shot)

    @property
    def eval_task(self) -> Task:
        shot = self.config.data.eval.shot or self.config.data.shot
        return Task(1, shot, shot)

    def check(self) -> None:
        """Raises ConfigError if the learner classifies, a key of images is set, or fewer than two trajectories are asked for."""
        super().check()
        data = self.config.data
        if data.image_size is not None or data.class_rotations or data.augment != AugmentConfig():
            raise ConfigError(f"environment {self.name} has no images", "remove data.image_size, data.class_rotations and data.augment")
        for task, key in ((self.train_task, "data.shot"), (self.eval_task, "data.eval.shot")):
            if task.shot < 2:
                raise ConfigError(f"{key}={task.shot}: a baseline needs more than one trajectory", f"set {key} to 2 or more, such as 20")
        self.environment.check()

    def training(self, slots: Sequence[int], start_step: int) -> Iterator[Batch]:
        return self._stream("train", self.train_task.shot, self._steps, self.config.seed).training(slots, start_step)

    def evaluation(self, split: Split) -> Stream:
        steps = self.config.learner.settings.get("inner_steps_eval") or self._steps
        return self._stream(split, self.eval_task.shot, steps, self.config.data.eval.seed)

    @property
    def _steps(self) -> int:
        return self.config.learner.settings.get("inner_steps") or INNER_STEPS

    def _stream(self, split: Split, trajectories: int, steps: int, seed: int) -> TaskStream:
        return TaskStream(environment=self.environment, split=split, trajectories=trajectories, phases=steps + 1, seed=seed)

    def example(self, slots: int) -> Batch | None:
        return next(self.training(range(slots), 0)) if self.environment.tensor_program else None

    def sections(self, learner: Learner, trained: Params, random_init: Params) -> list[ReportSection]:
        """Paths in the first test tasks before and after adaptation, and the return of a policy that knows the goals."""
        (episodes,) = self.evaluation("test").evaluation(list(range(_PICTURED)))
        assert isinstance(episodes, TaskBatch)
        episodes = episodes.like(floating(trained))
        played = after_each_step(learner, trained, episodes)
        places = [self.environment.places(trajectories.observations) for trajectories in played]
        drawn = [place for place in places if place is not None]
        if not drawn:
            return []
        text = "Each line is a trajectory from the dot; the cross is the goal, which the policy never sees."
        best = best_returns(self.environment, episodes.tasks, episodes.starts[:, 0])
        if best is not None:
            reached = ", ".join(f"{trajectories.returns.mean():.2f}" for trajectories in played)
            text += f" Mean returns on these tasks after 0, 1, … steps: {reached}; of a policy that knows the goals: {best.mean():.2f}."
        svg = paths_svg(drawn, [trajectories.lived for trajectories in played], episodes.tasks)
        return [ReportSection("Paths", text, [Plot(Markup(svg), "Columns are the first test tasks, rows the inner steps made before.")])]

    def describe(self, step: int, slot: int) -> str:
        named = self._stream("train", 1, 0, self.config.seed).described(step, slot)
        return ", ".join([self.name, *(f"{field}={value:.3f}" for field, value in named.items())])
