"""NVIDIA GPUs: deterministic algorithms of cuDNN and cuBLAS, never chosen by timing, and TF32 only on request."""

import os
from typing import Any

import torch
from torch import nn

from distmeta.training.devices.device import Device

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class CUDA(Device):
    """torch only warns about an operation without a deterministic algorithm.

    Raising would refuse 2×2 max-pooling. torch lists its gradient because windows may overlap; here they never do, so no element receives
    two additions.
    """

    backend = "nccl"

    def place(self, network: nn.Module, dtype: torch.dtype) -> None:
        # channels outermost: tasks batched by vmap become grouped convolutions, which need 1.7 times as long with the channels innermost
        network.to(self.device, dtype, memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def choose(self, tf32: bool) -> None:
        backends: Any = torch.backends
        # unless its workspace is fixed, cuBLAS chooses algorithms by the free memory (cuBLAS documentation, "Results reproducibility").
        os.environ.setdefault(_WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        finding_bugs: Any = torch.utils.deterministic
        finding_bugs.fill_uninitialized_memory = False  # filling costs a pass over every new tensor
        backends.cudnn.deterministic = True
        backends.cudnn.benchmark = False
        backends.cudnn.allow_tf32 = tf32
        backends.cuda.matmul.allow_tf32 = tf32

    def description(self) -> dict[str, str]:
        backends: Any = torch.backends
        return {
            "gpu": torch.cuda.get_device_name(self.device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(backends.cudnn.version()),
            "deterministic": str(
                torch.are_deterministic_algorithms_enabled() and backends.cudnn.deterministic and not backends.cudnn.benchmark
            ),
            "tf32": str(backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32),
            "cublas_workspace": os.environ.get(_WORKSPACE, "not set"),
        }

    def memory_in_use(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)
