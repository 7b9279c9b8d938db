"""CPUs: with a fixed number of threads, torch's operations are repeatable without further settings."""

import resource
import sys

import torch
from torch import nn

from distmeta.training.devices.device import Device


class CPU(Device):
    backend = "gloo"

    def place(self, network: nn.Module, dtype: torch.dtype) -> None:
        network.to(self.device, dtype)  # networks are constructed in this layout

    def choose(self, tf32: bool) -> None:
        pass

    def description(self) -> dict[str, str]:
        return {}

    def memory_in_use(self) -> int:
        import psutil  # imported here, so that a bench on a GPU does not need it

        return psutil.Process().memory_info().rss

    def peak_memory(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def synchronise(self) -> None:
        pass
