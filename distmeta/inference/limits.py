"""Limits of one request, so that a request cannot occupy a server without end. Each limit is an environment variable of the server."""

import os
from numbers import Integral
from typing import Any, NamedTuple

from distmeta.errors import ConfigError, DataError

_REMEDY = "ask for less, or set the environment variable {variable} where the model runs"


class Limits(NamedTuple):
    """Maximum inner steps of an adaptation and trajectories per step; maximum images, total pixels and total bytes of a request."""

    inner_steps: int = 1000
    trajectories: int = 10_000
    images: int = 10_000
    pixels: int = 1_000_000_000
    bytes: int = 256 << 20

    def check(self, name: str, value: Any) -> None:
        """Raises DataError if `value` is not a whole number, or exceeds the limit `name`."""
        limit, what = getattr(self, name), name.replace("_", " ")
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise DataError(f"{value!r:.60} {what}; a whole number is needed", "give a whole number")
        if value > limit:
            raise DataError(f"{value:,} {what}; at most {limit:,} are allowed", _REMEDY.format(variable=variable(name)))


def variable(name: str) -> str:
    """The environment variable that sets the limit `name`, such as DISTMETA_MAX_INNER_STEPS."""
    return f"DISTMETA_MAX_{name.upper()}"


def limits() -> Limits:
    """The limits from environment variables. Raises ConfigError if one of them is not a positive whole number."""
    given = {name: os.environ[variable(name)] for name in Limits._fields if variable(name) in os.environ}
    for name, text in given.items():
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 19 and int(text) > 0):
            raise ConfigError(f"{variable(name)}={text!r} is not a positive whole number", f"set it to a number, or unset {variable(name)}")
    return Limits(**{name: int(text) for name, text in given.items()})
