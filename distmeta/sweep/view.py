"""The display of a sweep: a live table of its trials, and figures of their results."""

import math
from pathlib import Path
from typing import Any, TextIO

import matplotlib
import matplotlib.cm
import matplotlib.colors
import matplotlib.lines
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distmeta.config import SweepConfig
from distmeta.sweep.trials import Trial
from distmeta.terminal import Display
from distmeta.training.measurement import Measurement
from distmeta.training.run_folder import RunFolder

_COLORS = {"finished": "#0b6e4f", "stopped": "#c98a1b", "failed": "#b3261e", "running": "#5b6770"}
_MARKERS = {"finished": "o", "stopped": "s", "failed": "X", "running": "^"}  # states differ without colours, too
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # of text on lines
_HATCHES = {"finished": None, "stopped": "//", "failed": "xx", "running": ".."}


def parameters(trial: Trial, sweep_folder: RunFolder) -> dict[str, Any]:
    """A trial as a row of the result: its params, how it ended, and its best validation with them (score, text, step)."""
    curve, best, measurement = trial.curve(sweep_folder), trial.best(sweep_folder), trial.measurement(sweep_folder)
    seconds = None if trial.ended is None or trial.began is None else round(trial.ended - trial.began, 1)
    return {
        "number": trial.number,
        "params": trial.params,
        "state": trial.state,
        "reason": trial.reason,
        "steps": curve[-1].step if curve else 0,
        "score": best.score if best and math.isfinite(best.score) else None,
        "validation": measurement.text_of(best.score) if best and measurement else None,
        "best_step": best.step if best else None,
        "seconds": seconds,
        "run_folder": str(trial.folder(sweep_folder)),
    } | ({"history": trial.history} if trial.history else {})


class TrialTable(Display[Live]):
    """A table that is redrawn on a terminal. Elsewhere there is a line for each finished trial, and a count every ten seconds."""

    def __init__(self, terminal: TextIO, sweep_folder: RunFolder, settings: SweepConfig) -> None:
        super().__init__(terminal, lambda console: Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False))
        self._folder = sweep_folder
        self._settings = settings
        self._rows: dict[int, dict[str, Any]] = {}

    def show(self, trials: list[Trial], waiting: dict[int, str]) -> None:
        """`waiting`: number of each running trial that does not train yet → the reason."""
        before = {number for number, row in self._rows.items() if row["state"] != "running"}
        for trial in list(trials):
            if trial.number not in before:  # finished trials do not change
                self._rows[trial.number] = row = parameters(trial, self._folder)
                if row["state"] == "running":
                    row["reason"] = waiting.get(trial.number, "")
        if self.console.is_terminal:
            self.live.update(_live_table(list(self._rows.values()), self._settings), refresh=True)
            return
        if self.line_due() is not None:
            self.say(self._count())
        for number, row in self._rows.items():
            if number not in before and row["state"] != "running":
                self.say(f"trial {number} {row['state']}: {row['reason']}; {_score(row)}  {_params(row)}")

    def _count(self) -> str:
        states = [row["state"] for row in self._rows.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in _COLORS if state in states)
        scored = [row for row in self._rows.values() if row["score"] is not None]
        best = f"; best {max(scored, key=lambda row: row['score'])['validation']}" if scored else ""
        waiting = [f"; trial {row['number']} {row['reason']}" for row in self._rows.values() if row["state"] == "running" and row["reason"]]
        return f"{len(states)} of {self._settings.total} trials begun{f': {counts}' if counts else ''}{best}{''.join(waiting)}"


def trial_cells(rows: list[dict[str, Any]], settings: SweepConfig) -> tuple[list[str], list[list[str]]]:
    """The headers and cells of a table with one line for each trial, in the order given."""
    keys = list(settings.space)
    cells = []
    for row in rows:
        values = [_number(row["params"].get(key, "")) for key in keys]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells.append([str(row["number"]), *values, str(row["steps"]), _score(row), seconds, row["state"], row["reason"]])
    return ["trial", *keys, "steps", "best validation", "s", "state", "reason"], cells


def _live_table(rows: list[dict[str, Any]], settings: SweepConfig) -> Table:
    """The same while the sweep runs, with the states in colours."""
    headers, cells = trial_cells(rows, settings)
    table = Table(*headers)
    for *values, state, reason in cells:
        table.add_row(*values, Text(state, _COLORS[state]), Text(reason))
    return table


def _score(row: dict[str, Any]) -> str:
    return "no validation" if row["validation"] is None else row["validation"]


def _params(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {_number(value)}" for key, value in row["params"].items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(trials: list[Trial], sweep_folder: RunFolder, settings: SweepConfig) -> list[Path]:
    """Write by_parameter.png, parallel.png and over_time.png into the sweep's folder."""
    matplotlib.use("agg")
    rows = [row for row in (parameters(trial, sweep_folder) for trial in trials) if row["score"] is not None]
    measurement = next(measured for trial in trials if (measured := trial.measurement(sweep_folder)))
    figures = {
        "by_parameter": _by_parameter(rows, settings, measurement),
        "parallel": _parallel(rows, settings, measurement),
        "over_time": _over_time(trials, sweep_folder, measurement),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(sweep_folder.picture(name))
        with paths[-1].open("wb") as file:
            figure.savefig(file, format="png", dpi=130)
    return paths


class _Axis:
    """The axis of a key: numbers between `low` and `high`, logarithmic if the key was drawn so, or choices in a row."""

    def __init__(self, key: str, rows: list[dict[str, Any]], settings: SweepConfig) -> None:
        self.key = key
        values = settings.space[key]
        self.log = values.loguniform is not None
        self.rows = [row for row in rows if row["params"].get(key) is not None]
        # Trial 0's value may differ from the choices, or be outside the range.
        self.labels = None if values.choice is None else _in_order([*values.choice, *(row["params"][key] for row in self.rows)])
        ends = [0.0, len(self.labels) - 1.0] if self.labels is not None else values.extremes
        places = [*ends, *map(self.at, self.rows)]
        self.low, self.high = min(places), max(places)

    def at(self, row: dict[str, Any]) -> float:
        value = row["params"][self.key]
        return float(value) if self.labels is None else float(self.labels.index(_number(value)))

    def share(self, row: dict[str, Any]) -> float:
        """The value's position between `low` (0) and `high` (1)."""
        at, low, high = np.log([self.at(row), self.low, self.high]) if self.log else (self.at(row), self.low, self.high)
        return 0.5 if high == low else float((at - low) / (high - low))

    def marks(self) -> list[tuple[float, str]]:
        """Positions between 0 and 1, with their labels."""
        if self.labels is None:
            return [(0, _number(self.low)), (1, _number(self.high))]
        return [(place / max(len(self.labels) - 1, 1), label) for place, label in enumerate(self.labels)]


def _in_order(values: list[Any]) -> list[str]:
    """Each value once, as text: numbers by size, anything else in the order given."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = sorted(values)
    return list(dict.fromkeys(map(_number, values)))


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _legend(figure: Figure, states: set[str]) -> None:
    handles = [
        matplotlib.lines.Line2D([], [], marker=_MARKERS[state], ls="", color=_COLORS[state], label=state)
        for state in _COLORS
        if state in states
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)


def _by_parameter(rows: list[dict[str, Any]], settings: SweepConfig, measurement: Measurement) -> Figure:
    """Best validation against each key, a point for each trial."""
    keys = list(settings.space)
    figure = Figure(figsize=(3.4 * len(keys) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for key, axes in zip(keys, panels, strict=True):
        axis = _Axis(key, rows, settings)
        for row in axis.rows:
            at, look = (axis.at(row), measurement.drawn(row["score"])), {"color": _COLORS[row["state"]], "marker": _MARKERS[row["state"]]}
            axes.scatter(*at, s=42, edgecolor="white", zorder=3, **look)
            axes.annotate(str(row["number"]), at, (5, 4), textcoords="offset points", fontsize=7, alpha=0.7)
        if axis.log:
            axes.set_xscale("log")
            axes.set_xlim(axis.low / 1.3, axis.high * 1.3)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        if axis.labels is not None:
            axes.set_xticks(range(len(axis.labels)), axis.labels)
        axes.set_xlabel(key)
        _style(axes)
    panels[0].set_ylabel(f"best validation, {measurement.label}")
    _legend(figure, {row["state"] for row in rows})
    return figure


def _parallel(rows: list[dict[str, Any]], settings: SweepConfig, measurement: Measurement) -> Figure:
    """A line for each trial through its values, coloured by its best validation; the best is on top."""
    keys = list(settings.space)
    figure = Figure(figsize=(1.9 * (len(keys) + 1) + 2.2, 4), layout="constrained")
    axes = figure.subplots()
    scores = np.array([row["score"] for row in rows])
    low, high = scores.min(), scores.max()
    least, most = sorted(measurement.drawn(score) for score in (low, max(high, low + 1e-9)))
    darkest_is_best = "cividis_r" if measurement.more_is_better else "cividis"
    color = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(least, most), darkest_is_best)
    axis = {key: _Axis(key, rows, settings) for key in keys}
    for row in sorted(rows, key=lambda row: row["score"]):
        if all(row["params"].get(key) is not None for key in keys):
            places = [axis[key].share(row) for key in keys] + [(row["score"] - low) / max(high - low, 1e-9)]
            axes.plot(places, color=color.to_rgba(np.array(measurement.drawn(row["score"]))), lw=1.8, alpha=0.9)
            axes.annotate(str(row["number"]), (len(keys), places[-1]), (4, -3), textcoords="offset points", fontsize=7, alpha=0.7)
    for position, key in enumerate(keys):
        for place, label in axis[key].marks():
            axes.annotate(label, (position, place), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8, bbox=_BEHIND)
    axes.set_xticks(range(len(keys) + 1), [*keys, "best validation"])
    axes.set_yticks([])
    axes.set_xlim(-0.45, len(keys) + 0.3)
    for position in range(len(keys) + 1):
        axes.axvline(position, color="#b8c0c6", lw=1, zorder=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.colorbar(color, ax=axes, label=f"best validation, {measurement.label}")
    return figure


def _over_time(trials: list[Trial], sweep_folder: RunFolder, measurement: Measurement) -> Figure:
    """When each trial ran, and the validations of all of them over their steps."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    start = min((trial.began for trial in trials if trial.began is not None), default=0.0)
    for trial in trials:
        color = _COLORS[trial.state]
        if trial.began is not None and trial.ended is not None:
            look = {"color": color, "edgecolor": "white", "hatch": _HATCHES[trial.state], "height": 0.75}
            bars.barh(trial.number, (trial.ended - trial.began) / 60, left=(trial.began - start) / 60, **look)
        curve = [(point.step, measurement.drawn(point.score)) for point in trial.curve(sweep_folder) if math.isfinite(point.score)]
        if curve:
            curves.plot(*zip(*curve, strict=True), color=color, lw=1.4, marker=_MARKERS[trial.state], ms=4)
            curves.annotate(str(trial.number), curve[-1], (4, -3), textcoords="offset points", fontsize=7, color=color)
    bars.set(xlabel="minutes since the sweep began", ylabel="trial")
    bars.invert_yaxis()
    bars.yaxis.get_major_locator().set_params(integer=True)
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.set(xlabel="step", ylabel=f"validation, {measurement.label}")
    for axes in (bars, curves):
        _style(axes)
    _legend(figure, {trial.state for trial in trials})
    return figure
