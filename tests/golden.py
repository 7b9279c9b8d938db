"""The quickstart's first 200 meta-losses, beside those in git.

    distmeta pack --dataset glyphs --out data/glyphs
    python tests/golden.py data/glyphs             # compares; exit code 1 if a rule is broken
    python tests/golden.py data/glyphs --accept    # writes the new curve, after a change on purpose

The outer loop of `configs/quickstart.yaml` in one process, with one thread and torch's kernels. On the platform that made the
curve (its machine record, library versions and dataset stand in the file) every loss is equal to the bit. Elsewhere rounding differs, and
training amplifies it, so two rules hold instead: the first loss differs by less than FIRST of itself, and the mean of every BLOCK steps by
less than TOLERANCE (nats).
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from test_loop import Recorder

from distmeta.assembly.build import use_kernels
from distmeta.assembly.run import Run
from distmeta.config import load_config
from distmeta.learners.params import Params
from distmeta.training.checkpoint import machine
from distmeta.training.loop import Plan, Progress, train

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
CURVE = Path(__file__).with_name("quickstart_curve.json")
STEPS, BLOCK = 200, 20
FIRST, TOLERANCE = 1e-4, 0.1


class Curve(NamedTuple):
    """`platform` is what the bits depend on: a machine record, and the fingerprint of the glyphs, which depend on the font library."""

    platform: dict[str, str]
    meta_loss: list[float]


def trained(packed: Path, kernels: str, steps: int) -> tuple[Run, Params, list[float]]:
    """The quickstart's run on `packed`, its meta_params after so many steps and the meta-loss of each."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:  # not runs/quickstart, where somebody may have a network of another seed
        this = Run.of(load_config(QUICKSTART, [f"data.shards={packed}", f"run_folder={folder}/run"])).on("cpu", kernels)
        use_kernels(this.config, this.learner, this.config.train.weights)
        outer, slots, recorder = this.outer(), list(range(this.config.outer.meta_batch_size)), Recorder()
        plan = Plan(steps, steps, steps, max_bad_steps=1, meta_batch_size=len(slots), rank=0, workers=1, slots=slots)
        assert train(this.learner, outer, this.domain.training(slots, 0), Progress(), plan, recorder)
        return this, outer.meta_params, [record["meta_loss"] for record in recorder.records]


def computed(packed: Path, kernels: str = "torch") -> Curve:
    """The curve that this machine gives."""
    this, _, losses = trained(packed, kernels, STEPS)
    return Curve(machine(1, kernels) | {"dataset": this.domain.fingerprint}, losses)


def stored() -> Curve:
    return Curve(**json.loads(CURVE.read_text()))


def accept(curve: Curve) -> None:
    losses = ",\n  ".join(", ".join(map(repr, curve.meta_loss[at : at + 5])) for at in range(0, len(curve.meta_loss), 5))
    CURVE.write_text(f'{{"platform": {json.dumps(curve.platform, indent=1)},\n"meta_loss": [\n  {losses}\n]}}\n')


def blocks(losses: list[float]) -> Any:
    return np.reshape(losses, (-1, BLOCK)).mean(1)


def problems(ours: Curve, golden: Curve) -> list[str]:
    """The rules that a curve breaks."""
    if ours.platform == golden.platform:
        unequal = [step for step, (a, b) in enumerate(zip(ours.meta_loss, golden.meta_loss, strict=True)) if a != b]
        return [f"step {unequal[0]}: {ours.meta_loss[unequal[0]]!r}, golden {golden.meta_loss[unequal[0]]!r}"] if unequal else []
    found = []
    first, expected = ours.meta_loss[0], golden.meta_loss[0]
    if not abs(first - expected) < FIRST * expected:
        found.append(f"first loss {first:.6f}, golden {expected:.6f}")
    apart = np.abs(blocks(ours.meta_loss) - blocks(golden.meta_loss))
    if not apart.max() < TOLERANCE:
        found.append(f"steps {BLOCK * int(apart.argmax())} to {BLOCK * int(apart.argmax()) + BLOCK - 1}: means {apart.max():.3f} apart")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--kernels", choices=["torch", "native"], default="torch", help="native ones count as another platform")
    arguments = parser.parse_args()
    ours = computed(arguments.packed, arguments.kernels)
    if arguments.accept:
        accept(ours)
        print(f"wrote {CURVE}")
        return
    golden = stored()
    same = ours.platform == golden.platform
    apart = np.abs(blocks(ours.meta_loss) - blocks(golden.meta_loss)).max()
    print(
        f"{'the platform of' if same else 'another platform than'} the golden curve; means of {BLOCK} steps differ by {apart:.4f} at most"
    )
    print(f"meta-loss of the last {BLOCK} steps: {blocks(ours.meta_loss)[-1]:.4f}, golden {blocks(golden.meta_loss)[-1]:.4f}")
    broken = problems(ours, golden)
    print("\n".join(broken) if broken else "ok")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
