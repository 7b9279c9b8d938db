"""Where a packed dataset lies, and how its files are read from there: with patience, but never without end."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from distmeta.errors import DataError

PIPE = "pipe:"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What HTTP and S3 libraries call a broken connection, where it is no OSError. By name, so that none of them need be imported.
_BROKEN = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError"}
_LONGEST_WAIT_S = 20.0
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}

T = TypeVar("T")


class Reading(NamedTuple):
    """How long to wait for data: `timeout_s` seconds for a connection or the next byte (of a `pipe:` command: for its end), `attempts`
    in all, seconds apart, when an error may pass (HTTP 408, 429 and 5xx, a lost or stalled connection, a command that failed)."""

    timeout_s: float = 60.0
    attempts: int = 5


class Location:
    """A folder, a URL that fsspec reads (http, https, s3, gs), or `pipe:` and a shell command with `{name}` for the file's name."""

    def __init__(self, url: str, reading: Reading) -> None:
        """Raises DataError if `url` is of no kind that can be read here."""
        self.url = url if url.startswith(PIPE) else url.rstrip("/")
        self.reading = reading
        if url.startswith(PIPE) and "{name}" not in url:
            raise DataError(
                f"{url} does not say which file to read", "put {name} where the file's name belongs: 'pipe:curl -sf URL/{name}'"
            )
        try:
            self._filesystem, self._root = _filesystem(self.url, reading)
        except ImportError as error:
            package = _PACKAGES.get(url.partition("://")[0], "fsspec[full]")
            raise DataError(f"{url} cannot be read: {' '.join(str(error).split())}", f"pip install '{package}'") from None
        except ValueError as error:
            raise DataError(f"{url} cannot be read: {error}", "give a folder, or a URL of http, https, s3 or gs") from None

    def path(self, name: str) -> str:
        """How messages call the file `name`."""
        return _named(self.url, name)

    def local(self, name: str) -> Path | None:
        """The file's path where it lies on a file system of this machine."""
        return Path(_named(self._root, name)) if isinstance(self._filesystem, LocalFileSystem) else None

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError, or DataError naming it, the reason and the attempts."""
        return self._patiently(name, lambda path: self._filesystem.cat_file(path))

    def size(self, name: str) -> int:
        """The file's size in bytes. Raises as `read`."""
        return int(self._patiently(name, lambda path: self._filesystem.size(path)))

    def download(self, name: str, size: int, to: Path) -> None:
        """Write the file of `size` bytes to the path `to`; one that ends sooner counts as a broken connection.

        Raises as `read`, and OSError where this machine has no room for it.
        """

        def get(path: str) -> None:
            self._filesystem.get_file(path, str(to))
            if to.stat().st_size < size:
                raise ConnectionError(f"has {to.stat().st_size} bytes; the manifest says {size}")

        self._patiently(name, get)

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
        except Exception as error:  # every file system has exceptions of its own
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            reason = _reason(error, self.reading)
            tries = f" ({attempts} attempts)" if attempts > 1 else ""
            raise DataError(f"{self.path(name)} {reason}{tries}", "check the location and your access to it") from None


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
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
    return text if type(error) is ConnectionError else f"cannot be read: {text}"


def _named(location: str, name: str) -> str:
    return location.replace("{name}", name) if location.startswith(PIPE) else f"{location}/{name}"


def _filesystem(url: str, reading: Reading) -> tuple[Any, str]:
    """The file system, told to give up in time and to leave repeating to us, and what it calls `url`."""
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
    """Files as what a shell command prints. The command is the user's own; file names are letters, digits, `.`, `_`, `-`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def cat_file(self, command: str) -> bytes:
        return self._run(command, subprocess.PIPE)

    def size(self, command: str) -> int:
        return len(self.cat_file(command))

    def get_file(self, command: str, to: str) -> None:
        with open(to, "wb") as file:
            self._run(command, file)

    def _run(self, command: str, stdout: Any) -> bytes:
        """In a session of its own, so that a command that takes too long ends with everything it started."""
        shell = subprocess.Popen(
            command.removeprefix(PIPE),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            content, errors = shell.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
                shell.communicate()
        if shell.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            kind = FileNotFoundError if shell.returncode == 127 else ChildProcessError
            raise kind(f"the command ended with status {shell.returncode}: {last}")
        return content or b""
