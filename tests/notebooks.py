"""Executes the notebooks of docs/notebooks/: python tests/notebooks.py writes their outputs again; test_notebooks.py compares."""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook with fresh outputs, run in `folder`. Raises CellExecutionError."""
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ |= paths
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return tidied(content)


def tidied(content: Any) -> Any:
    """The notebook with printed text and figures alone. Progress, terminals' control sequences and versions are left out."""
    content.metadata = {"kernelspec": content.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in content.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            printed = [output for output in cell.outputs if output.get("name") == "stdout"]
            figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            for output in printed:
                output["text"] = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", output["text"])
            cell.outputs = [*printed, *figures]
    return content


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(executed(path, Path(scratch)), path)
        print(f"wrote {path}")
