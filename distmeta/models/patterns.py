"""Shell patterns over dotted names. They select parameters to adapt or meta-train, and layers for low-rank pairs."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from distmeta.errors import ConfigError


def matching(patterns: Sequence[str], names: Iterable[str], key: str, what: str = "parameter") -> list[str]:
    """The `names` that match one of `patterns`, in their order. Raises ConfigError, with similar names, if a pattern matches none. `what`
    is the kind of the named things.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ConfigError(
                f"{key}={pattern!r} matches no {what} of the network",
                f"similar names: {', '.join(near)}" if near else f"leave it out: the network has no {what}",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
