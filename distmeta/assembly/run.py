"""A run as one object: its config and the objects built from it. Workers import this module, so it does not import MLflow."""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from distmeta.assembly.build import (
    SOURCE,
    learner_of,
    model_description,
    outer_of,
    published_learner,
    started_from,
)
from distmeta.assembly.code import check_code, check_libraries, keep_code, libraries
from distmeta.assembly.domain import Domain, domain_of, metric_of
from distmeta.assembly.received import followed, import_paths
from distmeta.assembly.trial import check_outputs, check_step, worker_bytes
from distmeta.config import Config
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS
from distmeta.learners.description import default_name
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, difference, fill, floating_parameter
from distmeta.masking import masked
from distmeta.models import MODELS, as_constructed
from distmeta.training.checkpoint import machine
from distmeta.training.metric import Metric
from distmeta.training.outer import OuterUpdate
from distmeta.training.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run's domain, learner and folder. They do not change while the run trains.

    `device` and `dtype` are those of the learner's network; its weights are always drawn on the CPU in float32.
    """

    config: Config
    domain: Domain
    folder: RunFolder
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: Config, **place: Any) -> "Run":
        """The run that `config` describes; `place` may give `device` and `dtype`. Raises ConfigError, DataError."""
        return cls(config, domain_of(config), RunFolder(config.run_folder), **place)

    @classmethod
    def in_folder(cls, folder: RunFolder, shards: str | None = None, own: Config | None = None) -> "Run":
        """The run stored in `folder`, in the type that it trained in. Its dataset is opened at `shards`, or as the user's config `own`
        says; code is imported only if `own` names it too. Raises RunError if `folder` holds no run, ConfigError, DataError.
        """
        config = followed(folder.read_config(), own, shards)
        return cls(config, domain_of(config), folder, dtype=getattr(torch, config.train.weights))

    def on(self, device: str, kernels: str) -> "Run":
        """The same with its config's device resolved to "cpu" or "cuda", and its kernels to "native" or "torch"."""
        train = self.config.train.model_copy(update={"device": device, "kernels": kernels})
        return replace(self, config=self.config.model_copy(update={"train": train}))

    @cached_property
    def learner(self) -> Learner:
        """Raises ConfigError if the learner or its network does not take a setting."""
        if not self.folder.initial.is_whole:
            return learner_of(self.config, self.domain, self.device, self.dtype)
        paths = import_paths(self.config)
        check_code(paths, self.folder.code, str(self.folder))
        learner = learner_of(self.config, self.domain, self.device, self.dtype, drawn=False)
        if paths:
            named = self.folder.initial.read_description().get("libraries", {})
            check_libraries(named, libraries(paths, learner, *learner.model.modules()), str(self.folder))
        kept = self.folder.initial.load_params()
        problem = difference(kept, learner.whole(learner.initial_params()))
        if problem:
            raise ConfigError(
                f"run_folder {self.folder} holds a run of another network or learner: {problem}",
                "give the config that it began with, or --set run_folder=NEW for the new one",
            )
        fill(learner.model, kept)
        return learner

    @cached_property
    def metric(self) -> Metric:
        """The metric of validation and test. Raises ConfigError if the config names one that cannot be used."""
        return metric_of(self.config, self.domain)

    def check(self) -> None:
        """Raises ConfigError or DataError if the run cannot start."""
        self.domain.check()
        _ = self.metric
        check_outputs(self.config, self.domain, self.learner)
        if self.config.model.name not in MODELS or self.config.learner.name not in LEARNERS:
            check_step(self.config, self.domain, self.learner)
        workers, episodes = self.config.train.most, self.config.outer.meta_batch_size
        if workers > episodes:
            raise ConfigError(
                f"train.workers={workers} but outer.meta_batch_size={episodes}: {workers - episodes} workers would have nothing to do",
                f"set train.workers={episodes} or raise outer.meta_batch_size",
            )

    @cached_property
    def description(self) -> dict[str, Any]:
        """The description in a published model, from which the network and its learner can be rebuilt."""
        source = self.folder.init_from.path / SOURCE
        origin = {"init_from": json.loads(source.read_text())} if source.exists() else {}
        return model_description(self.config, self.domain, self.learner) | origin

    @property
    def identity(self) -> dict[str, Any]:
        """The keys of a result that identify its run."""
        return {"learner": self.config.learner.name, "dataset": self.domain.name, "training_seed": self.config.seed}

    @property
    def model_name(self) -> str:
        """The name in the model registry."""
        return self.config.tracking.model or default_name(self.description)

    def start(self) -> Params:
        """meta_params at step 0: from the folder's `initial` once it exists, else from the constructor and init_from. Raises ConfigError if
        init_from does not fit.
        """
        if not self.folder.initial.is_whole:
            return started_from(self.config, self.learner)
        kept = self.folder.initial.load_params()
        return {name: torch.empty_like(value).copy_(kept[name]) for name, value in self.learner.initial_params().items()}

    @property
    def baseline(self) -> str:
        """Words for `start` in tables."""
        origin = self.config.init_from
        return as_constructed(self.config.model.name) if origin is None else f"not meta-trained, from {masked(origin)}"

    def notes(self) -> list[str]:
        """Sentences for users about how the network was changed and is computed."""
        return self.description["notes"] if self.config.model.name not in MODELS else []

    def outer(self) -> OuterUpdate:
        """The outer update, with meta_params at step 0."""
        return outer_of(self.config, self.start(), self.learner.statistics)

    def best_params(self, like: Params) -> Params:
        """meta_params of the best step so far, on the device, in the type and in the memory layout of `like`."""
        kept = self.folder.best.load_params()
        fill(self.learner.model, kept)
        return {name: torch.empty_like(value).copy_(kept[name]) for name, value in like.items()}

    def beside(self, number: int) -> tuple[Learner, Params, str]:
        """Learner, meta_params and norm of the registered model at this place of data.eval.beside.

        Raises ConfigError if it does not fit.
        """
        origin = self.config.data.eval.beside[number]
        like = floating_parameter(self.learner.model)
        return published_learner(self.folder.beside(number), self.domain, origin, like)

    def worker_bytes(self, device: str, slots: int) -> int | None:
        """Predicted peak memory in bytes of a worker's step with `slots` slots; None if the domain has no example to predict it by."""
        return worker_bytes(self.config, self.domain, device, slots)

    def write_description(self) -> None:
        """Write what the run is into its folder, and when it begins the user's own code."""
        if not self.folder.holds_run:
            keep_code(import_paths(self.config), self.folder.code)
        self.folder.write_description(self.config, self._dataset)

    def tags(self) -> dict[str, str]:
        """MLflow's parameters and tags of the run besides its config."""
        folders = {"run_folder": self.config.run_folder, "checkpoints": str(self.folder.checkpoints)}
        computes = machine(self.config.train.threads_per_worker, self.config.train.kernels) | self.domain.software
        return self._dataset | folders | computes

    @property
    def _dataset(self) -> dict[str, str]:
        return {"dataset": self.domain.name, "fingerprint": self.domain.fingerprint}
