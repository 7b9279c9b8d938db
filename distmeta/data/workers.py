"""A function over many items in several processes, with the results in the items' order and few items under way at once."""

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
    """How many CPUs this process may use: not more than its affinity and the quota of its control group allow, and at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _cgroup_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]))


def _cgroup_quotas(membership: Path, mount: Path) -> Iterator[float]:
    """The CPUs that each control group above this process grants, as Linux writes them in version 2 (cpu.max) and 1 (cpu.cfs_*)."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers if controllers else mount
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container the path may be the host's, and only the mount itself is there
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
    """So many processes; with one, the work is done in this process. A context manager: on leaving it, they end.

    They also end when this process is killed. Functions and items are pickled, so a function must be a module's own. `remedy` says what
    to do where one of them was killed.
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
        """function(item) for every item, in order; at most two items a process are under way, so memory does not grow with the items.

        Raises what `function` raises, and DataError if a process was killed.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        try:
            yield from in_order(self._pool, function, items, 2 * self._processes)
        except BrokenProcessPool:
            raise DataError("a process was killed, as a system does that is out of memory", self._remedy) from None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the terminal
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
