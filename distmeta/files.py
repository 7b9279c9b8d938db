"""Files read with limits: only regular files, of at most the expected size; JSON must be valid and of the expected type."""

import json
import os
import stat
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

TEXT_LIMIT = 1 << 20  # bytes of a config or a description
DATA_LIMIT = 1 << 30  # bytes of a manifest, or of a run's figures


def read_bytes(path: Path, limit: int = DATA_LIMIT) -> bytes:
    """The bytes of a regular file. Raises OSError, or ValueError if it is another kind of file or holds more than `limit` bytes.

    Pipes and devices are not opened, because reading them may never end.
    """
    if not isinstance(path, PurePath):
        return _read_object(path, limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(1 + min(limit, status.st_size or limit))  # files under /proc report a size of 0
    if len(content) > limit:
        raise ValueError(_too_large(limit))
    return content


def _read_object(path: Path, limit: int) -> bytes:
    """The bytes of an object in object storage."""
    try:
        if path.stat().st_size > limit:
            raise ValueError(_too_large(limit))
        return path.read_bytes()
    except (OSError, ValueError):
        raise
    except Exception as error:  # the store's client raises its own, for example without credentials
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{reason}; are its credentials in the environment (such as AWS_ACCESS_KEY_ID)?") from None


def _too_large(limit: int) -> str:
    return f"it has more than {limit / 2**20:g} MiB"


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The same as text. Raises ValueError (UnicodeDecodeError) also if it is not UTF-8."""
    return read_bytes(path, limit).decode("utf-8-sig")


def parse_json(content: bytes | str, finite: bool = True) -> Any:
    """The value of JSON text. Raises ValueError if it is not JSON or nests too deep. NaN and infinities are accepted only if `finite` is
    False.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError:
        raise ValueError("it nests too deep") from None


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def of_kind(kind: Any, content: Any) -> Any:
    """`content` unchanged, if it is of the type `kind` in pydantic's strict mode. Raises ValueError naming the place and the rule."""
    try:
        _adapter(kind).validate_python(content, strict=True)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise ValueError("it nests too deep") from None
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else str(first["msg"])) from None
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path, limit: int = DATA_LIMIT, finite: bool = True) -> Any:
    """The value in a JSON file. Raises OSError, ValueError."""
    return parse_json(read_bytes(path, limit), finite)
