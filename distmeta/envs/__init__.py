"""Environments for reinforcement learning: families of tasks as tensor programs, and Gymnasium environments."""

import inspect
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distmeta.envs.environment import Environment
from distmeta.envs.grid import Grid
from distmeta.envs.gymnasium import GymnasiumEnvironment, HalfCheetahDirection, HalfCheetahVelocity
from distmeta.envs.navigation import Navigation
from distmeta.errors import ConfigError

ENVIRONMENTS: dict[str, type[Environment]] = {
    "navigation": Navigation,
    "grid": Grid,
    "gymnasium": GymnasiumEnvironment,
    "half-cheetah-direction": HalfCheetahDirection,
    "half-cheetah-velocity": HalfCheetahVelocity,
}


def build_environment(name: str, **options: Any) -> Environment:
    """The environment `name`, constructed with `options`. Raises ConfigError naming an option that it does not accept."""
    if name not in ENVIRONMENTS:
        raise ConfigError(f"environment {name!r} does not exist", f"choose {', '.join(ENVIRONMENTS)}")
    parameters = inspect.signature(ENVIRONMENTS[name]).parameters
    for key, value in options.items():
        if key not in parameters:
            raise ConfigError(f"environment {name} has no option {key}", f"set one of its options: {', '.join(parameters)}")
        try:
            TypeAdapter(parameters[key].annotation).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(f"environment {name}: {key}={value!r}: {message[0].lower()}{message[1:]}", f"change {key}") from None
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise ConfigError(
                f"environment {name} needs the option {key}", f"set data.settings.options.{key}, or give rollout --option {key}=…"
            )
    return ENVIRONMENTS[name](**options)
