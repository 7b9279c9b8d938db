"""Five learners on the classes of tieredImageNet at 32 px, each for the same minutes with several seeds, in one table.

    python tests/bench/small_images.py data/tiered --minutes 3 --seeds 0,1,2 [--out runs/small_images]

Every learner trains 5-way 1-shot. Metric learners adapt to any number of images, so their networks are also tested 5-shot: a run of no
steps that starts from the trained one. Meta-Baseline starts from the Classifier-Baseline of the first seed, whose minutes are its own.
`--resume` is implied: what has ended is not repeated. The table's bold is a paired test; columns are shots.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from steps import steps_in, with_allocator

from distmeta.config import load_config

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MAML, CLASSIFIER, META = (CONFIGS / f"tiered_imagenet_small{name}.yaml" for name in ("", "_classifier_baseline", "_meta_baseline"))
LEARNERS: dict[str, tuple[Path, list[str]]] = {
    "maml": (MAML, []),
    "anil": (MAML, ["learner={name: anil, inner_lr: 0.05, inner_steps: 5, inner_steps_eval: 10}"]),
    "protonet": (MAML, ["learner={name: protonet, normalisation: joint}", "model={name: conv4, filters: 32, norm: running}"]),
    "classifier-baseline": (CLASSIFIER, []),
    "meta-baseline": (META, ["data.eval.beside=[]"]),
}
ANY_SHOT = ("protonet", "classifier-baseline", "meta-baseline")


def train(config: Path, sets: list[str], seeds: str | None = None) -> None:
    command = [sys.executable, "-m", "distmeta", "train", str(config), "--resume", *(("--seeds", seeds) if seeds else ())]
    subprocess.run([*command, *(part for one in sets for part in ("--set", one))], check=True)


def trained(folder: Path) -> list[dict[str, Any]]:
    """The runs of a folder of seeds: their seed, and the address of their model."""
    return list(json.loads((folder / "seeds.json").read_text())["runs"])


def steps_of(folder: Path) -> int | None:
    """Of runs that have begun: the time of a step is measured once."""
    config = folder / "config.yaml"
    return load_config(config).outer.steps if config.exists() else None


def main(
    packed: Annotated[Path, typer.Argument(help="The packed dataset.", exists=True)],
    minutes: Annotated[float, typer.Option(help="Training time of each run.")] = 3.0,
    seeds: str = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder for the run folders.")] = Path("runs/small_images"),
) -> None:
    with_allocator()
    tables = []
    for name, (config, own) in LEARNERS.items():
        common = [*own, f"data.shards={packed}", f"tracking.model=small-images-{name}"]
        if name == "meta-baseline":
            common.append(f"init_from={trained(out / 'classifier-baseline')[0]['model']}")
        folder = out / name
        steps = steps_of(folder) or steps_in(load_config(config, [*own, f"data.shards={packed}", "init_from=null"]), minutes)
        validations = [f"train.validate_every={max(1, steps // 6)}", f"train.checkpoint_every={max(1, steps // 6)}"]
        train(config, [*common, *validations, f"outer.steps={steps}", f"run_folder={folder}"], seeds)
        tables.append(folder)
        for run in trained(folder) if name in ANY_SHOT else ():
            again = out / f"{name}-5shot" / f"seed-{run['training_seed']}"
            start = [f"init_from={run['model']}", f"seed={run['training_seed']}", "outer.steps=0", "data.eval.shot=5"]
            train(config, [*common[: len(own) + 1], f"tracking.model=small-images-{name}-5shot", *start, f"run_folder={again}"])
            tables.append(again)
    subprocess.run([sys.executable, "-m", "distmeta", "table", *map(str, tables), "--by", "learner", "--columns", "shot"], check=True)


if __name__ == "__main__":
    typer.run(main)
