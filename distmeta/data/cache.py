"""Remote shards kept in a folder that all workers of a node share, so that each is downloaded once."""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

OWN_FOLDER = "distmeta-shards"
_MARK = "CACHEDIR.TAG"  # backup programs recognise a cache by this file: bford.info/cachedir
_MARKED = "Signature: 8a477f597d28d172789f06886806bc55\n# Shards that distmeta downloaded; they may be removed.\n"
_WHOLE, _PART = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{64}\.(\d{1,15})\.part")


class StoredBytes:
    """The content of an open file, sliced `[start:stop]` like `bytes`.

    Slices are read on demand, so the content takes no memory. It stays readable even if the file is removed.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
        weakref.finalize(self, os.close, self._descriptor)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")

    def hold(self) -> "StoredBytes":
        """Mark the file as in use, by a shared lock, for the lifetime of this object."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        return self

    def __len__(self) -> int:
        return os.fstat(self._descriptor).st_size

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start or 0, len(self) if part.stop is None else part.stop
        return os.pread(self._descriptor, stop - start, start)

    def sha256(self) -> str:
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def signature(self) -> tuple[int, int, int, int]:
        """Changes when the file changes: device, inode, time of the last change, size."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class _File(NamedTuple):
    used_ns: int
    size: int
    path: Path


class ShardCache:
    """Files named by their SHA-256. The least recently used ones are removed when space is needed; files in use are never removed.

    They are kept in a marked folder inside `folder`, and nothing else in `folder` is counted or removed. Processes can share it: there is a
    lock for each file, and one for the folder while files are removed. A file gets its name when it is complete.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder / OWN_FOLDER
        self._limit_bytes = limit_bytes

    def get(self, sha256: str, size: int, download: Callable[[Path], None], check: Callable[[StoredBytes], bool]) -> StoredBytes | None:
        """The file with that SHA-256 and size, `download`ed if it is missing or fails its `check`. None if there is no space for it.

        Raises what `download` raises, and OSError if the folder cannot be written or is not ours. `sha256` is 64 hexadecimal digits.
        """
        self._make_folder()
        path = self._folder / sha256
        with FileLock(self._lock(sha256)):
            with contextlib.suppress(FileNotFoundError):
                content = StoredBytes(path).hold()
                if check(content):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                    return content
                path.unlink()
            part = self._folder / f"{sha256}.{size}.part"
            part.unlink(missing_ok=True)  # left over from a killed process
            if not self._make_room(part, size):
                return None
            try:
                download(part)
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
            return StoredBytes(path).hold()

    def _make_folder(self) -> None:
        """Raises OSError if the folder holds files but not our mark, because they are not ours."""
        mark = self._folder / _MARK
        if mark.is_file():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if any(path.name != _MARK for path in self._folder.iterdir()) and not mark.exists():
            raise OSError(f"{self._folder} holds files but no {_MARK}, so it is not a cache of distmeta")
        mark.write_text(_MARKED)

    def _lock(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.lock"

    def _make_room(self, part: Path, size: int) -> bool:
        """Whether `size` bytes fit under the limit after removing unused files. If so, they are reserved under the name `part`."""
        with FileLock(self._folder / "room.lock"):
            files = sorted(self._files())
            total = sum(file.size for file in files)
            for file in files:
                if total + size <= self._limit_bytes:
                    break
                total -= file.size if self._remove(file.path) else 0
            fits = total + size <= self._limit_bytes
            if fits:
                part.touch()
        return fits

    def _files(self) -> Iterator[_File]:
        """Files that take space, or will after their download."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # renamed or removed by another process meanwhile
                status = path.lstat()
                part = _PART.fullmatch(path.name)
                if part:
                    yield _File(status.st_atime_ns, int(part[1]), path)
                elif _WHOLE.fullmatch(path.name):
                    yield _File(status.st_atime_ns, status.st_size, path)

    def _remove(self, path: Path) -> bool:
        """Remove a file unless it is in use or being downloaded. Returns whether it is gone."""
        try:
            if path.suffix == ".part":  # belongs to a killed process if its lock is free
                with FileLock(self._lock(path.name.partition(".")[0]), timeout=0):
                    path.unlink(missing_ok=True)
            else:
                with path.open("rb") as opened:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
        except (Timeout, BlockingIOError):
            return False
        except FileNotFoundError:
            pass
        return True
