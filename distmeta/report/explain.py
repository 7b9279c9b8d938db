"""One picture of a prediction: what the model was shown, what it was asked, what it said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distmeta.data.fonts import drawable
from distmeta.errors import DataError
from distmeta.inference.predict import FileReader, Prediction, Support, wrong_first

_COLUMNS = 10
_SUPPORT_SHOWN = 2  # rows: the first images of each class
_QUERIES_SHOWN = 60
_RIGHT, _WRONG, _UNKNOWN = "#2e7d32", "#c62828", "#555555"


def draw(support: Support, predictions: Sequence[Prediction], file: Path, reader: FileReader) -> None:
    """Draw the support images by class, then queries with class and probability, wrong ones (where known) first and marked; all as the
    network sees them.

    Of many, the first of each are drawn. Raises DataError if `file` cannot be written.
    """
    shown = wrong_first(predictions)[:_QUERIES_SHOWN]
    cells = [(path, name, "black") for name, paths in support.classes.items() for path in paths[:_SUPPORT_SHOWN]]
    support_rows, query_rows = (-(-len(part) // _COLUMNS) for part in (cells, shown))
    figure = Figure(figsize=(1.35 * _COLUMNS, 1.75 * (support_rows + query_rows) + 1.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[support_rows, max(query_rows, 1)], squeeze=False).flat
    above.suptitle("support")
    below.suptitle(f"queries ({len(shown)} of {len(predictions)})" if len(shown) < len(predictions) else "queries")
    _grid(above, cells, support_rows, reader)
    _grid(below, [(prediction.file, *_caption(prediction)) for prediction in shown], query_rows, reader)
    try:
        figure.savefig(file, format="png", dpi=110, facecolor="white")
    except (OSError, ValueError) as error:
        raise DataError(f"--explain {file} cannot be written: {error}", "give the path of a .png file in a folder that exists") from None


def _caption(prediction: Prediction) -> tuple[str, str]:
    said = f"{_short(prediction.label)}\n{100 * prediction.probability:.0f} %"
    if prediction.truth is None:
        return said, _UNKNOWN
    return (said, _RIGHT) if prediction.truth == prediction.label else (f"{said}\n× is {_short(prediction.truth)}", _WRONG)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _grid(part: Any, cells: Sequence[tuple[Path, str, str]], rows: int, reader: FileReader) -> None:
    all_axes = list(part.subplots(max(rows, 1), _COLUMNS, squeeze=False).flat)
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (path, caption, color) in zip(all_axes, cells, strict=False):
        pixels, _ = reader.read(path)
        axes.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
        title = drawable(_short(caption) if "\n" not in caption else caption)
        # A name is text, never a formula between dollar signs.
        axes.set_title(title.text, font=title.font, fontsize=8, color=color, parse_math=False)
