"""The quickstart's meta-loss over 200 steps is the one in git: exactly on the platform that made it, to a tolerance elsewhere."""

import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
from golden import BLOCK, FIRST, STEPS, TOLERANCE, Curve, problems

LOSSES = np.linspace(1.6, 0.6, STEPS).tolist()
HERE, ELSEWHERE = {"machine": "a"}, {"machine": "b"}


@pytest.mark.slow
def test_the_quickstart_learns_as_ever(tmp_path: Path) -> None:
    """After a change on purpose: python tests/golden.py data/glyphs --accept."""
    pack = [sys.executable, "-m", "distmeta", "pack", "--dataset", "glyphs", "--out", str(tmp_path / "glyphs")]
    subprocess.run(pack, check=True, capture_output=True)
    assert problems(golden.computed(tmp_path / "glyphs"), golden.stored()) == []


def test_on_the_same_platform_the_last_bit_counts() -> None:
    changed = [*LOSSES]
    changed[137] = float(np.nextafter(changed[137], 1))
    assert problems(Curve(HERE, LOSSES), Curve(HERE, LOSSES)) == []
    assert problems(Curve(HERE, changed), Curve(HERE, LOSSES))[0].startswith("step 137: ")
    assert problems(Curve(ELSEWHERE, changed), Curve(HERE, LOSSES)) == []


@pytest.mark.parametrize(
    ("steps", "by", "said"),
    [
        (slice(0, 1), 2 * FIRST * LOSSES[0], "first loss 1.6003"),
        (slice(40, 60), 1.1 * TOLERANCE, "steps 40 to 59: means 0.110 apart"),
        (slice(180, 200), -1.1 * TOLERANCE, "steps 180 to 199"),
        (slice(7, 8), float("nan"), "steps 0 to 19"),
    ],
)
def test_elsewhere_a_curve_that_leaves_the_tolerance_is_told(steps: slice, by: float, said: str) -> None:
    changed = np.array(LOSSES)
    changed[steps] += by
    assert any(said in problem for problem in problems(Curve(ELSEWHERE, changed.tolist()), Curve(HERE, LOSSES)))


def test_the_stored_curve_is_whole_and_falls() -> None:
    stored = golden.stored()
    assert len(stored.meta_loss) == STEPS
    means = golden.blocks(stored.meta_loss)
    assert means[-1] < means[0] - 2 * TOLERANCE, f"over {STEPS // BLOCK} blocks"
