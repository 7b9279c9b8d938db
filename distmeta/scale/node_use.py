"""The load of a worker's node, under the names that MLflow's pages show as system metrics."""

import time

import psutil
import torch

from distmeta.training.metrics_folder import Record

_EVERY_S = 10.0
_MB = 1e6


class NodeUse:
    """Samples of this node: CPU, memory, network since the sample before, and the GPU that this process uses, if it uses one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sampled = time.monotonic()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the next call returns the use since this one

    def sample(self) -> Record:
        """The values for a step's record; empty unless ten seconds have passed since the last sample.

        `sampled_at` is in seconds since 1970.
        """
        if time.monotonic() - self._sampled < _EVERY_S:
            return {}
        self._sampled = time.monotonic()
        memory, network, before = psutil.virtual_memory(), psutil.net_io_counters(), self._network
        self._network = network
        use = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.percent,
            "network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / _MB,
            "network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / _MB,
        }
        return {"sampled_at": round(time.time(), 3)} | {f"system/{name}": round(value, 3) for name, value in (use | self._gpu()).items()}

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        used, name = total - free, f"gpu_{self._device.index or 0}_memory_usage"
        return {f"{name}_megabytes": used / _MB, f"{name}_percentage": 100 * used / total}
