"""The report's plots, as SVG in the page's text colour, so that they are readable on light and dark pages."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distmeta.training.intervals import mean_and_ci95

INK = "#010203"  # placeholder of the page's text colour until the figure is written
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "font.size": 10,
}
COLORS = ["#3b82c4", "#d9822b", "#8a8a8a", "#3a9d5d", "#a560c0"]
DASHES = ["-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))]  # curves differ without colours, too


class Curve(NamedTuple):
    """Points with the half-widths of their 95% intervals (NaN: none)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    ci95: Sequence[float]


def legend_below(figure: Figure) -> None:
    """A legend with one curve per line below the axes, where no name is cut and no curve is covered."""
    count = sum(len(axes.get_legend_handles_labels()[0]) for axes in figure.axes)
    figure.set_figheight(figure.get_figheight() + 0.2 * count)
    figure.legend(loc="outside lower left", handlelength=3.5, frameon=False)


def wrapped(name: str) -> str:
    """A curve's name in lines that fit into a figure."""
    return "\n".join(textwrap.wrap(name, 70)) or name


def lines(curves: Sequence[Curve], xlabel: str, ylabel: str, marker: str = "", floor: float | None = None) -> str:
    """Curves with bands over whole numbers; `floor` draws the dotted line of guessing."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((6.4, 3.2))
        for curve, color, dash in zip(curves, cycle(COLORS), cycle(DASHES), strict=False):
            axes.plot(curve.x, curve.y, marker=marker, markersize=4, color=color, linestyle=dash, label=wrapped(curve.name))
            middle, half = np.asarray(curve.y), np.asarray(curve.ci95)
            axes.fill_between(curve.x, middle - half, middle + half, color=color, alpha=0.22, linewidth=0)
        if floor is not None:
            axes.axhline(floor, color=INK, linestyle=":", linewidth=1, label="guessing")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        legend_below(figure)
        return svg_of(figure, ylabel)


def bars(names: Sequence[str], values: Sequence[float], xlabel: str) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((6.4, 0.5 + 0.42 * len(names)))
        drawn = axes.barh(names, values, color=COLORS[0])
        axes.bar_label(drawn, fmt=lambda value: f"{value:.3g}" if value < 1000 else f"{value:,.0f}", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(xlabel)
        return svg_of(figure, xlabel)


def matrix(names: Sequence[str], values: np.ndarray, xlabel: str, ylabel: str, key: str) -> str:
    """A square matrix of fractions, NaN if unknown; `key` labels the colour bar."""
    side = max(4.0, 1.8 + 0.34 * len(names))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = _axes((side + 1, side))
        image = axes.imshow(values, cmap="cividis", vmin=0)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(ticks, names, parse_math=False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(image, shrink=0.7, label=key)
        return svg_of(figure, key)


def binned(x: Sequence[float], y: Sequence[float], name: str, bins: int = 80) -> Curve:
    """Means of consecutive values with their 95% intervals (NaN for bins of few values), at most `bins` of them."""
    parts = [part for part in np.array_split(np.arange(len(x)), min(bins, len(x))) if len(part)]
    figures = [mean_and_ci95(np.asarray(y)[part]) for part in parts]
    means, halves = ([np.nan if value is None else value for value in values] for values in zip(*figures, strict=True))
    return Curve(name, [float(np.asarray(x)[part].mean()) for part in parts], means, halves)


def _axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def svg_of(figure: Figure, salt: str) -> str:
    """The figure as SVG in the page's text colour; `salt` makes its identifiers different from those of the page's other figures."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():  # with a salt, the file depends only on the figure
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser that shows the SVG draws its text
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(INK, "currentColor")
