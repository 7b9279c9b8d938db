"""Remote shards kept in a folder that all workers of a node share, so that each is downloaded once."""

import contextlib
import fcntl
import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout


class StoredBytes:
    """The content of an open file: sliced `[start:stop]` like `bytes`, but read when asked for, so that it takes no memory of this process.

    The content stays even if the name goes.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def hold(self) -> "StoredBytes":
        """Mark the file as in use, by a shared lock, for as long as this lives."""
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
        """Changes when the file does: device, inode, time of the last change, size."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class _File(NamedTuple):
    used_ns: int
    size: int
    path: Path


class ShardCache:
    """Files named by their SHA-256; those used least recently go when room is needed, those in use never.

    Safe between processes: a lock for each file, one for the folder while room is made, and files appear under their name when whole.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def get(self, sha256: str, size: int, download: Callable[[Path], None], check: Callable[[StoredBytes], bool]) -> StoredBytes | None:
        """The file of that SHA-256 and size, `download`ed if it is not here or fails its `check`; None where there is no room for it.

        Raises what `download` raises, and OSError if the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / sha256
        with FileLock(self._lock(sha256)):
            with contextlib.suppress(FileNotFoundError):
                content = StoredBytes(path).hold()
                if check(content):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                    return content
                path.unlink()
            part = self._folder / f"{sha256}.{size}.part"
            part.unlink(missing_ok=True)  # left by a process that was killed
            if not self._make_room(part, size):
                return None
            try:
                download(part)
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
            return StoredBytes(path).hold()

    def _lock(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.lock"

    def _make_room(self, part: Path, size: int) -> bool:
        """Whether `size` bytes fit under the limit, after removing what nobody uses; if so, they are reserved by the name `part`."""
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
        """What takes room, or will when its download ends."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # renamed or removed by another process meanwhile
                status = path.stat()
                if path.suffix == ".part":
                    yield _File(status.st_atime_ns, int(path.name.split(".")[1]), path)
                elif path.suffix != ".lock":
                    yield _File(status.st_atime_ns, status.st_size, path)

    def _remove(self, path: Path) -> bool:
        """Remove a file unless it is in use or being downloaded; whether it is gone."""
        try:
            if path.suffix == ".part":  # of a process that was killed, if its lock is free
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
