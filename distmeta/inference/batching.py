"""Batches the requests of several threads, so that a network computes them together."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor


class _Request(NamedTuple):
    inputs: Tensor
    answer: "Future[Tensor]"


class Batching:
    """`compute`, (M, …) → (M, …), called by any number of threads. One thread computes at a time, for all requests that arrived meanwhile.

    At most `largest` inputs go through `compute` at once. A request never waits for others: a single request is computed alone.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], largest: int) -> None:
        self._compute, self._largest = compute, largest
        self._waiting: deque[_Request] = deque()
        self._computing = Lock()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Raises what `compute` raises."""
        request = _Request(inputs, Future())
        self._waiting.append(request)
        with self._computing:
            while not request.answer.done():
                self._answer(self._next())
        return request.answer.result()

    def _next(self) -> list[_Request]:
        """The oldest requests, up to a full batch. Called by one thread at a time."""
        taken = [self._waiting.popleft()]
        while self._waiting and sum(len(request.inputs) for request in taken) < self._largest:
            taken.append(self._waiting.popleft())
        return taken

    def _answer(self, requests: list[_Request]) -> None:
        try:
            together = torch.cat([request.inputs for request in requests])
            outputs = torch.cat([self._compute(part) for part in together.split(self._largest)])
            answers = outputs.split([len(request.inputs) for request in requests])
        except BaseException as error:
            for request in requests:
                request.answer.set_exception(error)
            return
        for request, answer in zip(requests, answers, strict=True):
            request.answer.set_result(answer)
