"""Hearing in time that this worker, or a node under one of the workers, is about to go."""

import ctypes
import signal
import threading
import time

import ray.train

_LOOK_EVERY_S = 5.0


class Terminated(RuntimeError):
    """This worker was told to end, and has left a checkpoint. Ray Train replaces it."""


class Notices:
    """What one worker has been told."""

    def __init__(self) -> None:
        self.terminated = False
        """Whether this process was sent SIGTERM."""
        self._looked = time.monotonic()
        self._nodes: set[str] = set()
        _in_main_thread(self._listen)

    def _listen(self) -> None:
        previous = signal.getsignal(signal.SIGTERM)

        def on_sigterm(*_: object) -> None:
            signal.signal(signal.SIGTERM, previous)  # a second one ends the process as ever
            self.terminated = True

        signal.signal(signal.SIGTERM, on_sigterm)

    def due(self) -> bool:
        """Whether it is time to look whether a node is going: looking takes all workers, and a few milliseconds."""
        return time.monotonic() - self._looked > _LOOK_EVERY_S

    def node_going(self) -> bool:
        """Whether Ray has announced the end of a node under one of the workers, and has not before. All workers must ask at once."""
        self._looked = time.monotonic()
        info = ray.train.get_preemption_info()
        going = set(info.preempted_node_to_ranks) if info is not None else set()
        new = going - self._nodes
        self._nodes |= going
        return bool(new)


def _in_main_thread(call: object) -> None:
    """Have the main thread make this call as soon as it runs Python again: only there may signal handlers be set.

    Ray Train runs its workers' function in another thread, and its main thread answers a poll every half second.
    """
    if threading.current_thread() is threading.main_thread():
        call()  # type: ignore[operator]
        return

    def pending(_: object) -> int:
        call()  # type: ignore[operator]
        return 0

    _kept.append(_Pending(pending))
    ctypes.pythonapi.Py_AddPendingCall(_kept[-1], None)


_Pending = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_kept: list[object] = []  # C holds no reference to them
