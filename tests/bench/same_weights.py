"""The same run on any number of workers, killed, resized or left alone: one hash of the final weights, printed as a table.

    distmeta pack --dataset glyphs --out data/glyphs
    python tests/bench/same_weights.py data/glyphs [--kills 20] [--only workers --only random …]

Conv-4 with 32 filters, MAML with two inner steps, 5-way 1-shot, 8 episodes a step, 200 steps, a checkpoint every 20. Every row is a
`distmeta train` of its own on a Ray cluster of two nodes, which the program starts on this machine and ends. Exit code 1 unless all
hashes are equal and every kill was followed by a restart from the checkpoint before it, or a later one.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer

sys.path.append(str(Path(__file__).parent.parent))
from failures import at_checkpoint, workers_of
from ray.cluster_utils import Cluster

from distmeta.training.run_folder import RunFolder

STEPS, EVERY = 200, 20
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


class Row(NamedTuple):
    what: str
    weights_sha256: str
    restarts: list[int]
    recovery_s: list[float]
    seconds: float

    def __str__(self) -> str:
        recovered = ", ".join(f"{seconds:.0f} s" for seconds in self.recovery_s)
        again = ", ".join(map(str, self.restarts)) or "never"
        return f"| {self.what} | {self.weights_sha256[:16]}… | {again} | {recovered} | {self.seconds:.0f} s |"


class Place:
    """A cluster of two nodes with one CPU each, and a folder for runs."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards, self.folder = shards.absolute(), folder
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]

    def start(self, name: str, *sets: str) -> "subprocess.Popen[str]":
        keys = {
            "run_folder": self.folder / name,
            "data.shards": self.shards,
            "data.eval.episodes": 50,
            "data.eval.val_episodes": 20,
            "outer.steps": STEPS,
            "train.checkpoint_every": EVERY,
            "train.validate_every": 100,
            "train.cpus_per_worker": 0.5,
            "tracking.uri": f"sqlite:///{self.folder / 'mlflow.db'}",
        }
        config = self.folder / "config.yaml"
        config.write_text(
            "data: {way: 5, shot: 1, queries: 5}\nmodel: {name: conv4, filters: 32}\nlearner: {name: maml, inner_lr: 0.2, inner_steps: 2}\n"
            "outer: {lr: 0.003, meta_batch_size: 8}\n"
        )
        overrides = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        overrides += [part for override in sets for part in ("--set", override)]
        command = [sys.executable, "-m", "distmeta", "train", str(config), "--json", "--address", self.cluster.address, *overrides]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(self.folder / f"{name}.txt").open("w"), text=True)

    def finished(self, what: str, name: str, process: "subprocess.Popen[str]", recovery_s: list[float], began: float) -> Row:
        out, _ = process.communicate()
        if process.returncode:
            sys.exit(f"{what}: {(self.folder / f'{name}.txt').read_text()}")
        result = json.loads(out.splitlines()[-1])
        return Row(
            what=what,
            weights_sha256=result["weights_sha256"],
            restarts=RunFolder(self.folder / name).restarts(),
            recovery_s=recovery_s,
            seconds=time.monotonic() - began,
        )

    def left_alone(self, workers: int) -> Row:
        began, name = time.monotonic(), f"workers-{workers}"
        return self.finished(f"{workers} workers", name, self.start(name, f"train.workers={workers}"), [], began)

    def killed(self, name: str, moments: list[tuple[int, float, int]]) -> Row:
        """Two workers, one of them (0 or 1) killed so many seconds after the checkpoint of each step."""
        began, recovery_s = time.monotonic(), []

        def kill(victim: int, number: int) -> None:
            there = workers_of(psutil.Process())
            there[victim % len(there)].kill()
            since = time.monotonic()
            while len(RunFolder(self.folder / name).restarts()) < number + 1:
                time.sleep(0.05)
            recovery_s.append(time.monotonic() - since)

        process = self.start(name, "train.workers=2", f"train.max_failures={len(moments)}")
        for number, (step, delay_s, victim) in enumerate(moments):
            at_checkpoint(self.folder / name, step, lambda victim=victim, number=number: kill(victim, number), delay_s)
        where = ", ".join(f"{delay:.1f} s after step {step}" for step, delay, _ in moments)
        row = self.finished(f"2 workers, one killed {where}", name, process, recovery_s, began)
        if len(row.restarts) < len(moments) or any(again < step for again, (step, _, _) in zip(row.restarts, moments, strict=False)):
            sys.exit(f"{row}\nwas not killed as often, or repeats steps that a checkpoint held")
        return row

    def resized(self) -> Row:
        """A node leaves (with the worker on it), and one joins later."""
        began, name = time.monotonic(), "resized"
        process = self.start(name, "train.workers=[1, 2]", "train.cpus_per_worker=1", "train.start_timeout_s=20")
        leave, join = threading.Event(), threading.Event()
        at_checkpoint(self.folder / name, 2 * EVERY, leave.set)
        _wait(leave, process)
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        at_checkpoint(self.folder / name, 4 * EVERY, join.set)
        _wait(join, process)
        self.nodes.append(self.cluster.add_node(**NODE))
        return self.finished("workers [1, 2]: a node removed after step 40, one added after step 80", name, process, [], began)


def _wait(event: threading.Event, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None and not event.wait(0.5):
        pass


def rows(place: Place, only: list[str], kills: int) -> Iterator[Row]:
    if "workers" in only:
        yield from (place.left_alone(workers) for workers in (1, 2, 3, 4))
    if "killed" in only:
        yield place.killed("killed-1", [(60, 0.3, 1)])
        yield place.killed("killed-3", [(40, 0.5, 0), (100, 0.2, 1), (160, 0.1, 0)])
    if "resized" in only:
        yield place.resized()
    if "random" in only:
        drawn = random.Random(0)
        for number in range(kills):
            yield place.killed(f"random-{number}", [(EVERY * drawn.randrange(1, 9), drawn.random(), drawn.randrange(2))])


def main(
    shards: Annotated[Path, typer.Argument(help="A packed dataset.")],
    kills: Annotated[int, typer.Option(help="Runs with one random kill each.")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="workers, killed, resized, random; all if absent.")] = None,
) -> None:
    hashes = set()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(shards, Path(folder))
        print("| run | weights_sha256 | continued from step | until it trained again | in all |\n|---|---|---|---|---|")
        for row in rows(place, only or ["workers", "killed", "resized", "random"], kills):
            print(row, flush=True)
            hashes.add(row.weights_sha256)
        place.cluster.shutdown()
    print(f"{len(hashes)} hash{'es' if len(hashes) > 1 else ''}")
    sys.exit(0 if len(hashes) == 1 else 1)


if __name__ == "__main__":
    typer.run(main)
