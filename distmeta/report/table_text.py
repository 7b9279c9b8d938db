"""A table of tests as text, Markdown, LaTeX, CSV or JSON."""

import csv
import io
from collections.abc import Callable
from typing import Any, Literal

from distmeta.report.table import Cell, Pair, ResultTable

Form = Literal["text", "csv", "latex", "markdown"]
_LATEX = {"\\": r"\textbackslash{}", **{character: f"\\{character}" for character in "&%$#_{}"}}


def caption(table: ResultTable) -> str:
    """Sentences on the figures and on the meaning of bold."""
    shown = table.measurement
    unit = f" ({shown.unit})" if shown.unit else ""
    episodes = sorted({cell.scores.shape[1] for cell in table.cells})
    sentences = [f"{table.figure} {shown.axis or shown.name}{unit} over {' or '.join(map(str, episodes))} test episodes."]
    if _has_several_seeds(table):
        sentences.append("± is the 95 % interval over training seeds; in brackets, over episodes of these networks.")
    else:
        sentences.append("± is the 95 % interval over episodes of these networks; another training seed may differ by more.")
    if table.pairs:
        over = "over training seeds" if table.basis == "seeds" else "over episodes, of these networks"
        pairs = f"all {len(table.pairs)} pairs" if len(table.pairs) > 1 else "one pair"
        tests = f"paired t-tests {over}; Holm over {pairs}, 5 %"
        sentences.append(f"Bold: not separable from the column's best ({tests}).")
    if table.untested:
        names = ", ".join(_name(name) for name in table.untested)
        sentences.append(f"Not compared, because the tests were on different episodes: {names}.")
    if any(cell.published for cell in table.cells):
        sources = dict.fromkeys(cell.published["source"] for cell in table.cells if cell.published)
        sentences.append(f"Published: {'; '.join(sources)}.")
    return " ".join(sentences)


def differences(table: ResultTable) -> list[str]:
    """Each column's best cell minus every other, in sentences."""
    lines = []
    for column in table.column_names:
        best = table.best(column)
        for cell in table.cells if best else ():
            if cell.column == column and best is not None and (pair := table.pair(best, cell)) is not None:
                sign = 1 if pair.a == best.row else -1
                lines.append(f"{_of(table, column)}{_name(best.row)} - {_name(cell.row)}: {_difference(table, pair, sign)}")
    return lines


def _of(table: ResultTable, column: tuple[Any, ...]) -> str:
    return f"{', '.join(table.columns)} {_name(column)}: " if table.columns else ""


def _difference(table: ResultTable, pair: Pair, sign: int) -> str:
    return f"{table.measurement.difference(sign * pair.difference, pair.ci95)} (p = {pair.p_holm:.2g} by Holm)"


def written(table: ResultTable, form: Form) -> str:
    """The whole table, with its caption where the form has room for one."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv}[form](table)


def grid(table: ResultTable, shown: Callable[[ResultTable, Cell], str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table; a column of published figures follows each column that has any."""
    head, names = [", ".join(table.by)], table.column_names
    has_published = {name for name in names if any(cell.published for cell in table.cells if cell.column == name)}
    for name in names:
        head.append(f"{', '.join(table.columns)} {_name(name)}" if table.columns else table.figure)
        head += ["published"] if name in has_published else []
    rows = []
    for row in table.row_names:
        line = [_name(row)]
        for name in names:
            cell = table.cell(row, name)
            line.append("" if cell is None else shown(table, cell))
            line += [_published(cell)] if name in has_published else []
        rows.append(line)
    return head, rows


def figure(table: ResultTable, cell: Cell, plus_minus: str = " ± ") -> str:
    """The mean and its intervals, as the caption explains them: "97.1 ± 0.8 (0.2)", in such a table "97.1 (0.2)" for a single seed, or
    "97.1 ± 0.2" where every cell has one seed."""
    shown = table.measurement
    if cell.mean is None:
        return "not finite"
    over_seeds, over_episodes = (
        None if half is None else f"{shown.scale * half:.{shown.digits}f}" for half in (cell.ci95("seeds"), cell.ci95("episodes"))
    )
    first, second = (over_seeds, over_episodes) if _has_several_seeds(table) else (over_episodes, None)
    text = f"{shown.scale * cell.mean:.{shown.digits}f}" + (f"{plus_minus}{first}" if first else "")
    return f"{text} ({second})" if second else text


def _has_several_seeds(table: ResultTable) -> bool:
    return any(len(cell.seeds) > 1 for cell in table.cells)


def _published(cell: Cell | None) -> str:
    if cell is None or not cell.published:
        return ""
    half = cell.published.get("ci95")
    return f"{cell.published['figure']:g}" + (f" ± {half:g}" if half is not None else "")


def _name(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


def _text(table: ResultTable) -> str:
    """Aligned columns, with a star for bold; below, each best cell's differences to the others."""
    head, rows = grid(table, lambda table, cell: figure(table, cell) + (" *" if cell.bold else "  "))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        line[0].ljust(widths[0]) + "".join(f"  {text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in (head, ["-" * width for width in widths], *rows)
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", caption(table).replace("Bold:", "*:"), *differences(table)])


def _markdown(table: ResultTable) -> str:
    head, rows = grid(table, lambda table, cell: f"**{figure(table, cell)}**" if cell.bold else figure(table, cell))
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(table)}"


def _latex(table: ResultTable) -> str:
    def shown(table: ResultTable, cell: Cell) -> str:
        text = figure(table, cell, r"$\,\pm\,$")
        return rf"\textbf{{{text}}}" if cell.bold else text

    head, rows = grid(table, shown)
    places = [index for index, name in enumerate(head) if name != "published" and index]  # cells hold LaTeX already
    body = [[cell if index in places else _escaped(cell) for index, cell in enumerate(row)] for row in rows]
    lines = [rf"% {caption(table)}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, head)) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in body)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text).replace("±", r"$\pm$")


def _csv(table: ResultTable) -> str:
    """A line for each cell, with figures in the printed unit (such as %) but not rounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*table.by, *table.columns, "figure", "unit", "mean", *_CI95.values(), "seeds", "episodes", "bold", "published"])
    for cell in table.cells:
        half = [_scaled(table, cell.ci95(basis)) for basis in _CI95]  # type: ignore[arg-type]
        known = [*cell.row, *cell.column, table.figure, table.measurement.unit, _scaled(table, cell.mean), *half]
        published = cell.published["figure"] if cell.published else ""
        writer.writerow([*known, len(cell.seeds), cell.scores.shape[1], str(cell.bold).lower(), published])
    return out.getvalue().rstrip("\n")


_CI95 = {"seeds": "ci95_over_seeds", "episodes": "ci95_over_episodes"}


def _scaled(table: ResultTable, value: float | None) -> float | str:
    return "" if value is None else table.measurement.scale * value


def as_dict(table: ResultTable) -> dict[str, Any]:
    """What `distmeta table --json` prints: figures as stored."""
    cells = [
        {
            "row": dict(zip(table.by, cell.row, strict=True)),
            "column": dict(zip(table.columns, cell.column, strict=True)),
            "mean": cell.mean,
            **{name: cell.ci95(basis) for basis, name in _CI95.items()},  # type: ignore[arg-type]
            "training_seeds": list(cell.seeds),
            "episodes": cell.scores.shape[1],
            "bold": cell.bold,
            "published": cell.published,
        }
        for cell in table.cells
    ]
    pairs = [
        {
            "column": dict(zip(table.columns, pair.column, strict=True)),
            "a": dict(zip(table.by, pair.a, strict=True)),
            "b": dict(zip(table.by, pair.b, strict=True)),
            "difference": pair.difference,
            "ci95": pair.ci95,
            "p": pair.p,
            "p_holm": pair.p_holm,
        }
        for pair in table.pairs
    ]
    named = {"figure": table.figure, "measure": table.measurement.name, "unit": table.measurement.unit, "tests_over": table.basis}
    return named | {"cells": cells, "pairs": pairs, "caption": caption(table)}
