"""The notebooks of the documentation: executed from top to bottom, with outputs that a new execution repeats."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from notebooks import NOTEBOOKS, executed
from prose import found, prose

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(cell: Any) -> str:
    """All that the cell printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_in_order_and_is_small(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells(notebook)) >= 4
    assert not any(output["output_type"] == "error" for cell in cells(notebook) for output in cell["outputs"])
    assert path.stat().st_size < 150_000
    assert not re.search(r"/(?:tmp|home|root|work)/", path.read_text()), "a path of one machine"
    for cell in cells(notebook):
        ast.parse("\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("!")))
    words = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert found(prose(words)) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_new_execution_repeats_the_outputs(path: Path, tmp_path: Path) -> None:
    """The words are the same. Numbers may differ on another kind of CPU: accuracies by at most 15 points."""
    for stored, fresh in zip(cells(json.loads(path.read_text())), cells(executed(path, tmp_path)), strict=True):
        assert NUMBER.sub("#", text_of(fresh)) == NUMBER.sub("#", text_of(stored))
        pairs = zip(NUMBER.findall(text_of(stored)), NUMBER.findall(text_of(fresh)), strict=True)
        assert all(abs(float(before) - float(after)) <= 15 for before, after in pairs)
        assert [output["output_type"] for output in fresh["outputs"]] == [output["output_type"] for output in stored["outputs"]]
