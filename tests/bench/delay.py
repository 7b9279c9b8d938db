"""What a network's delay costs a training step, beside the prediction of scaling_model.py.

    python tests/bench/delay.py [--delays-ms 0,5,10] [--steps 60]

Trains MAML on sinusoids over four hosts (network namespaces with a delaying network between them, tests/hosts.py), once for each delay;
the first must be 0. Predicted is the step without delay plus that delay in every hop of the ring, as the model has it: 2(W-1) hops in
each collective. Needs root and Linux.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))
from hosts import Hosts, missing
from ray_hosts import ENVIRONMENT, RayHosts
from scaling_model import Way, collectives

from distmeta.assembly.run import Run
from distmeta.config import load_config
from distmeta.training.run_folder import RunFolder

WORKERS = 4
CONFIG = """
run_folder: {folder}/delay-{delay}
data: {{functions: sinusoid, way: 1, shot: 5, queries: 10, eval: {{queries: 10, episodes: 16, val_episodes: 8}}}}
model: {{name: mlp, norm: none, widths: [40, 40]}}
learner: {{name: maml, inner_lr: 0.01, inner_steps: 1, tasks_per_chunk: 1}}
outer: {{lr: 0.002, steps: {steps}, meta_batch_size: 8}}
train: {{workers: {workers}, cpus_per_worker: 1, checkpoint_every: {steps}, validate_every: {steps}}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


def step_seconds(cluster: RayHosts, config: Path) -> float:
    """The median step of a run."""
    command = cluster.run("train", str(config), "--json", f"--address={cluster.head}")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(done.stderr)
    records = list(RunFolder(load_config(config).run_folder).metrics.read())
    return statistics.median(map(_seconds, records[5:-1]))  # the first steps warm up, the last one validates


def _seconds(record: dict[str, Any]) -> float:
    return sum(value for key, value in record.items() if key.startswith("time/"))


def predicted_seconds(config: Path, delay_s: float) -> float:
    """What the delay adds to a step."""
    sizes = [constant + each * 8 for constant, each in collectives(Run.of(load_config(config)).learner.initial_params(), "exact")]
    return sum(Way(0.0, delay_s, float("inf")).seconds(size, WORKERS) for size in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays-ms", default="0,5,10", help="delays of a packet (default: 0,5,10)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run (default: 60)")
    given = parser.parse_args()
    if lacking := missing():
        sys.exit(lacking)
    with tempfile.TemporaryDirectory(prefix="delay-", dir="/tmp") as folder, Hosts(WORKERS) as hosts:
        cluster = RayHosts(hosts, Path(folder))
        print(
            "| delay | step | the delay costs | predicted | cost, measured / predicted | step, measured / predicted |\n" + "|---" * 6 + "|"
        )
        without = None
        for delay in map(float, given.delays_ms.split(",")):
            config = Path(folder) / f"delay-{delay}.yaml"
            config.write_text(CONFIG.format(folder=folder, delay=delay, steps=given.steps, workers=WORKERS))
            hosts.set(delay_ms=delay)
            step = step_seconds(cluster, config)
            without = step if without is None else without
            cost, predicted = step - without, predicted_seconds(config, delay / 1000)
            ratios = f"{cost / predicted:.2f} | {step / (without + predicted):.2f}" if predicted else "|"
            print(f"| {delay:g} ms | {1000 * step:.0f} ms | {1000 * cost:.0f} ms | {1000 * predicted:.0f} ms | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
