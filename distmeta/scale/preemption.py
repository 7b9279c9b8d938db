"""Detects early that this worker, or the node of a worker, is about to be shut down."""

import ctypes
import signal
import threading
import time

import ray.train

_LOOK_EVERY_S = 5.0


class Terminated(RuntimeError):
    """This worker was asked to end, and has written a checkpoint. Ray Train replaces it."""


class Notices:
    """The shutdown requests of one worker."""

    def __init__(self) -> None:
        self.terminated = False
        """Whether this process was sent SIGTERM."""
        self._looked = time.monotonic()
        self._nodes: set[str] = set()
        _in_main_thread(self._listen)

    def _listen(self) -> None:
        previous = signal.getsignal(signal.SIGTERM)

        def on_sigterm(*_: object) -> None:
            signal.signal(signal.SIGTERM, previous)  # a second one ends the process as usual
            self.terminated = True

        signal.signal(signal.SIGTERM, on_sigterm)

    def due(self) -> bool:
        """Whether it is time to check for nodes that will shut down. The check involves all workers and takes a few milliseconds."""
        return time.monotonic() - self._looked > _LOOK_EVERY_S

    def node_going(self) -> bool:
        """Whether Ray has newly announced the end of a worker's node. All workers must call this at the same step."""
        self._looked = time.monotonic()
        info = ray.train.get_preemption_info()
        going = set(info.preempted_node_to_ranks) if info is not None else set()
        new = going - self._nodes
        self._nodes |= going
        return bool(new)


def _in_main_thread(call: object) -> None:
    """Run this call in the main thread as soon as that executes Python code, because only there signal handlers can be set.

    Ray Train runs its workers' function in another thread; its main thread answers a poll every half second.
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
_kept: list[object] = []  # kept alive here, because C holds no reference to them
