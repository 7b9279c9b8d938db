"""Checkpoints: what a run resumes from, as a sealed folder of safetensors and JSON."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distmeta.errors import RunError
from distmeta.learners.params import Params
from distmeta.training.model_folder import WEIGHTS, load_params, save_params
from distmeta.training.sealed import SealedFolder, seal

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
_LIBRARIES = ("distmeta", "torch", "numpy", "ray")


class Checkpoint(NamedTuple):
    """What a run needs to resume: the step, meta_params, the optimiser's tensors, and `progress` (plain values: best so far, bad steps)."""

    step: int
    meta_params: Params
    optimizer: Params
    progress: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


class CheckpointFolder(SealedFolder):
    """A checkpoint on a disk or in object storage."""

    @property
    def step(self) -> int:
        return int(self.name.rpartition("-")[2])

    def load(self) -> Checkpoint:
        """Raises RunError if the folder does not hold what a checkpoint holds."""
        try:
            content = json.loads((self.path / PROGRESS).read_text())
            meta_params, optimizer = (load_params(self.path / name) for name in (WEIGHTS, OPTIMIZER))
            return Checkpoint(content["step"], meta_params, optimizer, content["progress"])
        except (OSError, ValueError, KeyError, RunError) as error:
            raise self._unreadable(error) from None

    def written_on(self) -> dict[str, str]:
        """The machine that wrote it. Raises RunError."""
        try:
            # Checkpoints from before there were native kernels do not name them.
            return {"kernels": "torch"} | json.loads((self.path / PROGRESS).read_text())["machine"]
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> RunError:
        return RunError(f"checkpoint {self} cannot be read: {error}", "remove it; --resume then takes the one before")


def save(checkpoint: Checkpoint, folder: Path, written_on: dict[str, str]) -> None:
    """Write `checkpoint` into `folder`, on this machine, which must not exist yet; `written_on` is what `machine` says of it."""
    folder.mkdir(parents=True)
    save_params(checkpoint.meta_params, folder / WEIGHTS)
    save_params(checkpoint.optimizer, folder / OPTIMIZER)
    progress = {"step": checkpoint.step, "progress": checkpoint.progress, "machine": written_on}
    (folder / PROGRESS).write_text(json.dumps(progress, indent=1))
    seal(folder)


def machine(threads: int, kernels: str = "torch") -> dict[str, str]:
    """What the bits of a step depend on besides the config."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(threads),
        "kernels": kernels,
        **{name: version(name) for name in _LIBRARIES},
    }
