"""A worker's series in Ray's metrics. Every node exports them for Prometheus, where their names begin with `ray_`.

Each series has the labels run, trial (empty outside a sweep) and rank. Only rank 0 reports what all workers share.
"""

import time
from collections import Counter as Counts
from typing import Any

from ray.util.metrics import Counter, Gauge

from distmeta.data.traffic import TRAFFIC
from distmeta.training.devices import Device
from distmeta.training.labels import labels
from distmeta.training.metrics_folder import Record
from distmeta.training.run_folder import RunFolder

_EVERY_S = 1.0  # Ray collects them every ten seconds, so more would be lost work

# name → description, additional label
COUNTERS = {
    "distmeta_steps": ("Outer updates of the run, as this worker made them.", None),
    "distmeta_episodes": ("Training episodes that this worker has adapted to.", None),
    "distmeta_step_seconds": ("Seconds of this worker's steps, by what they went into.", "part"),
    "distmeta_read_bytes": ("Bytes of encoded images that were read, and of shards that were downloaded.", "kind"),
    "distmeta_shards": ("Shards opened, by where they came from: local, cache or download.", "source"),
}
GAUGES = {
    "distmeta_last_step": ("The last step made.", None),
    "distmeta_planned_steps": ("The step at which the run ends.", None),
    "distmeta_meta_loss": ("Meta-loss of the last step.", None),
    "distmeta_validation_score": ("Score of the last validation; higher is better.", None),
    "distmeta_restarts": ("How often the run has started again, after a failure or by --resume.", None),
    "distmeta_skipped_steps": ("Steps without an update so far, because the meta-gradient was not finite.", None),
    "distmeta_bad_images": ("Images so far that did not decode; others of their class took their place.", None),
    "distmeta_memory_bytes": ("Memory that this worker's process holds, on a GPU if it has one.", "device"),
}


class WorkerMetrics:
    """One worker's series. `add` costs microseconds a step; the sums are sent to Ray once a second."""

    def __init__(self, run_folder: RunFolder, rank: int, device: Device, episodes: int) -> None:
        """`episodes`: how many of each step's are this worker's."""
        run, trial = labels(run_folder)
        own = {"run": run, "trial": trial, "rank": str(rank)}
        self._counters = {name: _made(Counter, name, COUNTERS[name], own) for name in COUNTERS}
        self._gauges = {name: _made(Gauge, name, GAUGES[name], own) for name in GAUGES}
        self._leads = rank == 0
        self._device = device
        self._episodes = episodes
        self._grown: Counts[tuple[str, str | None]] = Counts()  # since the last report to Ray
        self._latest: dict[str, float] = {}
        self._skipped = 0
        self._read: Counts[str] = Counts()
        self._told = 0.0

    def begin(self, planned_steps: int, restarts: int) -> None:
        """Rank 0 reports the run's last step and its number of restarts."""
        self._latest |= {"distmeta_planned_steps": planned_steps, "distmeta_restarts": restarts}

    def add(self, record: Record) -> None:
        """A step's record."""
        self._grown["distmeta_steps", None] += 1
        self._grown["distmeta_episodes", None] += self._episodes
        for key, value in record.items():
            if key.startswith("time/"):
                self._grown["distmeta_step_seconds", key.removeprefix("time/")] += value
        if self._leads:
            self._skipped += "bad_slot" in record
            self._latest |= {"distmeta_last_step": record["step"], "distmeta_skipped_steps": self._skipped}
            figures = {"meta_loss": record.get("meta_loss"), "validation_score": record.get("validation", {}).get("score")}
            self._latest |= {f"distmeta_{name}": value for name, value in figures.items() if value is not None}
        if time.monotonic() - self._told > _EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Send the sums to Ray."""
        self._told = time.monotonic()
        read = TRAFFIC.so_far()
        grown, self._read = read - self._read, read
        self._grown["distmeta_read_bytes", "image"] += grown["image_bytes"]
        self._grown["distmeta_read_bytes", "download"] += grown["downloaded_bytes"]
        for source in ("local", "cache", "download"):
            self._grown["distmeta_shards", source] += grown[f"shards_{source}"]
        for (name, value), amount in self._grown.items():
            if amount > 0:
                self._counters[name].inc(amount, _tags(COUNTERS[name], value))
        self._grown.clear()
        self._latest["distmeta_bad_images"] = read["bad_images"]
        self._latest["distmeta_memory_bytes"] = self._device.memory_in_use()
        for name, level in self._latest.items():
            self._gauges[name].set(level, _tags(GAUGES[name], self._device.device.type))


def _made(kind: Any, name: str, told: tuple[str, str | None], labels: dict[str, str]) -> Any:
    description, further = told
    return kind(name, description, (*labels, *([further] if further else []))).set_default_tags(labels)


def _tags(told: tuple[str, str | None], value: str | None) -> dict[str, str] | None:
    return {told[1]: value} if told[1] and value else None
