"""Checkpoints (they resume) and the best model (it predicts): folders of safetensors and JSON that are whole or do not count.

`checkpoint.json` is written last and holds size and SHA-256 of every other file.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from safetensors.torch import save as serialised

from distmeta.errors import RunError
from distmeta.learners.params import Params
from distmeta.training.folder import remove, replacing, write_whole

SEAL = "checkpoint.json"
WEIGHTS = "meta_params.safetensors"
OPTIMIZER = "optimizer.safetensors"
MODEL = "model.json"
_LIBRARIES = ("distmeta", "torch", "numpy", "ray")


class Checkpoint(NamedTuple):
    """What a run needs to go on: the step, meta_params, the optimiser's tensors, and `progress` (plain values: best so far, bad steps)."""

    step: int
    meta_params: Params
    optimizer: Params
    progress: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def save(checkpoint: Checkpoint, folder: Path, threads: int) -> None:
    """Write `checkpoint` into `folder`, which must not exist yet."""
    folder.mkdir(parents=True)
    _save_params(checkpoint.meta_params, folder / WEIGHTS)
    _save_params(checkpoint.optimizer, folder / OPTIMIZER)
    progress = {"step": checkpoint.step, "progress": checkpoint.progress, "machine": machine(threads)}
    (folder / "progress.json").write_text(json.dumps(progress, indent=1))
    seal(folder)


def _save_params(params: Params, path: Path) -> None:
    # Not save_file: its errors do not say that the disk is full in a way that can be asked for.
    path.write_bytes(serialised({name: value.detach().contiguous() for name, value in params.items()}))


def load_params(path: Path) -> Params:
    """Raises RunError if the file does not hold tensors."""
    try:
        return deserialised(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}", "begin the run again in a new run_folder") from None


def seal(folder: Path) -> None:
    """Write `checkpoint.json`, after which the folder is whole."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir()) if p.name != SEAL}
    write_whole(folder / SEAL, json.dumps({"files": files}, indent=1))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether `folder` has its `checkpoint.json` and every file that it names, unchanged."""
    try:
        files = json.loads((folder / SEAL).read_text())["files"]
        return all((folder / name).stat().st_size == f["bytes"] and sha256(folder / name) == f["sha256"] for name, f in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    return next(filter(is_whole, _newest_first(run_folder)), None)


def thin_out(run_folder: Path, keep: int) -> None:
    """Remove all checkpoints of a run but the newest `keep` whole ones; none where none is whole."""
    folders = _newest_first(run_folder)
    kept = list(islice(filter(is_whole, folders), keep))
    for folder in folders if kept else []:
        if folder not in kept:
            remove(folder)


def _newest_first(run_folder: Path) -> list[Path]:
    return sorted((run_folder / "checkpoints").glob("step-*"), key=lambda folder: folder.name, reverse=True)


def take_over(other: Path, run_folder: Path) -> None:
    """Let a copy of another run's checkpoint stand for this run's own of the same step."""
    with replacing(run_folder / "checkpoints" / other.name, SEAL) as own:
        for file in other.iterdir():
            (own / file.name).write_bytes(file.read_bytes())


def load(folder: Path) -> Checkpoint:
    """Raises RunError if the folder does not hold what a checkpoint holds."""
    try:
        content = json.loads((folder / "progress.json").read_text())
        meta_params, optimizer = (load_params(folder / name) for name in (WEIGHTS, OPTIMIZER))
        return Checkpoint(content["step"], meta_params, optimizer, content["progress"])
    except (OSError, ValueError, KeyError, RunError) as error:
        raise RunError(f"checkpoint {folder} cannot be read: {error}", "remove it; --resume then takes the one before") from None


def machine(threads: int) -> dict[str, str]:
    """What the bits of a step depend on besides the config."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": str(threads),
        **{name: version(name) for name in _LIBRARIES},
    }


def machine_of(folder: Path) -> dict[str, str]:
    """The machine that wrote the checkpoint in `folder`."""
    return json.loads((folder / "progress.json").read_text())["machine"]


def save_best(meta_params: Params, description: dict[str, Any], run_folder: Path) -> None:
    """Replace `best/` by these meta_params and what `description` says of them."""
    with replacing(run_folder / "best", SEAL) as best:
        _save_params(meta_params, best / WEIGHTS)
        (best / MODEL).write_text(json.dumps(description, indent=1))
        seal(best)
