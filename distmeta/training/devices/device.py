"""What distmeta asks of a kind of device."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch


class Device(ABC):
    """One device of a kind, such as the second GPU of a node."""

    backend: ClassVar[str]
    """torch.distributed's backend for tensors of this kind."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def choose(self, tf32: bool) -> None:
        """Set, for this process, how the device computes: the same bits at every repetition, and TF32 only if asked for.

        Call it before the process computes anything on the device.
        """

    @abstractmethod
    def description(self) -> dict[str, str]:
        """What the machine record says of this device's choices, as torch reports them now."""

    @abstractmethod
    def memory_in_use(self) -> int:
        """Bytes that this process holds now."""

    @abstractmethod
    def peak_memory(self) -> int:
        """The most bytes that this process has held."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, and all that it gives the device to do."""
        self.synchronise()
        start = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - start
