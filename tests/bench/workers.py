"""1 to 32 small workers on this machine: the same bits, and how long starting, a step and recovering from a kill take.

    python tests/bench/workers.py [--workers 1,2,4,8,16,32]

MAML on sinusoids (a network of 1,761 parameters), 32 tasks a step. Every row is a `distmeta train` of its own, one worker of which is
killed in mid-run (kill -9), on a Ray cluster that the program starts here and ends. Exit code 1 unless all weights are equal. A worker
takes about 0.35 GB.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.append(str(Path(__file__).parent.parent))
from failures import at_checkpoint, workers_of
from ray.cluster_utils import Cluster

from distmeta.training.events import Event
from distmeta.training.run_folder import RunFolder

CPUS, SLOTS, STEPS, EVERY, KILLED_AFTER = 2, 32, 80, 10, 30
CONFIG = f"""
data: {{functions: sinusoid, way: 1, shot: 5, queries: 10, eval: {{queries: 10, episodes: 64, val_episodes: 32}}}}
model: {{name: mlp, norm: none, widths: [40, 40]}}
learner: {{name: maml, inner_lr: 0.01, inner_steps: 1, tasks_per_chunk: 1}}
outer: {{lr: 0.002, steps: {STEPS}, meta_batch_size: {SLOTS}}}
train: {{checkpoint_every: {EVERY}, validate_every: {STEPS}, collective_timeout_s: 600, start_timeout_s: 600}}
"""


class Row(NamedTuple):
    """Seconds from the command, and from the kill, until the workers train; the median step's; a worker's private memory (bytes)."""

    workers: int
    weights_sha256: str
    start_s: float
    step_s: float
    recovery_s: float
    memory: int

    def __str__(self) -> str:
        times = f"{self.start_s:.0f} s | {1000 * self.step_s:.0f} ms | {self.recovery_s:.0f} s"
        return f"| {self.workers} | {times} | {self.memory / 1e6:.0f} MB | {self.weights_sha256[:16]}… |"


def row(workers: int, folder: Path, address: str) -> Row:
    run_folder = RunFolder(folder / f"workers-{workers}")
    (folder / "config.yaml").write_text(CONFIG)
    keys = {"run_folder": run_folder, "tracking.uri": f"sqlite:///{folder / 'mlflow.db'}", "train.workers": workers}
    keys["train.cpus_per_worker"] = CPUS / max(workers, CPUS)
    overrides = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    found: dict[str, Any] = {}

    def kill() -> None:
        there = workers_of(psutil.Process())
        found["memory"] = there[-1].memory_full_info().uss
        there[-1].kill()
        found["killed"] = time.time()

    at_checkpoint(run_folder.path, KILLED_AFTER, kill)
    began = time.time()
    command = [sys.executable, "-m", "distmeta", "train", str(folder / "config.yaml"), "--json", "--address", address, *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    starts = [event for event in run_folder.events.read() if event["kind"] == "start"]
    return Row(
        workers=workers,
        weights_sha256=json.loads(done.stdout.splitlines()[-1])["weights_sha256"],
        start_s=starts[0]["time"] - began,
        step_s=statistics.median(map(_seconds, run_folder.metrics.read())),
        recovery_s=_after(starts, found["killed"])["time"] - found["killed"],
        memory=found["memory"],
    )


def _seconds(record: dict[str, Any]) -> float:
    return sum(value for key, value in record.items() if key.startswith("time/"))


def _after(starts: list[Event], moment: float) -> Event:
    return next(event for event in starts if event["time"] > moment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8,16,32", help="numbers of workers (default: 1,2,4,8,16,32)")
    counts = [int(count) for count in parser.parse_args().workers.split(",")]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "object_store_memory": 80 << 20, "include_dashboard": False})
    hashes = set()
    with tempfile.TemporaryDirectory() as folder:
        print("| workers | until they train | a step | after a kill, until they train | memory | weights_sha256 |\n" + "|---" * 6 + "|")
        for count in counts:
            made = row(count, Path(folder), cluster.address)
            print(made, flush=True)
            hashes.add(made.weights_sha256)
        cluster.shutdown()
    print(f"{len(hashes)} hash{'es' if len(hashes) > 1 else ''}")
    sys.exit(0 if len(hashes) == 1 else 1)


if __name__ == "__main__":
    main()
