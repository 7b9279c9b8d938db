"""Standard output and standard error that never raise: if they cannot be written, the work continues.

A run of hours does not end because a terminal is closed, a pipe's reader exits, a disk is full, or an encoding lacks a character.
"""

import codecs
import errno
import io
import locale
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Generic, Self, TextIO, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from distmeta.masking import printable

_DEGRADE = "distmeta-degrade"
_WIDTH = 200  # columns of output that does not go to a terminal
_LINE_EVERY_S = 10.0
_READER_LEFT = (errno.EPIPE, errno.EIO)  # a pipe whose reader has exited, a terminal that was closed


class _Descriptor(io.RawIOBase):
    """Writes to a file descriptor, and closes it in the end if it is `owned`. Output that cannot be written is dropped; `lost` says why."""

    def __init__(self, descriptor: int, owned: bool) -> None:
        self._descriptor = descriptor
        self._owned = owned
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.lost = error
                return len(data)

    def close(self) -> None:
        if self._owned and not self.closed:
            os.close(self._descriptor)
        super().close()


def lasting(descriptor: int, encoding: str = "utf-8", owned: bool = False) -> TextIO:
    """A text file over a descriptor that never raises an OSError. Characters that the encoding lacks are escaped.

    `owned`: the descriptor is closed with the file.
    """
    raw = _Descriptor(descriptor, owned)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors=_DEGRADE, line_buffering=True)


def _degrade(error: UnicodeError) -> tuple[str | bytes, int]:
    """Undecodable bytes of a file name are written as they are; a character that the encoding lacks becomes an escape such as \\xe9."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(one)


codecs.register_error(_DEGRADE, _degrade)


def prepare() -> None:
    """Called first by the command line.

    Afterwards a closed terminal does not end the process, SIGTERM acts like Ctrl-C, output never raises, and all files are UTF-8. In a
    locale with another encoding, Python is started again in its UTF-8 mode.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Ray's processes inherit this
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that open MLflow runs are closed
    _open_closed()
    sys.stdout, sys.stderr = (_over(stream, descriptor) for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)))


def _open_closed() -> None:
    """Point closed standard descriptors at /dev/null. Otherwise the next file to be opened would take their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() takes the lowest free number


def _over(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        return lasting(descriptor)
    try:
        return lasting(stream.fileno(), stream.encoding)
    except OSError:  # an in-memory stream
        return stream


def lost_output() -> OSError | None:
    """Why results since the last call were not written to standard output. None if they were written, or if their reader had exited."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Descriptor):
        return None
    sys.stdout.flush()
    lost, raw.lost = raw.lost, None
    return lost if lost is not None and lost.errno not in _READER_LEFT else None


def console(file: TextIO) -> Console:
    """A console that prints data unchanged: brackets are not markup, and :smile: is not replaced."""
    width = None if file.isatty() else _WIDTH
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


L = TypeVar("L", Live, Progress)


class Display(Generic[L]):
    """Output that is redrawn in place on a terminal. Elsewhere a plain line is printed now and then; see `line_due`."""

    def __init__(self, file: TextIO, live: Callable[[Console], L]) -> None:
        """`live` receives the console and makes the redrawn output."""
        self.console = console(file)
        self.live: L = live(self.console)
        self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print lines of text above the redrawn output."""
        self.console.print("\n".join(map(printable, text.splitlines())), soft_wrap=True)

    def line_due(self, news: bool = False) -> float | None:
        """Seconds since the last plain line if another one is due, which is with news or after ten seconds. None on a terminal."""
        now = time.monotonic()
        seconds = now - self._line_at
        if self.console.is_terminal or not (news or seconds >= _LINE_EVERY_S):
            return None
        self._line_at = now
        return seconds
