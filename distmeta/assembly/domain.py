"""The interface of domains (what a run learns from and how it is scored), and the domain that a config names."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import ValidationError

from distmeta.config import Config, Section
from distmeta.data.episodes import Batch, Task
from distmeta.data.images import Preprocessing
from distmeta.data.splits import Split
from distmeta.errors import RAISED, ConfigError, DistmetaError
from distmeta.learners import learner_class
from distmeta.learners.learner import Learner
from distmeta.learners.maml import MAML
from distmeta.learners.objective import Objective
from distmeta.learners.params import Params
from distmeta.learners.policy_gradient import PolicyGradient
from distmeta.models.construct import imported
from distmeta.report.section import Section as ReportSection
from distmeta.training.evaluate import Stream
from distmeta.training.metric import Metric

DOMAINS = {
    "classification": "distmeta.assembly.classification.Classification",
    "regression": "distmeta.assembly.regression.Regression",
    "reinforcement": "distmeta.assembly.reinforcement.Reinforcement",
}
"""Built-in domains by the names of data.domain. A user's domain is named by its import path."""


class Settings(Section):
    """Base class of a domain's settings (the keys of data.settings). Each has a default and a docstring."""


class Domain(ABC):
    """The tasks of a run, their loss and their score. Built from the config, on every worker and on the driver.

    Everything drawn at random is a function of (seed, split, step, slot) alone, never of workers, restarts or the clock. Therefore runs can
    resume, and any number of workers gives the same bits.
    """

    name: str
    """Name of the data, such as the dataset's. It is part of a model's default name in the registry."""
    fingerprint: str
    """Identifies the data. Models are compared, and runs resumed, only if it is equal."""
    input_shape: tuple[int, ...]
    """Shape of one input of the network, without the batch dimension."""
    input_type: ClassVar[torch.dtype] = torch.float32
    """Type of the inputs: torch.int64 for token ids. Real inputs are converted to the run's type."""
    outputs: int
    """Width of the network's head."""
    preprocessing: Preprocessing | None = None
    """How images become inputs, or None if inputs are not images."""
    objective: Objective
    """The losses of a task's support and query data."""
    metric: Metric
    """The score of an episode, with its name, unit and direction."""
    classes: ClassVar[bool] = False
    """Whether tasks have classes. Learners that compare class centroids or train on labelled batches need them."""
    Settings: ClassVar[type[Section]] = Settings
    """The keys that data.settings may have."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError if data.settings has a key or value that `Settings` does not take."""
        self.config = config
        try:
            self.settings: Any = self.Settings.model_validate(config.data.settings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["data.settings", *map(str, first["loc"])])
            remedies = {"extra_forbidden": f"set one of the domain's settings: {', '.join(self.Settings.model_fields) or 'none'}"}
            remedies |= {"missing": f"set {key}"}
            raise ConfigError(
                f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}", remedies.get(first["type"], f"change {key}")
            ) from None

    @property
    def software(self) -> dict[str, str]:
        """Libraries of the tasks, with versions, that the bits of a step depend on. Default: none."""
        return {}

    @property
    def train_task(self) -> Task:
        """The size of a training episode."""
        data = self.config.data
        return Task(data.way, data.shot, data.queries, data.class_rotations)

    @property
    def eval_task(self) -> Task:
        """The size of a validation or test episode."""
        data = self.config.data
        return Task(data.eval.way or data.way, data.eval.shot or data.shot, data.eval.queries or data.queries)

    def check(self) -> None:
        """Raises ConfigError, before anything is started, if the config asks for a feature that the domain does not have."""
        learner = self.config.learner.name
        if learner_class(learner, allow_import=True).any_way and not self.classes:
            raise ConfigError(f"learner {learner} classifies; the tasks of {self.name} have no classes", "choose maml, reptile or transfer")
        update = self.config.outer.update
        if update != "gradient":
            self._check_update(update, learner)

    def _check_update(self, update: str, learner: str) -> None:
        if not isinstance(self.objective, PolicyGradient):
            raise ConfigError(f"outer.update={update} is for policies; the tasks of {self.name} have none", "set outer.update=gradient")
        if not issubclass(learner_class(learner, allow_import=True), MAML):
            raise ConfigError(
                f"outer.update={update} needs a meta-gradient through the inner loop, which learner {learner} does not take",
                "set outer.update=gradient, or choose maml, fomaml, anil, meta-sgd or maml++",
            )

    @abstractmethod
    def training(self, slots: Sequence[int], start_step: int) -> Iterator[Batch]:
        """The tasks of `slots` (positions in the meta-batch) for step = `start_step`, `start_step` + 1, … without end."""

    @abstractmethod
    def evaluation(self, split: Split) -> Stream:
        """The fixed episodes of validation ("val") or test, a function of data.eval.seed."""

    @abstractmethod
    def example(self, slots: int) -> Batch | None:
        """A batch with the shapes of `training`'s batches, for an estimate of memory. None if it cannot be made without values."""

    @abstractmethod
    def describe(self, step: int, slot: int) -> str:
        """The training task of (step, slot) in words, for the message about a gradient that is not finite."""

    def sections(self, learner: Learner, trained: Params, random_init: Params) -> list[ReportSection]:
        """Report sections beyond curves and figures, such as pictures of test episodes. Default: none."""
        return []


def domain_of(config: Config) -> Domain:
    """The domain that the user's `config` names. Raises ConfigError if there is no such domain, DataError if its data cannot be opened."""
    name = config.data.domain or ("regression" if config.data.functions is not None else "classification")
    if name in DOMAINS:
        domain: Domain = imported("data.domain", DOMAINS[name])(config)
        return domain
    if "." not in name:
        raise ConfigError(f"data.domain={name} is not a domain", f"choose {', '.join(DOMAINS)}, or the import path of your own class")
    return _own(name, config)


def metric_of(config: Config, domain: Domain) -> Metric:
    """The metric of validation and test episodes: the one that the user's `config` names, else the domain's. Raises ConfigError as
    `metric_at`.
    """
    path = config.data.eval.metric
    return domain.metric if path is None else metric_at("data.eval.metric", path)


def metric_at(key: str, path: str) -> Metric:
    """The metric at an import path given by the user in the config key or flag `key`. Raises ConfigError if the path does not lead to a
    complete metric.
    """
    chosen = imported(key, path)
    if not (isinstance(chosen, type) and issubclass(chosen, Metric)):
        raise ConfigError(f"{key}={path} is {type(chosen).__name__}, not a Metric", "derive it from distmeta.Metric")
    missing = [*sorted(chosen.__abstractmethods__), *(["name"] if not hasattr(chosen, "name") else [])]
    if missing:
        raise ConfigError(f"{key}={path} has no {', '.join(missing)}", "define each as docs/extending.md does")
    try:
        metric: Metric = chosen()
    except RAISED as error:  # whatever the user's own class raises
        raise ConfigError(f"{key}={path} cannot be built: {error!r}", "give it a constructor without arguments") from error
    return metric


def _own(name: str, config: Config) -> Domain:
    """The user's domain at the import path `name`. Raises ConfigError if it is not a complete domain."""
    chosen = imported("data.domain", name)
    if not (isinstance(chosen, type) and issubclass(chosen, Domain)):
        raise ConfigError(f"data.domain={name} is {type(chosen).__name__}, not a Domain", "derive it from distmeta.assembly.domain.Domain")
    missing = sorted(chosen.__abstractmethods__)
    try:
        domain = None if missing else chosen(config)
        missing += [part for part in Domain.__annotations__ if domain is not None and not hasattr(domain, part)]
    except DistmetaError:
        raise
    except RAISED as error:  # whatever the user's own class raises
        raise ConfigError(f"data.domain={name} cannot be built: {error!r}", "fix its constructor, or change data.settings") from error
    if domain is None or missing:
        raise ConfigError(f"data.domain={name} has no {', '.join(missing)}", "define each as docs/extending.md does")
    return domain
