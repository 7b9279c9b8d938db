"""Learners: what adapts to a support set and turns episodes into a meta-gradient."""

import inspect
from typing import Any

from torch import nn

from distmeta.errors import ConfigError
from distmeta.learners.finetune import TransferBaseline
from distmeta.learners.learner import Learner
from distmeta.learners.maml import ANIL, FOMAML, MAML, MAMLPlusPlus, MetaSGD
from distmeta.learners.metric import ClassifierBaseline, MetaBaseline, ProtoNet
from distmeta.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "anil": ANIL,
    "meta-sgd": MetaSGD,
    "maml++": MAMLPlusPlus,
    "reptile": Reptile,
    "protonet": ProtoNet,
    "transfer": TransferBaseline,
    "classifier-baseline": ClassifierBaseline,
    "meta-baseline": MetaBaseline,
}


def settings_of(name: str) -> set[str]:
    """The settings that learner `name` takes: its constructor's arguments and those of its bases."""
    return {
        parameter
        for base in LEARNERS[name].__mro__
        if "__init__" in vars(base) and base is not object
        for parameter, kind in inspect.signature(base).parameters.items()
        if kind.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter not in ("model", "objective", "seed", "bfloat16")
    }


def check_settings(name: str, settings: dict[str, Any]) -> None:
    """Raises ConfigError if learner `name` does not take one of `settings`."""
    unknown = sorted(set(settings) - settings_of(name))
    if unknown:
        takes = ", ".join(sorted(settings_of(name)))
        raise ConfigError(f"learner.{unknown[0]} is no setting of learner {name}", f"leave it out; {name} takes {takes}")


def build_learner(name: str, model: nn.Module, **settings: Any) -> Learner:
    """The learner `name` for `model`, with its constructor's arguments."""
    return LEARNERS[name](model, **settings)
