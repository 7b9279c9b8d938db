"""Tests in a table: a mean with its intervals in each cell, and in each column the cells that cannot be separated from the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distmeta.errors import ConfigError
from distmeta.report.outcomes import Outcome
from distmeta.training.intervals import FEWEST, FEWEST_SEEDS, holm, mean_and_ci95, paired
from distmeta.training.measurement import Measurement, score_of

_LEVEL = 0.05
Basis = Literal["seeds", "episodes"]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their training seed alone: `scores` (seeds, episodes) of one figure, `seeds` in the same order.

    `bold`: it is the best of its column, or no test separates it from the best.
    """

    row: tuple[Any, ...]
    column: tuple[Any, ...]
    seeds: tuple[int | None, ...]
    on: tuple[Any, ...]
    scores: NDArray[np.float64]
    published: dict[str, Any] | None
    bold: bool = False

    @property
    def mean(self) -> float | None:
        return mean_and_ci95(self.scores.mean(1))[0]

    def ci95(self, basis: Basis) -> float | None:
        """The half-width of the mean's 95% interval: over training seeds, or over episodes for these networks."""
        return mean_and_ci95(self.means(basis), FEWEST_SEEDS if basis == "seeds" else FEWEST)[1]

    def means(self, basis: Basis) -> NDArray[np.float64]:
        """One value for each seed, or for each episode."""
        means: NDArray[np.float64] = self.scores.mean(1 if basis == "seeds" else 0)
        return means


@dataclass(frozen=True)
class Pair:
    """Two cells of a column: the mean of a - b with the half-width of its 95% interval, its p-value, and the p-value adjusted by Holm."""

    column: tuple[Any, ...]
    a: tuple[Any, ...]
    b: tuple[Any, ...]
    difference: float
    ci95: float | None
    p: float
    p_holm: float = math.nan

    @property
    def separable(self) -> bool:
        return self.p_holm < _LEVEL


@dataclass(frozen=True)
class ResultTable:
    """`by` and `columns` name the facts of rows and columns. The tests of `pairs` are over `basis` (seeds or episodes). `untested` are
    columns that are not compared, because their cells were tested on different episodes.
    """

    by: tuple[str, ...]
    columns: tuple[str, ...]
    figure: str
    measurement: Measurement
    cells: list[Cell]
    pairs: list[Pair]
    basis: Basis
    untested: list[tuple[Any, ...]]

    @property
    def row_names(self) -> list[tuple[Any, ...]]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def column_names(self) -> list[tuple[Any, ...]]:
        return sorted(dict.fromkeys(cell.column for cell in self.cells), key=_in_order)

    def cell(self, row: tuple[Any, ...], column: tuple[Any, ...]) -> Cell | None:
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)

    def pair(self, a: Cell, b: Cell) -> Pair | None:
        return next((pair for pair in self.pairs if pair.column == a.column and {pair.a, pair.b} == {a.row, b.row}), None)

    def best(self, column: tuple[Any, ...]) -> Cell | None:
        """The cell with the best mean; None if no mean of the column is finite."""
        cells = [cell for cell in self.cells if cell.column == column and cell.mean is not None]
        return max(cells, key=lambda cell: score_of(cell.mean, self.measurement.more_is_better), default=None)


def tabulate(tests: Sequence[Outcome], by: Sequence[str], columns: Sequence[str], figure: str | None = None) -> ResultTable:
    """A cell for each combination of the values of the facts `by` and `columns`.

    `figure`: which of a test's columns, such as "inductive" (default: the one that papers quote). Raises ConfigError if a fact or figure
    is unknown, or the runs of a cell differ in more than their training seed.
    """
    if not tests:
        raise ConfigError("there is no finished run to tabulate", "give run folders that hold a test, or registered models")
    for key in (*by, *columns):
        if not any(key in test.facts for test in tests):
            known = sorted({fact for test in tests for fact in test.facts})
            raise ConfigError(f"no run has a {key} to order by", f"choose of {', '.join(known)}")
    grouped: dict[tuple[tuple[Any, ...], tuple[Any, ...]], list[Outcome]] = {}
    for test in {test.origin: test for test in tests}.values():
        place = tuple(_plain(test.facts.get(key)) for key in by), tuple(_plain(test.facts.get(key)) for key in columns)
        grouped.setdefault(place, []).append(test)
    cells = [_cell(row, column, group, figure) for (row, column), group in grouped.items()]
    first = tests[0].measurement
    if any((test.measurement.name, test.measurement.unit) != (first.name, first.unit) for test in tests):
        names = ", ".join(sorted({test.measurement.name for test in tests}))
        raise ConfigError(f"the runs were measured differently: {names}", "tabulate runs of one domain at a time")
    table = ResultTable(
        by=tuple(by),
        columns=tuple(columns),
        figure=figure or first.columns[first.headline],
        measurement=first,
        cells=cells,
        pairs=[],
        basis=_basis(cells),
        untested=[],
    )
    return _compared(table)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, dict | list) else value


def _in_order(name: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((not isinstance(value, int | float), value if isinstance(value, int | float) else str(value)) for value in name)


def _cell(row: tuple[Any, ...], column: tuple[Any, ...], group: list[Outcome], figure: str | None) -> Cell:
    group = sorted(group, key=lambda test: (test.training_seed is None, test.training_seed or 0))
    first = group[0]
    for other in group[1:]:
        differing = [key for key, value in first.facts.items() if key != "run" and other.facts.get(key) != value]
        if differing:
            values = f"{first.facts[differing[0]]} and {other.facts.get(differing[0])}"
            message = f"{first.origin} and {other.origin} share a cell, but differ in {differing[0]}: {values}"
            raise ConfigError(message, f"separate them: --by or --columns with {differing[0]}, or --by run")
        if other.on != first.on:
            message = f"{first.origin} and {other.origin} share a cell, but were not tested on the same episodes"
            raise ConfigError(message, "evaluate both with the same data.eval.*, or tell them apart: --by run")
    seeds = tuple(test.training_seed for test in group)
    if len(group) > 1 and (None in seeds or len(set(seeds)) < len(seeds)):
        message = f"the runs of a cell have training seeds {', '.join(map(str, seeds))}: {', '.join(test.origin for test in group)}"
        raise ConfigError(message, "give one run of each seed, or tell them apart: --by run")
    scores = np.stack([test.scores[:, _column(test, figure)] for test in group])
    return Cell(row=row, column=column, seeds=seeds, on=first.on, scores=scores, published=first.published)


def _column(test: Outcome, figure: str | None) -> int:
    names = test.measurement.columns
    if figure is None:
        return test.measurement.headline
    if figure not in names:
        raise ConfigError(f"--figure {figure}: {test.origin} has none of that name", f"choose of {', '.join(names)}")
    return names.index(figure)


def _basis(cells: Sequence[Cell]) -> Basis:
    """Seeds if every cell has the same ones as the others of its column, and enough of them; else episodes."""
    enough = all(len(cell.seeds) >= FEWEST for cell in cells)
    same = all(a.seeds == b.seeds for a, b in combinations(cells, 2) if a.column == b.column)
    return "seeds" if enough and same else "episodes"


def _compared(table: ResultTable) -> ResultTable:
    """Compare all pairs of each column, and mark the cells that cannot be separated from the best as bold."""
    untested = [name for name in table.column_names if len({cell.on for cell in table.cells if cell.column == name}) > 1]
    pairs = []
    for a, b in combinations(table.cells, 2):
        if a.column == b.column and a.column not in untested:
            test = paired(a.means(table.basis), b.means(table.basis), FEWEST_SEEDS if table.basis == "seeds" else FEWEST)
            if test.difference is not None and test.p is not None:
                pairs.append(Pair(column=a.column, a=a.row, b=b.row, difference=test.difference, ci95=test.ci95, p=test.p))
    adjusted = holm([pair.p for pair in pairs])
    table = replace(table, pairs=[replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)], untested=untested)
    return replace(table, cells=[replace(cell, bold=_is_bold(table, cell)) for cell in table.cells])


def _is_bold(table: ResultTable, cell: Cell) -> bool:
    best = table.best(cell.column)
    if best is None or cell.column in table.untested:
        return False
    pair = table.pair(cell, best)
    return cell is best or (pair is not None and not pair.separable)
