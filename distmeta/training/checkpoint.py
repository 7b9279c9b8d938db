"""Checkpoints, from which a run resumes: sealed folders of safetensors and JSON."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import torch
from pydantic import Field
from typing_extensions import TypedDict

from distmeta.errors import RunError
from distmeta.learners.params import Params
from distmeta.training.model_folder import WEIGHTS, load_params, save_params
from distmeta.training.sealed import SealedFolder, seal
from distmeta.training.storage import read_json

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
_LIBRARIES = ("distmeta", "torch", "numpy", "ray")


class Checkpoint(NamedTuple):
    """The state of a run: step, meta_params, the optimiser's tensors, and `progress` (plain values: best so far, bad steps)."""

    step: int
    meta_params: Params
    optimizer: Params
    progress: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


class _Best(TypedDict):
    best_step: NotRequired[Annotated[int, Field(ge=0)]]
    best_score: NotRequired[float | None]
    bad_steps: NotRequired[Annotated[int, Field(ge=0)]]
    largest: NotRequired[float | None]


class _Progress(TypedDict):
    step: Annotated[int, Field(ge=0, le=10**9)]
    progress: _Best
    machine: dict[str, str]


class CheckpointFolder(SealedFolder):
    """A checkpoint on a disk or in object storage."""

    @property
    def step(self) -> int:
        return int(self.name.rpartition("-")[2])

    def load(self) -> Checkpoint:
        """Read the checkpoint. Raises RunError if the folder does not hold one."""
        try:
            content = read_json(self.path / PROGRESS, _Progress)
            meta_params, optimizer = (load_params(self.path / name) for name in (WEIGHTS, OPTIMIZER))
            return Checkpoint(content["step"], meta_params, optimizer, content["progress"])
        except (OSError, RunError) as error:
            raise self._unreadable(error) from None

    def written_on(self) -> dict[str, str]:
        """The machine that wrote it. Raises RunError."""
        try:
            # Checkpoints written before native kernels existed do not name kernels.
            return {"kernels": "torch"} | read_json(self.path / PROGRESS, _Progress)["machine"]
        except (OSError, RunError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> RunError:
        reason = error.message if isinstance(error, RunError) else error
        return RunError(f"checkpoint {self} cannot be read: {reason}", "remove it; --resume then uses the checkpoint before it")


def save(checkpoint: Checkpoint, folder: Path, written_on: dict[str, str]) -> None:
    """Write `checkpoint` into the new local folder `folder`; `written_on` is the record that `machine` returns."""
    folder.mkdir(parents=True)
    save_params(checkpoint.meta_params, folder / WEIGHTS)
    save_params(checkpoint.optimizer, folder / OPTIMIZER)
    progress = {"step": checkpoint.step, "progress": checkpoint.progress, "machine": written_on}
    (folder / PROGRESS).write_text(json.dumps(progress, indent=1))
    seal(folder)


def machine(threads: int, kernels: str = "torch") -> dict[str, str]:
    """What the bits of a step depend on, besides the config."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(threads),
        "kernels": kernels,
        **{name: version(name) for name in _LIBRARIES},
    }
