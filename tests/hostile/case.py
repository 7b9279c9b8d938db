"""What a hostile input is: how it is laid into the working folder, what is asked, and what must be said."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Ask = Sequence[str] | Callable[[], Any]
"""The command's arguments, or a call in Python."""


class Case(NamedTuple):
    """`arrange` is called in the working folder, which `world` filled, and returns what is asked.

    `says` is a regular expression of the message (its value and rule), or of the answer if `code` is 0. `terminal` is what standard output
    is: "file", "closed pipe" or "full"; `env` are environment variables.
    """

    name: str
    arrange: Callable[[], Ask]
    says: str
    code: int | tuple[int, ...] = 1
    seconds: float = 60.0
    terminal: str = "file"
    env: dict[str, str] = {}  # noqa: RUF012 (never changed)
    listed: str = ""
    """What standard input holds."""
    real: bool = False
    """Whether the real command is asked as well."""
    verbatim: bool = False
    """Whether the answer, which goes to a file, holds names as they are: csv is for programs."""
    seldom: bool = False
    """Whether it is one of many of its kind, and runs only among the slow tests."""


class Outcome(NamedTuple):
    """What became of it: `code` is None if it ran past its time. `notes` are what `watch` saw; `left` whether processes were left."""

    code: int | None
    out: str
    err: str
    notes: list[str]
    left: bool
    seconds: float
