"""How many steps of a config fit into a time, on an idle machine.

    python tests/bench/steps.py configs/omniglot_5way_1shot_maml.yaml --minutes 12 [--set KEY=VALUE …]

Prints that number alone: `--set outer.steps=$(python tests/bench/steps.py CONFIG --minutes 12)` trains for twelve minutes. Validations,
the test and the start of Ray are not included. As many processes as the run has workers compute at once, because cores may share units.
"""

import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from distmeta.assembly.build import use_kernels
from distmeta.assembly.run import Run
from distmeta.config import Config, load_config
from distmeta.learners.allocator import ALLOCATOR

BESIDE_S = 0.006
"""What a step needs beside its meta-gradients (seconds): the sum over workers, the update, its record."""
MEASURED_S = 5


def step_seconds(config: Config) -> float:
    """The slowest worker's processor time for its share of a step (median), and BESIDE_S."""
    spawn = get_context("spawn")
    together, times = spawn.Barrier(config.train.most), spawn.Queue()
    workers = [spawn.Process(target=_share, args=(config, together, times)) for _ in range(config.train.most)]
    for worker in workers:
        worker.start()
    longest = max(times.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return longest + BESIDE_S


def _share(config: Config, together: Any, times: Any) -> None:
    torch.set_num_threads(1)
    kernels = "torch" if config.train.kernels == "torch" else "native"
    run = Run.of(config).on("cpu", kernels)
    use_kernels(run.config, run.learner, config.train.weights)  # torch's where native ones cannot be built, as `auto` does
    domain, learner, params = run.domain, run.learner, run.start()
    batches = domain.training(range(config.outer.meta_batch_size // config.train.most), 0)
    learner.slot_gradients(params, next(batches))
    together.wait(60)
    taken: list[float] = []
    end = time.perf_counter() + MEASURED_S
    while time.perf_counter() < end or not taken:
        batch = next(batches)
        start = time.process_time()
        learner.slot_gradients(params, batch)
        taken.append(time.process_time() - start)
    times.put(sorted(taken)[len(taken) // 2])


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
