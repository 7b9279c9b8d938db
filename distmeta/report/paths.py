"""Pictures of policies: their paths in a plane before and after adaptation, and frames or returns of other environments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distmeta.envs.environment import Environment
from distmeta.errors import DataError
from distmeta.learners.trajectories import Trajectories
from distmeta.report.figures import COLORS, INK, STYLE, svg_of

_SHOWN = 8  # trajectories of a task


def paths_figure(places: Sequence[Tensor], lived: Sequence[Tensor], goals: Tensor) -> Figure:
    """A row for each phase and a column for each task: trajectories as lines, the goal as a cross.

    places: for each phase (T, N, H + 1, 2); lived: for each phase (T, N, H), 1 up to a trajectory's end; goals (T, 2).
    """
    with matplotlib.rc_context(STYLE):
        size = 2.1
        figure = Figure(figsize=(size * len(goals) + 0.6, size * len(places)), layout="constrained")
        panels = figure.subplots(len(places), len(goals), sharex=True, sharey=True, squeeze=False)
        for phase, (walked, alive) in enumerate(zip(places, lived, strict=True)):
            panels[phase, 0].set_ylabel(f"after {phase} steps" if phase != 1 else "after 1 step")
            for task, goal in enumerate(goals.tolist()):
                _draw(panels[phase, task], walked[task, :_SHOWN], alive[task, :_SHOWN], goal)
        return figure


def draw_adaptation(environment: Environment, task: Sequence[float], played: Sequence[Trajectories], path: Path) -> None:
    """A PNG of one task's paths after 0, 1, … inner steps, or of its returns where the environment is not a plane.

    Raises DataError if the file cannot be written.
    """
    places = [environment.places(trajectories.observations) for trajectories in played]
    drawn = [place for place in places if place is not None]
    if drawn:
        figure = paths_figure(drawn, [trajectories.lived for trajectories in played], drawn[0].new_tensor([list(task)]))
    else:
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.boxplot([trajectories.returns[0].tolist() for trajectories in played], tick_labels=[str(i) for i in range(len(played))])
        axes.set(xlabel="inner steps", ylabel="return of a trajectory")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", "give --out a path in a folder that exists") from None


def write_gif(frames: Sequence[NDArray[np.uint8]], path: Path, frame_s: float = 0.05) -> None:
    """Frames (height, width, 3), each shown for `frame_s` seconds. Raises DataError if the file cannot be written."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    try:
        first.save(path, save_all=True, append_images=others, duration=round(1000 * frame_s), loop=0)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", "give --out a path in a folder that exists") from None


def paths_svg(places: Sequence[Tensor], lived: Sequence[Tensor], goals: Tensor) -> str:
    """The same as SVG."""
    return svg_of(paths_figure(places, lived, goals), "paths")


def _draw(panel: Any, walked: Tensor, alive: Tensor, goal: list[float]) -> None:
    for path, steps in zip(walked, alive.sum(-1).long().tolist(), strict=True):
        x, y = path[: steps + 1].T.tolist()
        panel.plot(x, y, color=COLORS[0], linewidth=0.8, alpha=0.7)
    panel.plot(*goal, marker="x", markersize=8, color=COLORS[1], markeredgewidth=2)
    panel.plot(*walked[0, 0].tolist(), marker="o", markersize=4, color=INK)
    panel.set_aspect("equal")
