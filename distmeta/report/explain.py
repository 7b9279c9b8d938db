"""One picture of a prediction: support images, queries and answers."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from matplotlib.figure import Figure

from distmeta.data.fonts import drawable
from distmeta.errors import DataError
from distmeta.inference.predict import FileReader, Prediction, Support, wrong_first

_COLUMNS = 10
_SUPPORT_SHOWN = 600
_QUERIES_SHOWN = 60
_LINE_LENGTH = 15  # characters below a picture
_CELL_INCHES, _PICTURE, _LINE, _HEADING = 1.35, 0.9, 0.1, 0.35  # a cell's width in inches; heights in widths of a cell
_RIGHT, _WRONG, _UNKNOWN = "#2e7d32", "#c62828", "#555555"

T = TypeVar("T")


class _Cell(NamedTuple):
    """One picture, the lines below it, and their color."""

    file: Path
    lines: list[str]
    color: str


def draw(support: Support, predictions: Sequence[Prediction], file: Path, reader: FileReader) -> None:
    """Draw the support images by class, then queries with class and probability, wrong ones (where known) first and marked; all as the
    network sees them.

    Of more than 60 queries the first of each class are drawn in turn. Raises DataError if `file` cannot be written.
    """
    ordered = wrong_first(predictions)
    wrong, others = [p for p in ordered if p.wrong], [p for p in ordered if not p.wrong]
    shown = [*_in_turn(wrong, _class_of), *_in_turn(others, _class_of)][:_QUERIES_SHOWN]
    files = [(name, path) for name, paths in support.classes.items() for path in paths]
    kept = set(_in_turn(files, lambda entry: entry[0])[:_SUPPORT_SHOWN])
    cells = [_Cell(path, _wrapped(name), "black") for name, path in files if (name, path) in kept]
    parts = [(_heading("support", len(cells), len(files)), cells)] if files else []
    parts.append((_heading("queries, wrong ones first" if wrong else "queries", len(shown), len(predictions)), [*map(_cell, shown)]))
    height = sum(_HEADING + sum(_height(row) for row in _rows(part)) for _, part in parts)
    figure = Figure(figsize=(_CELL_INCHES * _COLUMNS, _CELL_INCHES * height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _COLUMNS), ylim=(height, 0))
    axes.set_axis_off()
    top = 0.0
    for heading, part in parts:
        axes.text(_COLUMNS / 2, top + _HEADING / 2, heading, fontsize=11, ha="center", va="center")
        top = _draw_rows(axes, part, top + _HEADING, reader)
    try:
        figure.savefig(file, format="png", dpi=110, facecolor="white")
    except (OSError, ValueError) as error:
        raise DataError(f"--explain {file} cannot be written: {error}", "give the path of a .png file in a folder that exists") from None


def _heading(what: str, shown: int, count: int) -> str:
    return f"{what} ({shown} of {count})" if shown < count else what


def _class_of(prediction: Prediction) -> str:
    return prediction.truth or prediction.label


def _in_turn(items: Iterable[T], group: Callable[[T], str]) -> list[T]:
    """The first item of each group, then the second of each, and so on."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    return [item for round_ in zip_longest(*groups.values()) for item in round_ if item is not None]


def _cell(prediction: Prediction) -> _Cell:
    said = [*_wrapped(prediction.label), f"{100 * prediction.probability:.0f} %" + (" rejected" if prediction.rejected else "")]
    if prediction.truth is None or prediction.rejected:
        return _Cell(prediction.file, said, _UNKNOWN)
    if prediction.right:
        return _Cell(prediction.file, said, _RIGHT)
    return _Cell(prediction.file, [*said, *_wrapped(f"× is {prediction.truth}")], _WRONG)


def _wrapped(name: str) -> list[str]:
    """All of a name, in lines that fit below a picture."""
    return textwrap.wrap(name, _LINE_LENGTH) or [name]


def _rows(cells: Sequence[_Cell]) -> list[Sequence[_Cell]]:
    return [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]


def _height(row: Sequence[_Cell]) -> float:
    return _PICTURE + _LINE * (max(len(cell.lines) for cell in row) + 1)


def _draw_rows(axes: Any, cells: Sequence[_Cell], top: float, reader: FileReader) -> float:
    """Draw pictures in rows below `top`; returns their lower end."""
    margin = (1 - _PICTURE) / 2
    for row in _rows(cells):
        for column, cell in enumerate(row):
            pixels, _ = reader.read(cell.file)
            extent = (column + margin, column + 1 - margin, top + _PICTURE, top)
            axes.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
            caption = drawable("\n".join(cell.lines))
            place = (column + 0.5, top + _PICTURE + _LINE / 2)
            # A name is text, never a formula between dollar signs.
            axes.text(*place, caption.text, font=caption.font, fontsize=7, color=cell.color, ha="center", va="top", parse_math=False)
        top += _height(row)
    return top
