"""What this process has read from packed datasets so far: counts for those who watch a run."""

from collections import Counter
from threading import Lock


class Traffic:
    """Counts that only grow. Safe between threads.

    `image_bytes`: encoded images handed to the decoder. `bad_images`: those that did not decode. `downloaded_bytes`: shards brought to this
    machine. `shards_local`, `shards_cache`, `shards_download`: shards opened, by where they came from (the cache is the node's).
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, **amounts: int) -> None:
        with self._lock:
            self._counts.update(amounts)

    def so_far(self) -> Counter[str]:
        with self._lock:
            return self._counts.copy()


TRAFFIC = Traffic()
"""This process's own."""
