"""Fetches a dataset's files, complete and checked. Remote files are copied to the cache, a temporary file, or memory."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import Protocol

from distmeta.data.cache import ShardCache, StoredBytes
from distmeta.data.location import NO_ROOM, Location
from distmeta.data.traffic import TRAFFIC
from distmeta.errors import DataError
from distmeta.masking import printable

_log = logging.getLogger(__name__)


class Content(Protocol):
    """`bytes`, or an object that is sliced like them."""

    def __getitem__(self, part: slice, /) -> bytes: ...


class Fetcher:
    """Fetches files of one location. `cache`, if given, keeps those that are not on a file system of this machine."""

    def __init__(self, location: Location, cache: ShardCache | None) -> None:
        self._location = location
        self._cache = cache
        self._whole: set[tuple[int, int, int, int]] = set()  # signatures of files whose SHA-256 was right

    def fetch(self, name: str, size: int, sha256: str) -> Content:
        """The file `name`, of `size` bytes and that SHA-256, without taking memory.

        Without a cache, a remote file is copied to an unnamed temporary file, which disappears when it is no longer used. Raises
        FileNotFoundError, or DataError naming the file if it cannot be read or is not the one described.
        """
        try:
            local = self._location.local(name)
            if local is not None:
                content = StoredBytes(local)
                self._check(content, name, size, sha256)
                TRAFFIC.count(shards_local=1)
                return content
            return (
                self._from_cache(name, size, sha256) or self._from_temporary_file(name, size, sha256) or self._in_memory(name, size, sha256)
            )
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"{self._location.path(name)} cannot be read: {error}", "check the location and your access to it") from None

    def _from_cache(self, name: str, size: int, sha256: str) -> StoredBytes | None:
        """None if the cache fails or has no space. It is then not used again."""
        if self._cache is None:
            return None
        content, reason, downloaded = None, "its limit is full of shards in use", False

        def download(to: Path) -> None:
            nonlocal downloaded
            downloaded = True
            self._download(name, size, sha256, to)

        try:
            content = self._cache.get(sha256, size, download=download, check=lambda path: self._is_whole(path, name, size, sha256))
            TRAFFIC.count(shards_cache=int(content is not None and not downloaded))
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = str(error)
        if content is None and self._cache is not None:  # another thread may have logged this already
            self._cache = None
            _log.warning("continuing without the shard cache: %s", printable(reason))
        return content

    def _from_temporary_file(self, name: str, size: int, sha256: str) -> StoredBytes | None:
        """None if there is no space."""
        try:
            with tempfile.TemporaryDirectory(prefix="distmeta-") as folder:
                path = Path(folder) / name
                self._download(name, size, sha256, path)
                return StoredBytes(path)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            _log.warning("%s is kept in memory: %s", name, printable(str(error)))
            return None

    def _in_memory(self, name: str, size: int, sha256: str) -> bytes:
        content = self._location.read(name, size)
        TRAFFIC.count(shards_download=1, downloaded_bytes=len(content))
        self._compare(name, (len(content), hashlib.sha256(content).hexdigest()), (size, sha256))
        return content

    def _download(self, name: str, size: int, sha256: str, to: Path) -> None:
        self._location.download(name, size, to)
        TRAFFIC.count(shards_download=1, downloaded_bytes=size)
        self._check(StoredBytes(to), name, size, sha256)

    def _is_whole(self, content: StoredBytes, name: str, size: int, sha256: str) -> bool:
        try:
            self._check(content, name, size, sha256)
        except DataError:
            return False
        return True

    def _check(self, content: StoredBytes, name: str, size: int, sha256: str) -> None:
        """Compare with the expected size and SHA-256. An unchanged file is compared only once."""
        signature = content.signature()
        if signature not in self._whole:
            self._compare(name, (len(content), content.sha256() if len(content) == size else ""), (size, sha256))
            self._whole.add(signature)

    def _compare(self, name: str, actual: tuple[int, str], wanted: tuple[int, str]) -> None:
        path, remedy = self._location.path(name), "copy it again or pack again"
        if actual[0] != wanted[0]:
            raise DataError(f"shard {path} has {actual[0]} bytes; the manifest says {wanted[0]}", remedy)
        if actual != wanted:
            raise DataError(f"shard {path} does not match its SHA-256 in the manifest", remedy)
