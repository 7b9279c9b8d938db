"""Folders that are valid only if complete: `checkpoint.json`, written last, holds size and SHA-256 of every other file."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from distmeta.errors import RunError
from distmeta.training.storage import read_json, replacing, write_whole

SEAL = "checkpoint.json"


class _File(TypedDict):
    bytes: int
    sha256: str


class _Seal(TypedDict):
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], _File]


class SealedFolder:
    """A folder on a disk or in object storage that is written once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_whole(self) -> bool:
        """Whether the folder has its `checkpoint.json` and every file that it names, unchanged."""
        try:
            files = read_json(self.path / SEAL, _Seal)["files"]
            return all(
                (self.path / name).stat().st_size == file["bytes"] and sha256(self.path / name) == file["sha256"]
                for name, file in files.items()
            )
        except (OSError, RunError):
            return False

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """A new local folder to fill with files. At the end of the block it is sealed and replaces this one. If the block raises, nothing
        changes.
        """
        with replacing(self.path, SEAL) as new:
            yield new
            seal(new)

    def copy(self, other: "SealedFolder") -> None:
        """Replace this folder with a copy of `other` and its seal."""
        with replacing(self.path, SEAL) as new:
            for file in other.path.iterdir():
                (new / file.name).write_bytes(file.read_bytes())


def seal(folder: Path) -> None:
    """Write `checkpoint.json`, which makes the folder complete."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir()) if p.name != SEAL}
    write_whole(folder / SEAL, json.dumps({"files": files}, indent=1))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
