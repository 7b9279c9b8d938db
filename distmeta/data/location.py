"""The location of a packed dataset. Its files are read with retries and a time limit."""

import asyncio
import contextlib
import errno
import io
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from distmeta.errors import DataError
from distmeta.files import read_bytes

PIPE = "pipe:"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# Exceptions of HTTP and S3 libraries for a broken connection that are not OSErrors. They are given by name, so that the libraries need not
# be imported.
_BROKEN = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError"}
_LONGEST_WAIT_S = 20.0
_SLOWEST = 100_000  # minimum rate of a file (bytes per second), after a grace of twice timeout_s
_PIECE = 1 << 24
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}

T = TypeVar("T")


def from_any_folder(location: str) -> str:
    """`location` for a process with another working folder: local paths become absolute."""
    return location if "://" in location or location.startswith(PIPE) else str(Path(location).absolute())


class Reading(NamedTuple):
    """Time limits and retries.

    A connection or the next byte may take `timeout_s` seconds (a `pipe:` command: all its output). A whole file may take twice that, and 10
    s per megabyte. There are `attempts` in all, seconds apart, after errors that may be temporary (HTTP 408, 429 and 5xx, a lost or stalled
    connection, a failed command).
    """

    timeout_s: float = 60.0
    attempts: int = 5


class Location:
    """A folder, a URL that fsspec reads (http, https, s3, gs), or `pipe:` and a shell command with `{name}` for the file's name."""

    def __init__(self, url: str, reading: Reading) -> None:
        """Raises DataError if `url` is of a kind that cannot be read here."""
        self.url = url if url.startswith(PIPE) else url.rstrip("/")
        self.reading = reading
        if not url.strip():
            raise DataError("the location of the dataset is empty", "give a folder, or a URL of http, https, s3 or gs")
        if url.startswith(PIPE) and "{name}" not in url:
            raise DataError(
                f"{url} does not say which file to read", "put {name} where the file's name belongs: 'pipe:curl -sf URL/{name}'"
            )
        try:
            self._filesystem, self._root = _filesystem(self.url, reading)
        except ImportError as error:
            package = _PACKAGES.get(url.partition("://")[0], "fsspec[full]")
            raise DataError(f"{url} cannot be read: {' '.join(str(error).split())}", f"pip install '{package}'") from None
        except Exception as error:  # each fsspec file system raises different exceptions, and some connect at once
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{url} cannot be read: {reason}", "give a folder, or a URL of http, https, s3 or gs") from None

    def path(self, name: str) -> str:
        """The file `name` as messages name it."""
        return _named(self.url, name)

    def local(self, name: str) -> Path | None:
        """The file's path if it is on a file system of this machine, else None."""
        return Path(_named(self._root, name)) if isinstance(self._filesystem, LocalFileSystem) else None

    def read(self, name: str, limit: int, within_s: float | None = None) -> bytes:
        """The whole file, of at most `limit` bytes, within `within_s` seconds (default: the time allowed for `limit` bytes).

        Raises FileNotFoundError, or DataError naming it, the reason and the attempts.
        """

        def get(path: str) -> bytes:
            local = self.local(name)
            if local is not None:
                return read_bytes(local, limit)
            content = io.BytesIO()
            self._copy(path, content, limit, within_s)
            return content.getvalue()

        return self._patiently(name, get)

    def size(self, name: str) -> int:
        """The file's size in bytes. Raises as `read`."""
        return self._patiently(name, self._size)

    def download(self, name: str, size: int, to: Path) -> None:
        """Write the file of `size` bytes to the path `to`. A file that ends early counts as a broken connection. Raises as `read`, and
        OSError if this machine has no space for it.
        """

        def get(path: str) -> None:
            with to.open("wb") as file:
                self._copy(path, file, size)
            if to.stat().st_size < size:
                raise ConnectionError(f"has {to.stat().st_size} bytes; the manifest says {size}")

        self._patiently(name, get)

    def _copy(self, path: str, to: IO[bytes], limit: int, within_s: float | None = None) -> None:
        """Write the file into `to`. Raises TooLarge beyond `limit` bytes, TooSlow after the time limit."""
        sink, filesystem = _Limited(to, limit), self._filesystem
        if isinstance(filesystem, AsyncFileSystem):
            stream = _stream_http if "http" in filesystem.protocol else _stream
            _within(within_s or 2 * self.reading.timeout_s + limit / _SLOWEST, filesystem.loop, partial(stream, filesystem, path, sink))
        else:
            filesystem.get_file(path, sink)

    def _size(self, path: str) -> int:
        if isinstance(self._filesystem, AsyncFileSystem):
            try:
                size = _within(2 * self.reading.timeout_s, self._filesystem.loop, partial(self._filesystem._size, path))
                if size is None:
                    raise ConnectionError("cannot be read: the server does not say how long it is; download it, and give its path")
                return int(size)
            except FileNotFoundError as error:
                cause = error.__cause__  # fsspec raises this for every HTTP failure
                lacking = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404
                if isinstance(cause, Exception) and not lacking:
                    raise cause from None
                raise
        return int(self._filesystem.size(path))

    def _patiently(self, name: str, action: Callable[[str], T]) -> T:
        attempts = 1

        def count(state: RetryCallState) -> None:
            nonlocal attempts
            attempts = state.attempt_number + 1

        retrying = Retrying(
            stop=stop_after_attempt(self.reading.attempts),
            wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT_S),
            retry=retry_if_exception(may_pass),
            before_sleep=count,
            reraise=True,
        )
        try:
            return retrying(action, _named(self._root, name))
        except FileNotFoundError:
            raise
        except Exception as error:  # each fsspec file system raises different exceptions
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            reason = _reason(error, self.reading)
            tries = f" ({attempts} attempts)" if attempts > 1 else ""
            raise DataError(f"{self.path(name)} {reason}{tries}", "check the location and your access to it") from None


class TooLarge(Exception):
    """A file is larger than expected."""


class TooSlow(Exception):
    """A file arrives, but too slowly."""


class _Limited:
    """A writable file with a limit on its size."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left, self._limit = file, limit, limit

    def write(self, content: bytes) -> int:
        self.check(len(content))
        self._left -= len(content)
        return self._file.write(content)

    def check(self, more: int) -> None:
        if more > self._left:
            raise TooLarge(f"has more than {self._limit} bytes")


def _within(seconds: float, loop: Any, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on fsspec's loop and return its result. Raises TooSlow after `seconds`."""

    async def limited() -> T:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await start()
        except TimeoutError:
            if limit.expired():
                raise TooSlow(f"cannot be read: it was incomplete after {seconds:.0f} s") from None
            raise

    return sync(loop, limited)


async def _stream(filesystem: Any, path: str, to: _Limited) -> None:
    """A file in pieces, so that memory does not grow with its size."""
    size = await filesystem._size(path)
    to.check(size)
    for start in range(0, size, _PIECE):
        to.write(await filesystem._cat_file(path, start=start, end=min(start + _PIECE, size)))


async def _stream_http(filesystem: Any, url: str, to: _Limited) -> None:
    """The same for a server that gives no length or a wrong one."""
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), **filesystem.kwargs) as answer:
        filesystem._raise_not_found_for_status(answer, url)
        async for piece in answer.content.iter_chunked(1 << 16):
            to.write(piece)


def may_pass(error: BaseException) -> bool:
    """Whether a retry may succeed."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError):
        return not isinstance(error, _LASTING) and error.errno not in NO_ROOM
    return any(kind.__name__ in _BROKEN for kind in type(error).__mro__)


def _reason(error: Exception, reading: Reading) -> str:
    if isinstance(error, TimeoutError):
        return f"cannot be read: no answer within {reading.timeout_s:g} s"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if type(error) in (ConnectionError, TooLarge, TooSlow) else f"cannot be read: {text}"


def _named(location: str, name: str) -> str:
    return location.replace("{name}", name) if location.startswith(PIPE) else f"{location}/{name}"


def _filesystem(url: str, reading: Reading) -> tuple[Any, str]:
    """The file system, with timeouts set and its own retries disabled, and its name for `url`."""
    if url.startswith(PIPE):
        return _Pipe(reading.timeout_s), url
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=reading.timeout_s, sock_read=reading.timeout_s)
        options = {"client_kwargs": {"timeout": timeout}}
    elif protocol == "s3":
        limits = {"connect_timeout": reading.timeout_s, "read_timeout": reading.timeout_s, "retries": {"max_attempts": 0}}
        options = {"config_kwargs": limits}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1
    return filesystem, path.rstrip("/")


class _Pipe:
    """Files printed by a shell command. The command comes from the user; file names consist of letters, digits, `.`, `_`, `-`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    protocol = "pipe"

    def size(self, command: str) -> int:
        counted = _Counted()
        self.get_file(command, counted)
        return counted.total

    def get_file(self, command: str, to: Any) -> None:
        """Run the command in a new session, so that it can be killed with its children if it takes too long or prints too much."""
        shell = subprocess.Popen(
            command.removeprefix(PIPE),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        ended = threading.Timer(self._timeout_s, os.killpg, (shell.pid, signal.SIGKILL))
        errors: deque[bytes] = deque(maxlen=1)
        assert shell.stdout is not None
        listener = threading.Thread(target=lambda: errors.extend(line for line in shell.stderr or () if line.strip()), daemon=True)
        try:
            ended.start()
            listener.start()
            while piece := shell.stdout.read(1 << 16):
                to.write(piece)
            status = shell.wait()
        finally:
            late = not ended.is_alive()
            ended.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            listener.join(1)
            shell.stdout.close()
        if late:
            raise TimeoutError
        if status:
            last = b"".join(errors).decode(errors="replace").strip()
            kind = FileNotFoundError if status == 127 else ChildProcessError
            raise kind(f"the command ended with status {status}: {last}")


class _Counted:
    """Counts what is written to it."""

    total = 0

    def write(self, content: bytes) -> int:
        self.total += len(content)
        return len(content)
