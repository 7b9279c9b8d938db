"""The interface of a kind of device."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn


class Device(ABC):
    """One device of a kind, such as the second GPU of a node."""

    backend: ClassVar[str]
    """torch.distributed's backend for tensors of this kind."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def place(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Move `network` to the device and to `dtype`, in the memory layout that its convolutions are fastest in there."""

    @abstractmethod
    def choose(self, tf32: bool) -> None:
        """Make this process's results on the device repeatable to the bit, and allow TF32 only on request. Call it before the process
        computes anything on the device.
        """

    @abstractmethod
    def description(self) -> dict[str, str]:
        """The device's settings for the machine record, as torch reports them now."""

    @abstractmethod
    def memory_in_use(self) -> int:
        """Bytes that this process holds now."""

    @abstractmethod
    def peak_memory(self) -> int:
        """The largest number of bytes that this process has held."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that `work` takes, including the work it queues on the device."""
        self.synchronise()
        start = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - start
