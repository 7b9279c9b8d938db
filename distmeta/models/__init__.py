"""Backbones: plain `nn.Module`s that map images (B, C, H, W) to logits (B, way)."""

from typing import Any

import torch
from torch import nn

from distmeta.models.conv4 import Conv4

MODELS: dict[str, type[nn.Module]] = {"conv4": Conv4}


def build_model(name: str, **sizes: Any) -> nn.Module:
    """The backbone `name` with its constructor's arguments, in the memory layout that convolutions are fastest in."""
    return MODELS[name](**sizes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
