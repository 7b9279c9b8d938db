"""The adaptation curves of a regression run: how the error on new tasks falls with the inner steps."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distmeta.report.figures import Curve


def adaptation_curves(test: dict[str, Any]) -> list[Curve]:
    """A test's squared error after each number of inner steps: of the run, its random initialisation, and the models beside it."""
    found = {
        "meta-trained": (test["mse_by_step"], test["ci95_by_step"]),
        "random initialisation": (test["random_init"], test["random_init_ci95"]),
        **{name: (other["mse_by_step"], other["ci95_by_step"]) for name, other in test.get("beside", {}).items()},
    }
    return [
        Curve(name, [int(step) for step in steps], [mse[step] for step in steps], [ci95[step] for step in steps])
        for name, (mse, ci95) in found.items()
        for steps in [sorted(mse, key=int)]
    ]


def draw_adaptation(test: dict[str, Any], title: str, path: Path) -> None:
    """Draw these curves, with 95% bands, into a PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, steps, mse, ci95 in adaptation_curves(test):
        (line,) = axes.plot(steps, mse, marker="o", markersize=4, label=name)
        middle, half = np.asarray(mse), np.asarray(ci95)
        axes.fill_between(steps, middle - half, middle + half, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="inner steps", ylabel="mean squared error on query points", title=title, ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
