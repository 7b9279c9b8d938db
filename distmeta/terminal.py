"""Standard output and standard error that fail nobody: where they cannot be written any more, or not in full, the work continues.

A terminal is closed, a pipe's reader ends, a disk is full, an encoding lacks a character: a run of hours does not end for any of these.
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
_WIDTH = 200  # columns where there is no terminal to fit into
_LINE_EVERY_S = 10.0
_READER_LEFT = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads any more, a terminal that was closed


class _Descriptor(io.RawIOBase):
    """Writes to a file descriptor, which ends with it if it is `owned`. What cannot be written is dropped; `lost` says why."""

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
    """Of a file name that is not text, its bytes; of a character that the encoding lacks, an escape such as \\xe9."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(one)


codecs.register_error(_DEGRADE, _degrade)


def prepare() -> None:
    """Called first by the command line: a closed terminal ends nothing, SIGTERM interrupts, output cannot raise, and all files are UTF-8.

    In a locale of another encoding, Python starts again in its UTF-8 mode.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Ray's processes inherit this
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was begun in MLflow is ended there
    _open_closed()
    sys.stdout, sys.stderr = (_over(stream, descriptor) for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)))


def _open_closed() -> None:
    """Let standard descriptors that were closed lead nowhere: the next file that is opened would take their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free


def _over(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        return lasting(descriptor)
    try:
        return lasting(stream.fileno(), stream.encoding)
    except OSError:  # a stream in memory
        return stream


def lost_output() -> OSError | None:
    """Why results since the last call were not written to standard output; None if they were, or if their reader had left."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Descriptor):
        return None
    sys.stdout.flush()
    lost, raw.lost = raw.lost, None
    return lost if lost is not None and lost.errno not in _READER_LEFT else None


def console(file: TextIO) -> Console:
    """A console that prints data as it is: brackets are no markup, and :smile: is no picture."""
    width = None if file.isatty() else _WIDTH
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


L = TypeVar("L", Live, Progress)


class Display(Generic[L]):
    """Something that is redrawn in place on a terminal. Elsewhere it is a plain line now and then: see `line_due`."""

    def __init__(self, file: TextIO, live: Callable[[Console], L]) -> None:
        """`live` makes what is redrawn, on the console that it is given."""
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
        """Lines of text, above what is redrawn."""
        self.console.print("\n".join(map(printable, text.splitlines())), soft_wrap=True)

    def line_due(self, news: bool = False) -> float | None:
        """Seconds since the last plain line if another is due now: never on a terminal, elsewhere with news or after ten seconds."""
        now = time.monotonic()
        seconds = now - self._line_at
        if self.console.is_terminal or not (news or seconds >= _LINE_EVERY_S):
            return None
        self._line_at = now
        return seconds
