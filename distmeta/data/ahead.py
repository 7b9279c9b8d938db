"""Computes items ahead of their use, a few at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_AHEAD = 2  # items computed ahead of their use

T = TypeVar("T")
R = TypeVar("R")


def in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
    """function(item) for every item, in order, computed by `pool`. At most `most` of them are in progress or waiting to be taken."""
    remaining = iter(items)
    pending: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(remaining, most))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
        yield result


def ahead(make: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
    """make(i) for every index, computed by one thread at most `_AHEAD` calls ahead of their use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        try:
            yield from in_order(thread, make, indices, _AHEAD)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
