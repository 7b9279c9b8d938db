"""Files read with limits: regular ones only, no larger than expected, JSON that is JSON."""

import json
import os
import stat
from pathlib import Path, PurePath
from typing import Any

TEXT_LIMIT = 1 << 20  # bytes of a config or a description
DATA_LIMIT = 1 << 30  # bytes of a manifest, or of a run's figures


def read_bytes(path: Path, limit: int = DATA_LIMIT) -> bytes:
    """The bytes of a regular file. Raises OSError, ValueError if it is another kind of file or holds more than `limit` bytes.

    A pipe or device, which could have no end, is not waited for.
    """
    if not isinstance(path, PurePath):  # in object storage
        if path.stat().st_size > limit:
            raise ValueError(_too_large(limit))
        return path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(_too_large(limit))
    return content


def _too_large(limit: int) -> str:
    return f"it has more than {limit / 2**20:g} MiB"


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The same as text. Raises ValueError (UnicodeDecodeError) also if it is not UTF-8."""
    return read_bytes(path, limit).decode("utf-8-sig")


def parse_json(content: bytes | str, finite: bool = True) -> Any:
    """What JSON text says. Raises ValueError if it is not JSON or nests too deep; NaN and infinities are JSON only if not `finite`."""
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path, limit: int = DATA_LIMIT, finite: bool = True) -> Any:
    """What a JSON file says. Raises OSError, ValueError."""
    return parse_json(read_bytes(path, limit), finite)
