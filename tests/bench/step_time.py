"""Where the time of a run's steps goes, from the run's own records.

    python tests/bench/step_time.py PACKED_FOLDER [--workers 2] [--steps 60]

Work W: Conv-4 with 32 filters, 84 px, 5-way 1-shot, 15 queries a class, 5 inner steps, 4 tasks a step, by `distmeta train` with a thread
for each worker, a checkpoint every 20 steps and MLflow as in any run. Of each step it takes rank 0's times, validations apart, and not the
first five.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from distmeta.training.metrics_folder import Record
from distmeta.training.run_folder import RunFolder

PARTS = {
    "adapt": "adapting, meta-gradients",
    "update": "outer update",
    "data": "waiting for episodes",
    "wait": "waiting for other workers",
    "reduce": "sum over workers",
    "log": "records, checkpoints",
}
LEARNER = ("adapt", "update")
WARM_UP = 5


def records(packed: Path, folder: Path, workers: int, steps: int) -> list[Record]:
    settings = {
        "run_folder": folder / "run",
        "data.shards": packed.absolute(),
        "data.eval.episodes": 10,
        "data.eval.val_episodes": 10,
        "outer.steps": steps,
        "outer.meta_batch_size": 4,
        "learner.inner_steps": 5,
        "train.workers": workers,
        "train.validate_every": steps,
        "train.checkpoint_every": 20,
        "tracking.uri": f"sqlite:///{folder / 'mlflow.db'}",
    }
    config = folder / "work.yaml"
    config.write_text("data: {way: 5, shot: 1, queries: 15}\nmodel: {name: conv4, filters: 32}\n")
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "distmeta", "train", str(config), *sets]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return list(RunFolder(folder / "run").metrics.read())[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as folder:
        found = records(arguments.packed, Path(folder), arguments.workers, arguments.steps)
    times = {part: [record.get(f"time/{part}", 0.0) for record in found] for part in PARTS}
    whole = sum(map(sum, times.values()))
    print(f"{'part of a step':28} {'median':>10} {'share of all steps':>20}")
    for part, name in PARTS.items():
        print(f"{name:28} {1000 * statistics.median(times[part]):7.1f} ms {100 * sum(times[part]) / whole:18.2f} %")
    beside = sum(sum(times[part]) for part in PARTS if part not in LEARNER)
    print(f"{'all but learning':28} {'':10} {100 * beside / whole:18.2f} %")


if __name__ == "__main__":
    main()
