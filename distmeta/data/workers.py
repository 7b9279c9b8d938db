"""Maps a function over items in several processes. Results keep the items' order, and few items are in progress at once."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from distmeta.data.ahead import in_order
from distmeta.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus() -> int:
    """The number of CPUs this process may use: the minimum of its affinity and the quotas of its control groups, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _cgroup_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]))


def _cgroup_quotas(membership: Path, mount: Path) -> Iterator[float]:
    """The CPU quota of each control group above this process, in Linux's version 2 (cpu.max) and 1 (cpu.cfs_*)."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container the path may be the host's, and only the mount itself exists
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if float(quota) > 0:
                    yield float(quota) / float(period)
            if folder == root:
                break


class Workers:
    """A pool of processes. With one process, the work is done in this process. Use it as a context manager: the processes end with the
    block, and also if this process is killed. Functions and items are pickled, so a function must be defined at a module's top level.
    `remedy` is the advice if a process is killed.
    """

    def __init__(self, processes: int, remedy: str) -> None:
        self._processes = processes
        self._remedy = remedy
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            # The server imports torch once and forks workers that share it; it has no threads, so forking it is safe.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["distmeta.data.pack"])
            self._pool = ProcessPoolExecutor(processes, context, initializer=_start_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """function(item) for every item, in order. At most two items per process are in progress, so memory does not grow with the items.

        Raises what `function` raises, and DataError if a process was killed.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        try:
            yield from in_order(self._pool, function, items, 2 * self._processes)
        except BrokenProcessPool:
            raise DataError("a process was killed, probably because memory ran out", self._remedy) from None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
