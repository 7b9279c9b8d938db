"""Folders on a file system or in object storage, with pathlib's interface."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import IO, Any, cast

from upath import UPath

from distmeta import files
from distmeta.errors import ConfigError, RunError

LEASE = "lease.json"
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:[A-Za-z0-9:._-]{1,255}")
_S3 = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}


def folder_at(location: str) -> Path:
    """The folder at a path, made absolute, or at a URL that fsspec writes to (s3, gs). Raises ConfigError for any other.

    For a URL the result is not a `Path` but supports the same methods used here. Credentials come from the environment.
    """
    protocol, is_url, _ = location.partition("://")
    if not is_url:
        return Path(location).absolute()
    bucket = location.removeprefix(f"{protocol}://").partition("/")[0]
    if protocol in ("s3", "gs") and not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"run_folder={location} cannot be used: a bucket's name holds only letters, digits, '.', '_' and '-'",
            "give s3://BUCKET/FOLDER, and credentials in the environment (AWS_ACCESS_KEY_ID)",
        )
    options: dict[str, Any] = {"use_listings_cache": False}  # other machines write there too
    try:
        folder = UPath(location.rstrip("/"), **options | (_S3 if protocol == "s3" else {}))
        if "http" in folder.fs.protocol:
            raise ValueError("nothing can be written there")
        return cast(Path, folder)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"run_folder={location} cannot be used: {reason}", "give a folder, or a URL of s3 or gs") from None


def on_disk(folder: Path) -> bool:
    """Whether it is on a file system of this machine."""
    return isinstance(folder, PurePath)


def check_writable(folder: Path) -> None:
    """Raises ConfigError unless files can be written into `folder`."""
    probe = folder / ".distmeta"
    try:
        if on_disk(folder):  # in object storage this would create a bucket
            folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # each fsspec file system raises different exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"run_folder {folder} cannot be written: {reason}", "check the location and your access to it") from None


def is_empty(folder: Path) -> bool:
    """Whether it does not exist, or holds at most a lease."""
    return not folder.exists() or all(path.name == LEASE for path in folder.iterdir())


def write_whole(path: Path, text: str) -> None:
    """Write `text` to a file atomically."""
    if not on_disk(path):
        path.write_text(text)  # object storage never keeps part of an object
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read_json(path: Path, kind: Any) -> Any:
    """The value of the JSON file at `path`, of the type `kind`. Raises FileNotFoundError, or RunError if the file is damaged or has a
    format that this version of distmeta does not know.
    """
    try:
        content = files.read_json(path, finite=False)
    except ValueError as error:
        raise damaged(path, error) from None
    try:
        return files.of_kind(kind, content)
    except ValueError as error:
        raise unknown_content(path, str(error)) from None


def read_json_if_there(path: Path, kind: Any) -> Any:
    """The same, or None if the file does not exist."""
    return read_json(path, kind) if path.exists() else None


@contextmanager
def understood(folder: object) -> Iterator[None]:
    """Errors in the block, caused by unexpected values in a run folder's files, become a RunError about the folder."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise RunError(
            f"{folder} holds something that distmeta {version('distmeta')} does not understand: {' '.join(str(error).split())[:300]!r}",
            "update distmeta if a newer one wrote it; else restore it from a copy",
        ) from error


def damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged: {error}", "restore it from a copy, or start the run again in a new run_folder")


def unknown_content(path: Path, reason: str) -> RunError:
    """The error for an undamaged file of a run folder whose format this version of distmeta does not know."""
    return RunError(
        f"{path} cannot be read by distmeta {version('distmeta')}: {reason}",
        "update distmeta if a newer one wrote it; else restore it from a copy",
    )


def remove(folder: Path) -> None:
    """Remove `folder` (or a file) with all its contents, if it exists."""
    if on_disk(folder):
        shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)
    elif folder.exists():
        cast(UPath, folder).fs.rm(cast(UPath, folder).path, recursive=True)


@contextmanager
def replacing(folder: Path, last: str) -> Iterator[Path]:
    """A new local folder to fill with files, which replaces `folder` at the end of the block.

    A kill leaves either the old or the new folder. In object storage it may leave an incomplete one, but then without the file `last`,
    which is written last.
    """
    if on_disk(folder):
        building, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        if folder.exists():
            os.rename(folder, old)
        os.rename(building, folder)
        shutil.rmtree(old, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="distmeta-") as scratch:
        yield Path(scratch)
        remove(folder)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == last):
            (folder / file.name).write_bytes(file.read_bytes())


@contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """A local file whose bytes are appended to `path` at the end of the block."""
    if on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        try:
            yield file
        finally:
            file.seek(0)
            before = path.read_bytes() if path.exists() else b""
            path.write_bytes(before + file.read())
