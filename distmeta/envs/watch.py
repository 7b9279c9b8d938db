"""Calls into foreign code that may hang. They run in one thread, which is abandoned if it makes no progress."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")


class Hung(Exception):
    """A call made no progress within its time limit."""


class Watch:
    """Runs calls one after another in a daemon thread, always the same one, so that a library may depend on its thread.

    A long call increases `progress` now and then.
    """

    def __init__(self) -> None:
        self.progress = 0
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], R], seconds: float) -> R:
        """Run `call` and return its result or raise its exception. Raises Hung if it neither ends nor increases `progress` within the time
        limit (seconds).
        """
        if self._thread is None or not self._thread.is_alive():  # no thread yet, or this process was forked
            self._calls = queue.SimpleQueue()
            self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="environments")
            self._thread.start()
        answer: Future[R] = Future()
        before = self.progress
        self._calls.put((call, answer))
        while True:
            try:
                return answer.result(seconds)
            except TimeoutError:
                if answer.done():  # the call raised this itself
                    raise
                if self.progress == before:
                    self._thread = None
                    raise Hung from None
                before = self.progress


def _serve(calls: "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]") -> None:
    while True:
        call, answer = calls.get()
        try:
            answer.set_result(call())
        except BaseException as error:  # any exception is passed to the caller
            answer.set_exception(error)
