"""Making things before they are asked for, in a thread of their own."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_AHEAD = 2  # things made before they are asked for

T = TypeVar("T")


def ahead(make: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
    """make(i) for every index, computed by one thread up to `_AHEAD` calls before they are asked for."""
    remaining = iter(indices)
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        try:
            pending.extend(thread.submit(make, i) for i in islice(remaining, _AHEAD))
            while pending:
                made = pending.popleft().result()
                pending.extend(thread.submit(make, i) for i in islice(remaining, 1))
                yield made
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
