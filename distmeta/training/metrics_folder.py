"""Metrics files: one JSON line per step, in files that each cover the steps between two checkpoints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distmeta import files
from distmeta.training.storage import damaged, write_whole

Record = dict[str, Any]

OWN_METRICS = "learner/"
"""Prefix, in a step's record, of metrics that a learner defines."""

_FILES = "*.jsonl"


class MetricsFolder:
    """`<from>-<to>.jsonl` for the steps after <from>, up to <to>."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, after: int = -1) -> Iterator[Record]:
        """All records of steps later than `after`, in order. Raises RunError if a file is damaged."""
        for path in sorted(self._path.glob(_FILES), key=_range):
            if _range(path)[1] > after:
                yield from (record for record in read_lines(path) if record["step"] > after)

    def write(self, start: int, step: int, records: list[Record]) -> None:
        """Write the records of the steps after `start`, up to `step`, atomically."""
        write_whole(self._path / f"{start:06d}-{step:06d}.jsonl", "".join(json.dumps(record) + "\n" for record in records))

    def cut(self, step: int) -> None:
        """Remove all records of steps later than `step`."""
        self._path.mkdir(parents=True, exist_ok=True)
        for path in self._path.glob(_FILES):
            if _range(path)[1] > step:
                path.unlink()


class MetricsWriter:
    """Keeps records in memory and writes them when a checkpoint is due. A step repeated after a failure is written to the same file, so no
    step appears twice.
    """

    def __init__(self, folder: MetricsFolder, step: int) -> None:
        """`step` is where the run (re)starts. Files of later steps are left from a lost attempt and are removed."""
        self._folder = folder
        self._start = step
        self._records: list[Record] = []
        folder.cut(step)

    def add(self, record: Record) -> None:
        self._records.append(record)

    def flush(self, step: int) -> None:
        """Write the records up to `step` atomically."""
        if not self._records:
            return
        self._folder.write(self._start, step, self._records)
        self._start = step
        self._records = []


def read_lines(path: Path) -> list[Record]:
    """The records of a file with one record per line, each with its step. Raises RunError if the file is damaged."""
    try:
        records = [files.parse_json(line, finite=False) for line in files.read_bytes(path).decode().splitlines()]
        for number, record in enumerate(records, 1):
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError(f"line {number} is not the record of a step")
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return records


def _range(path: Path) -> tuple[int, int]:
    if not re.fullmatch(r"[0-9]{1,12}-[0-9]{1,12}", path.stem):
        raise damaged(path, ValueError("its name is not FROM-TO.jsonl"))
    start, _, end = path.stem.partition("-")
    return int(start), int(end)
