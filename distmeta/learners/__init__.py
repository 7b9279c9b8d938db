"""Learners: they adapt to a support set and turn episodes into a meta-gradient."""

import difflib
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, get_type_hints

from torch import nn

from distmeta.errors import RAISED, ConfigError, DistmetaError
from distmeta.learners.finetune import TransferBaseline
from distmeta.learners.in_context import InContext
from distmeta.learners.learner import Learner
from distmeta.learners.maml import ANIL, FOMAML, MAML, MAMLPlusPlus, MetaSGD
from distmeta.learners.metric import ClassifierBaseline, MetaBaseline, ProtoNet
from distmeta.learners.objective import CrossEntropy, Objective
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
    arguments = _arguments_of(LEARNERS[learner] if isinstance(learner, str) else learner)
    return {name: parameter for name, parameter in arguments.items() if name not in ("model", "objective")}


def _arguments_of(kind: type[Learner]) -> dict[str, inspect.Parameter]:
    """All arguments that may be given by name. Raises ConfigError if an annotation names what is not there."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        constructor: Any = vars(base).get("__init__")
        if constructor is None or base is object:
            continue
        try:
            hints = get_type_hints(constructor, include_extras=True)
        except Exception as error:  # an annotation is an expression of the user's
            raise ConfigError(
                f"an annotation in the constructor of learner {kind.__qualname__} cannot be evaluated: {error}",
                "import what it names where the module is imported, not only under TYPE_CHECKING",
            ) from error
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                arguments.setdefault(parameter.name, parameter.replace(annotation=hints.get(parameter.name, Any)))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments


def check_settings(name: str, settings: dict[str, Any], allow_import: bool = False) -> dict[str, Any]:
    """All settings of learner `name`: those of `settings` converted to the constructor's types, the others at their defaults. Raises
    ConfigError naming the key, the value and the rule if a setting is unknown, invalid or missing.
    """
    kind = learner_class(name, allow_import)
    takes = settings_of(kind)
    _check_constructor(name, kind)
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
    values = {
        key: checked(f"learner.{key}", settings[key], parameter.annotation) if key in settings else parameter.default
        for key, parameter in takes.items()
    }
    for key, value in values.items():
        if not _is_plain(value):
            raise ConfigError(
                f"learner.{key}={value!r} is a {type(value).__name__}; settings are finite numbers, texts, truth values, None, or lists and"
                " mappings of them, which a published model keeps",
                f"let {key} be one of these, such as a name, and make the {type(value).__name__} of it in the constructor",
            )
    return values


def _is_plain(value: Any) -> bool:
    """Whether JSON gives the value back as it is."""
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(part) for key, part in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, str, type(None)) or (type(value) is float and math.isfinite(value))


def _check_constructor(name: str, kind: type[Learner]) -> None:
    """Raises ConfigError if the constructor has an argument that can be given by position only, and must be given."""
    for parameter in list(inspect.signature(kind).parameters.values())[1:]:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise ConfigError(
                f"the constructor of learner {name} takes {parameter.name!r} by position only; settings are given by name",
                "move the / in front of it, or leave the / out",
            )


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
    takes_objective = "objective" in _arguments_of(kind)
    if objective is not None and not takes_objective and type(objective) is not CrossEntropy:
        raise ConfigError(
            f"the constructor of learner {name} does not take `objective`, which holds the domain's loss",
            "let it take ** and pass it on: super().__init__(model, **more)",
        )
    given: dict[str, Any] = {"objective": objective} if objective is not None and takes_objective else {}
    learner = kind(model, **given, **settings) if name in LEARNERS else _own_learner(name, kind, model, given, settings)
    learner.seed, learner.bfloat16 = seed, bfloat16
    learner.settings = {key: settings.get(key, parameter.default) for key, parameter in settings_of(kind).items()}
    return learner


def _own_learner(name: str, kind: type[Learner], model: nn.Module, given: dict[str, Any], settings: dict[str, Any]) -> Learner:
    """A learner of a user's class. Raises ConfigError if its constructor raises, leaves out its base's, does not pass on a setting,
    or sets what distmeta sets.
    """
    remedy = "fix its constructor: it takes the network first, and passes ** on to super().__init__(model, **more)"
    try:
        with _received(kind) as received:
            learner = kind(model, **given, **settings)
    except DistmetaError:
        raise
    except RAISED as error:  # the user's own constructor may raise anything
        raise ConfigError(f"learner {name} cannot be built: {type(error).__name__}: {error}", remedy) from error
    if not isinstance(getattr(learner, "model", None), nn.Module):
        raise ConfigError(f"the constructor of learner {name} does not call its base's", "call super().__init__(model, **more) first")
    for key, parameter in settings_of(kind).items():
        wanted = settings.get(key, parameter.default)
        if wanted != parameter.default and received.get(key) != wanted:
            raise ConfigError(f"learner.{key}={wanted!r} is not used: the constructor of learner {name} does not pass it on", remedy)
    taken = sorted(vars(learner).keys() & {"settings", "seed", "bfloat16", "no_vmap", "constant_body"})
    if taken:
        raise ConfigError(f"learner {name} sets self.{taken[0]}, which distmeta sets", f"name that attribute otherwise than {taken[0]}")
    return learner


@contextmanager
def _received(kind: type[Learner]) -> Iterator[dict[str, Any]]:
    """The arguments by name that constructors of `kind` and its bases are called with in the block, the last one's of each name."""
    constructors = {getattr(vars(base).get("__init__"), "__code__", None) for base in kind.__mro__}
    received: dict[str, Any] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in constructors:
            received.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield received
    finally:
        sys.setprofile(before)
