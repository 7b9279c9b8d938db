"""Checks between workers before they train together: kinds of machine, and frozen weights."""

from typing import Any

import torch.distributed as dist

from distmeta.errors import RunError


def check_machine(here: dict[str, str], there: dict[str, str], what: str) -> None:
    """Raises RunError naming the differences; `what` describes the origin of `there`."""
    differing = [f"{name} {there.get(name)} → {value}" for name, value in here.items() if there.get(name) != value]
    if differing:
        raise RunError(
            f"{what} ({', '.join(differing)}); equal bits cannot be guaranteed", "use machines of one kind, or give --allow-other-hardware"
        )


def check_frozen(hashes: list[str], rank: int) -> None:
    """Raises RunError if worker `rank` holds other frozen weights than worker 0."""
    if hashes[rank] != hashes[0]:
        raise RunError(
            f"worker {rank} holds other frozen weights than worker 0", "start again in a new run_folder that all workers can read"
        )


def gathered(here: Any, workers: int) -> list[Any]:
    """The values of all workers, by rank."""
    everywhere = [here] * workers
    if workers > 1:
        dist.all_gather_object(everywhere, here)
    return everywhere
