"""How many steps of a config fit into a time, on an idle machine.

    python tests/bench/steps.py configs/omniglot_5way_1shot_maml.yaml --minutes 12 [--set KEY=VALUE …]

Prints that number alone: `--set outer.steps=$(python tests/bench/steps.py CONFIG --minutes 12)` trains for twelve minutes. Validations,
the test and the start of Ray are not included.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from distmeta.assembly.build import use_kernels
from distmeta.assembly.run import Run
from distmeta.config import Config, load_config
from distmeta.learners.allocator import ALLOCATOR

BESIDE_S = 0.006
"""What a step needs beside its meta-gradients (seconds): the sum over workers, the update, its record."""


def step_seconds(config: Config) -> float:
    """Median processor time of a worker's share of a step, and BESIDE_S; a busy machine does not change it."""
    torch.set_num_threads(1)
    kernels = "torch" if config.train.kernels == "torch" else "native"
    run = Run.of(config).on("cpu", kernels)
    use_kernels(run.config, run.learner, config.train.weights)  # torch's where native ones cannot be built, as `auto` does
    domain, learner, params = run.domain, run.learner, run.start()
    batches = domain.training(range(config.outer.meta_batch_size // config.train.most), 0)
    times = []
    for _ in range(12):
        batch = next(batches)
        start = time.process_time()
        learner.slot_gradients(params, batch)
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2] + BESIDE_S


def steps_in(config: Config, minutes: float) -> int:
    return max(1, round(60 * minutes / step_seconds(config)))


def with_allocator() -> None:
    """Start this program again with the allocator settings that workers have, which must be there before a process starts."""
    if not os.environ.keys() >= ALLOCATOR.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)


def main(
    config: Path,
    minutes: Annotated[float, typer.Option(help="Training time.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="As for distmeta train.")] = None,
) -> None:
    with_allocator()
    print(steps_in(load_config(config, sets), minutes))


if __name__ == "__main__":
    typer.run(main)
