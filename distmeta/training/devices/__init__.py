"""Settings of devices that torch's defaults would leave open: one file for each kind of device.

A kind of device is a `Device`; `device_of` returns it. It answers everything that depends on the kind: how to make results repeatable, what
of that goes into the machine record, the collective backend, memory and timing. A third kind is one more file and a line in `KINDS`.
"""

import torch

from distmeta.training.devices.cpu import CPU
from distmeta.training.devices.cuda import CUDA
from distmeta.training.devices.device import Device

KINDS: dict[str, type[Device]] = {"cpu": CPU, "cuda": CUDA}

__all__ = ["KINDS", "Device", "device_of"]


def device_of(device: torch.device) -> Device:
    return KINDS[device.type](device)
