"""Metrics files: one JSON line per step, in files that each cover the steps between two checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distmeta.training.folder import write_whole

Record = dict[str, Any]

_STARTS = "starts.jsonl"


class MetricsWriter:
    """Keeps records in memory and writes `metrics/<from>-<to>.jsonl` when a checkpoint is due: the steps after <from>, up to <to>.

    A step that is repeated after a failure goes into the same file again, so no step ever stands twice.
    """

    def __init__(self, run_folder: Path, step: int) -> None:
        """`step` is where the run (re)starts; files of later steps are from a run that was lost, and go."""
        self.folder = run_folder / "metrics"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start = step
        self.records: list[Record] = []
        for path in self.folder.glob("*.jsonl"):
            if _range(path)[1] > step:
                path.unlink()

    def add(self, record: Record) -> None:
        self.records.append(record)

    def flush(self, step: int) -> None:
        """Write the records up to `step`, whole or not at all."""
        if not self.records:
            return
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_whole(self.folder / f"{self.start:06d}-{step:06d}.jsonl", lines)
        self.start = step
        self.records = []


def note_start(run_folder: Path, step: int) -> None:
    """Remember that workers began to train at `step`: 0 the first time, later ones after a failure or by --resume."""
    path = run_folder / _STARTS
    before = path.read_text() if path.exists() else ""
    write_whole(path, before + json.dumps({"step": step}) + "\n")


def restarts(run_folder: Path) -> list[int]:
    """The steps from which a run went on, after its first start."""
    path = run_folder / _STARTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines[1:]]


def _range(path: Path) -> tuple[int, int]:
    start, _, end = path.stem.partition("-")
    return int(start), int(end)


def read_metrics(run_folder: Path, after: int = -1) -> Iterator[Record]:
    """All records of steps later than `after`, in order."""
    for path in sorted((run_folder / "metrics").glob("*.jsonl"), key=_range):
        if _range(path)[1] > after:
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if record["step"] > after:
                    yield record
