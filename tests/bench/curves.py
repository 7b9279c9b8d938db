"""Draws the validation scores of runs over their steps in one picture, with 95 % intervals over the validation episodes as bands.

    python tests/bench/curves.py runs/results/omniglot_* --out docs/omniglot.png

A folder of seeds gives one curve for each seed. The cross is the score of the final test, with its interval.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from distmeta.training.measurement import Measurement, measurement_of
from distmeta.training.run_folder import RunFolder


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "seeds").glob("seed-*")) or [folder]


def points(run: Path) -> list[tuple[int, Measurement]]:
    """(step, the validation after it)."""
    return [(record["step"], measurement_of(record["validation"])) for record in RunFolder(run).metrics.read() if "validation" in record]


def scored(measurement: Measurement) -> tuple[float, float]:
    """The score by which steps are selected, and its interval, as they are shown."""
    value, ci95 = measurement.values[measurement.selected], measurement.ci95[measurement.selected]
    return measurement.scale * (value or 0), measurement.scale * (ci95 or 0)


def draw_run(axes: Any, run: Path, colour: str, label: str | None) -> None:
    found = points(run)
    steps = np.array([step for step, _ in found])
    scores, intervals = np.array([scored(measurement) for _, measurement in found]).T
    axes.plot(steps, scores, color=colour, linewidth=1.2, label=label)
    axes.fill_between(steps, scores - intervals, scores + intervals, color=colour, alpha=0.12, linewidth=0)
    result = json.loads((run / "result.json").read_text())
    score, interval = scored(measurement_of(result["test"]))
    axes.errorbar(result["steps"], score, interval, color=colour, marker="x", capsize=3)


def main(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders of seeds.", exists=True)],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png"),
    lowest: Annotated[float | None, typer.Option(help="Where the vertical axis begins.")] = None,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, folder in enumerate(folders):
        each = runs(folder)
        name = folder.name if len(each) == 1 else f"{folder.name}, {len(each)} seeds"
        for run in each:
            draw_run(axes, run, f"C{number}", name if run == each[0] else None)
    measurement = points(runs(folders[0])[0])[0][1]
    shown = f"{measurement.name}, {measurement.columns[measurement.selected]}, {measurement.unit}"
    axes.set(xlabel="steps", ylabel=f"{shown}: lines validation, crosses test")
    axes.set_ylim(bottom=lowest)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    typer.run(main)
