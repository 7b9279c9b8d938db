"""Several learners on one dataset, each given the same time to train, compared on the same test episodes.

    python tests/bench/learners.py configs/omniglot_5way_1shot_maml.yaml --minutes 4

For each learner of LEARNERS the steps that fit into the time (on an idle machine) are found by timing a step of its own, then
`distmeta train` runs the config with the learner's settings in place of its own. The table gives transductive and inductive accuracy with
95% intervals; orders are paired differences over the episodes, "not separable" where the interval holds zero.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from steps import steps_in, with_allocator

from distmeta.config import load_config
from distmeta.training.intervals import mean_and_ci95

LEARNERS = {
    "maml": ["learner={name: maml, inner_lr: 0.2, inner_steps: 1, inner_steps_eval: 3}"],
    "fomaml": ["learner={name: fomaml, inner_lr: 0.2, inner_steps: 3, inner_steps_eval: 3}"],
    "anil": ["learner={name: anil, inner_lr: 0.5, inner_steps: 5, inner_steps_eval: 5}"],
    "reptile": [
        "learner={name: reptile, inner_lr: 1.0e-3, inner_steps: 5, inner_steps_eval: 50, inner_optimizer: adam, inner_batch: 10}",
        "outer.optimizer=sgd",
        "outer.lr=1.0",
        "outer.schedule=linear",
        "outer.clip_norm=null",
    ],
    "protonet": ["learner={name: protonet}"],
    "transfer": ["learner={name: transfer, inner_lr: 0.2, inner_steps: 3}"],
}


def main(
    config: Path,
    learner: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    minutes: Annotated[float, typer.Option(help="Training time of each learner.")] = 4.0,
    out: Annotated[Path, typer.Option(help="Folder for the run folders.")] = Path("runs/learners"),
) -> None:
    with_allocator()
    names = learner or list(LEARNERS)
    for name in names:
        sets = [*LEARNERS[name], f"run_folder={out / name}", f"tracking.model={config.stem.replace('_', '-')}-{name}"]
        steps = steps_in(load_config(config, sets), minutes)
        sets += [f"outer.steps={steps}", f"train.validate_every={max(1, steps // 8)}", f"train.checkpoint_every={max(1, steps // 4)}"]
        print(f"{name}: {steps} steps", flush=True)
        command = [sys.executable, "-m", "distmeta", "train", str(config), "--resume"]
        subprocess.run(command + [part for one in sets for part in ("--set", one)], check=True, stderr=subprocess.DEVNULL)
    show(names, out)


def show(names: list[str], out: Path) -> None:
    results = {name: json.loads((out / name / "result.json").read_text()) for name in names}
    episodes = {name: torch.tensor(json.loads((out / name / "test_episodes.json").read_text()))[:, 0] for name in names}
    ranking = sorted(names, key=lambda name: -results[name]["test"]["accuracy"])
    print("\n| learner | steps | training | transductive | inductive | against the next |\n|---|---|---|---|---|---|")
    for place, name in enumerate(ranking):
        test = results[name]["test"]
        figures = [
            f"{100 * test[key]:.2f} ± {100 * test[ci]:.2f} %"
            for key, ci in (("accuracy", "ci95"), ("accuracy_inductive", "ci95_inductive"))
        ]
        order = ""
        if place + 1 < len(ranking):
            difference = 100 * (episodes[name] - episodes[ranking[place + 1]])
            mean, half = mean_and_ci95(difference.numpy())
            assert mean is not None
            assert half is not None
            order = f"{mean:+.2f} ± {half:.2f}" + ("" if abs(mean) > half else " (not separable)")
        print(f"| {name} | {results[name]['steps']} | {seconds(out / name):.0f} s | {' | '.join(figures)} | {order} |")


def seconds(run_folder: Path) -> float:
    """Time of all training steps, from the metrics files."""
    from distmeta.training.run_folder import RunFolder

    parts = ("time/data", "time/adapt", "time/wait", "time/reduce")
    return sum(record.get(part, 0.0) for record in RunFolder(run_folder).metrics.read() for part in parts)


if __name__ == "__main__":
    typer.run(main)
