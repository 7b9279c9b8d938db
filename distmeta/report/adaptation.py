"""The adaptation curves of a run: how its score on new tasks changes with the inner steps."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distmeta.report.figures import COLORS, DASHES, Curve, legend_below, wrapped
from distmeta.training.measurement import Measurement, baseline_name, baseline_of, measurement_of


def adaptation_curves(test: dict[str, Any]) -> list[Curve]:
    """A test's score after each number of inner steps: of the run, its random initialisation, and the models beside it."""
    networks = {"meta-trained": measurement_of(test), baseline_name(test): baseline_of(test)}
    networks |= {name: measurement_of(other) for name, other in test.get("beside", {}).items()}
    return [_curve(name, measurement) for name, measurement in networks.items()]


def _curve(name: str, measurement: Measurement) -> Curve:
    values, halves = zip(*(measurement.shown(column) for column in range(len(measurement.columns))), strict=True)
    return Curve(name, [int(column) for column in measurement.columns], list(values), list(halves))


def draw_adaptation(test: dict[str, Any], title: str, path: Path) -> None:
    """Draw these curves, with 95% bands, into a PNG."""
    measurement = measurement_of(test)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, steps, means, ci95), color, dash in zip(adaptation_curves(test), cycle(COLORS), cycle(DASHES), strict=False):
        axes.plot(steps, means, marker="o", markersize=4, color=color, linestyle=dash, label=wrapped(name))
        middle, half = np.asarray(means), np.asarray(ci95)
        axes.fill_between(steps, middle - half, middle + half, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel=measurement.axis, ylabel=measurement.label, title=title)
    if not measurement.more_is_better:
        axes.set_ylim(0, None)
    legend_below(figure)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
