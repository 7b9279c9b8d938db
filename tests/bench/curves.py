"""Draws the validation scores of runs over their steps in one picture, with 95 % intervals over the validation episodes as bands.

    python tests/bench/curves.py runs/results/omniglot_* --out docs/omniglot.png

A folder of seeds gives one curve for each seed. The cross is the score of the final test, with its interval.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from distmeta.training.measurement import Measurement, measurement_of
from distmeta.training.run_folder import RunFolder


def runs(folder: RunFolder) -> list[RunFolder]:
    return [folder.of_seed(seed) for seed in folder.read_seeds()["seeds"]] if folder.holds_seeds else [folder]


def points(run: RunFolder) -> list[tuple[int, Measurement]]:
    """(step, the validation after it)."""
    return [(record["step"], measurement_of(record["validation"])) for record in run.metrics.read() if "validation" in record]


def draw_run(axes: Any, run: RunFolder, colour: str, label: str | None) -> None:
    steps, measurements = zip(*points(run), strict=True)
    scores, halves = np.array([measurement.shown(measurement.selected) for measurement in measurements]).T
    axes.plot(steps, scores, color=colour, linewidth=1.2, label=label)
    axes.fill_between(steps, scores - halves, scores + halves, color=colour, alpha=0.12, linewidth=0)
    result = run.read_result()
    test = measurement_of(result["test"])
    axes.errorbar(result["steps"], *test.shown(test.selected), color=colour, marker="x", capsize=3)


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
        each = runs(RunFolder(folder))
        name = folder.name if len(each) == 1 else f"{folder.name}, {len(each)} seeds"
        for run in each:
            draw_run(axes, run, f"C{number}", name if run == each[0] else None)
    measurement = points(runs(RunFolder(folders[0]))[0])[0][1]
    shown = f"{measurement.name}, {measurement.columns[measurement.selected]}, {measurement.unit}"
    axes.set(xlabel="steps", ylabel=f"{shown}: lines validation, crosses test")
    axes.set_ylim(bottom=lowest)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    typer.run(main)
