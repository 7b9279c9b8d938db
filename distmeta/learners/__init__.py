"""Learners: they adapt to a support set and turn episodes into a meta-gradient."""

import difflib
import inspect
from typing import Any, get_type_hints

from torch import nn

from distmeta.errors import ConfigError
from distmeta.learners.finetune import TransferBaseline
from distmeta.learners.in_context import InContext
from distmeta.learners.learner import Learner
from distmeta.learners.maml import ANIL, FOMAML, MAML, MAMLPlusPlus, MetaSGD
from distmeta.learners.metric import ClassifierBaseline, MetaBaseline, ProtoNet
from distmeta.learners.objective import Objective
from distmeta.learners.reptile import Reptile
from distmeta.models import checked
from distmeta.models.construct import imported

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
    "in-context": InContext,
}


_RESERVED = {"name": "", "allow_import": "", "seed": "; self.seed holds the run's", "bfloat16": "; self.bfloat16 holds the run's"}
"""Arguments of `build_learner` that no setting may be named like, and what to read instead."""


def learner_class(name: str, allow_import: bool = False) -> type[Learner]:
    """The learner `name`: one of LEARNERS or, with `allow_import` and only for a name from the user's config, an import path.

    Raises ConfigError.
    """
    if name in LEARNERS:
        return LEARNERS[name]
    if "." not in name or not allow_import:
        near = ", ".join(difflib.get_close_matches(name, LEARNERS, n=3) or LEARNERS)
        raise ConfigError(
            f"learner.name={name!r} is not a learner of distmeta", f"choose one of {near}; or the import path of your own Learner"
        )
    learner = imported("learner.name", name)
    if not (isinstance(learner, type) and issubclass(learner, Learner)):
        raise ConfigError(f"learner.name={name!r} is not a subclass of distmeta.Learner", "give the path of one, my_module.MyLearner")
    missing = sorted(getattr(learner, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(
            f"learner.name={name!r} does not define {', '.join(missing)}", "define it; docs/extending.md says what it returns"
        )
    return learner


def settings_of(learner: str | type[Learner]) -> dict[str, inspect.Parameter]:
    """The settings of a learner: the arguments of its constructor, and of its bases' constructors if it forwards **kwargs."""
    settings: dict[str, inspect.Parameter] = {}
    for base in (LEARNERS[learner] if isinstance(learner, str) else learner).__mro__:
        constructor: Any = vars(base).get("__init__")
        if constructor is None or base is object:
            continue
        hints = get_type_hints(constructor, include_extras=True)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name not in ("model", "objective"):
                settings.setdefault(parameter.name, parameter.replace(annotation=hints.get(parameter.name, Any)))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return settings


def check_settings(name: str, settings: dict[str, Any], allow_import: bool = False) -> dict[str, Any]:
    """All settings of learner `name`: those of `settings` converted to the constructor's types, the others at their defaults. Raises
    ConfigError naming the key, the value and the rule if a setting is unknown, invalid or missing.
    """
    takes = settings_of(learner_class(name, allow_import))
    for key in sorted(takes.keys() & _RESERVED):
        raise ConfigError(
            f"the constructor of learner {name} takes {key!r}, which distmeta gives no learner",
            f"name that argument otherwise{_RESERVED[key]}",
        )
    for key in sorted(settings.keys() - takes.keys()):
        near = difflib.get_close_matches(key, takes, n=3) or sorted(takes)
        raise ConfigError(f"learner.{key} is not a setting of learner {name}", f"remove it, or choose from: {', '.join(near)}")
    for key, parameter in takes.items():
        if parameter.default is parameter.empty and key not in settings:
            raise ConfigError(f"learner.{key} is missing: {name} has no default for it", f"add it, or give --set learner.{key}=…")
    return {
        key: checked(f"learner.{key}", settings[key], parameter.annotation) if key in settings else parameter.default
        for key, parameter in takes.items()
    }


def build_learner(
    name: str,
    model: nn.Module,
    objective: Objective | None = None,
    allow_import: bool = False,
    seed: int = 0,
    bfloat16: bool = False,
    **settings: Any,
) -> Learner:
    """The learner `name` for `model`, with its constructor's arguments; `allow_import` as in `learner_class`, the others as in `Learner`.

    Its attribute `settings` holds all of them, defaults included, so that a published model can be rebuilt.
    """
    kind = learner_class(name, allow_import)
    given: dict[str, Any] = {"objective": objective} if objective is not None else {}
    learner = kind(model, **given, **settings)
    learner.seed, learner.bfloat16 = seed, bfloat16
    learner.settings = {key: settings.get(key, parameter.default) for key, parameter in settings_of(kind).items()}
    return learner
