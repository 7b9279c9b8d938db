"""What a device computes with is chosen here, not left to torch's defaults: one file for each kind of device.

A kind of device is a `Device`; `device_of` finds it. All that depends on the kind is asked of it: how to make its results repeatable,
what of that belongs in the machine record, its collective backend, memory and timing. A third kind is one more file and a line in `KINDS`.
"""

import torch

from distmeta.training.devices.cpu import CPU
from distmeta.training.devices.cuda import CUDA
from distmeta.training.devices.device import Device

KINDS: dict[str, type[Device]] = {"cpu": CPU, "cuda": CUDA}

__all__ = ["KINDS", "Device", "device_of"]


def device_of(device: torch.device) -> Device:
    return KINDS[device.type](device)
