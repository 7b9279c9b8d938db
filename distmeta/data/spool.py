"""Temporary storage of a pack's encoded images: one file with all images, and a journal of its contents.

A killed pack continues from the journal. The spool is truncated to the last batch that is complete in the journal and unchanged in the
source.
"""

import json
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from distmeta.data.encode import EncodedBatch, crc
from distmeta.data.sources import SourceImage

_SPOOL = "spool"


class SpooledClass:
    """One class's images: each one's offset in the spool, size and digest. They take 24 bytes per image."""

    def __init__(self, category: str) -> None:
        self.category = category
        self.offsets = array("q")
        self.sizes = array("q")
        self.digests = array("Q")


class Spool:
    """The images encoded so far. `classes` by (split, name); `skipped` is (origin, reason) of those that do not decode.

    `brightest` is the largest value of the 16-bit images read by their full range, with that image's origin, or None. `several` counts
    files of which only the first picture was read.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Open the spool in `folder`. Its contents are kept if they were written with the same `header`."""
        self.path = folder / _SPOOL
        self._journal_path = folder / "journal"
        self._open(header, None)

    def _open(self, header: dict[str, Any], most: int | None) -> None:
        """Keep the spool's batches written with `header`, at most `most` of them."""
        self._header = header
        self.classes: dict[tuple[str, str], SpooledClass] = {}
        self.skipped: list[tuple[str, str]] = []
        self.sums: list[int] = []
        self.squares: list[int] = []
        self.images = 0
        self.several = 0
        self.brightest: tuple[int, str] | None = None
        self._source_crcs = array("Q")
        self._end = 0
        self._resume(header, most)
        self._file = self.path.open("ab", buffering=0)
        self._journal = self._journal_path.open("ab", buffering=0)

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether a spool in `folder` holds an image."""
        path = folder / _SPOOL
        return path.exists() and path.stat().st_size > 0

    @property
    def batches(self) -> int:
        return len(self._source_crcs)

    def append(self, batch: EncodedBatch) -> None:
        """Write the images first, then their line in the journal, so that every line is true."""
        content = b"".join(image.content for image in batch.images)
        entry = {
            "crcs": [batch.source_crc, zlib.crc32(content)],
            "sums": batch.sums,
            "squares": batch.squares,
            "several": sum(image.has_more for image in batch.images),
            "brightest": max(((image.peak, image.origin) for image in batch.images if image.peak is not None), default=None),
            "images": [[len(image.content), *image[:4], image.digest, image.problem] for image in batch.images],
        }
        _write(self._file, content)
        _write(self._journal, _line(entry))
        self._take(entry)

    def close(self) -> None:
        self._file.close()
        self._journal.close()

    def holds(self, number: int, batch: list[SourceImage]) -> bool:
        """Whether batch `number` of the spool was made from these images."""
        return bool(batch) and crc(batch) == self._source_crcs[number]

    def cut(self, batches: int) -> None:
        """Keep only the first `batches` batches."""
        self.close()
        self._open(self._header, batches)

    def _resume(self, header: dict[str, Any], most: int | None) -> None:
        entries = _entries(self._journal_path)
        if next(entries, (None, 0))[0] != header or not self.path.exists():  # no journal, or one written with other options
            self.path.write_bytes(b"")
            self._journal_path.write_bytes(_line(header))
            return
        kept = len(_line(header))
        with self.path.open("rb") as spool:
            for entry, length in islice(entries, most):
                if zlib.crc32(spool.read(_bytes(entry))) != entry["crcs"][1]:
                    break
                self._take(entry)
                kept += length
        os.truncate(self.path, self._end)
        os.truncate(self._journal_path, kept)

    def _take(self, entry: dict[str, Any]) -> None:
        self._source_crcs.append(entry["crcs"][0])
        self.sums = [a + b for a, b in zip(self.sums or [0] * len(entry["sums"]), entry["sums"], strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or [0] * len(entry["squares"]), entry["squares"], strict=True)]
        self.several += entry["several"]
        if entry["brightest"]:
            self.brightest = max(self.brightest or (-1, ""), (entry["brightest"][0], entry["brightest"][1]))
        for size, split, name, category, origin, digest, problem in entry["images"]:
            spooled = self.classes.setdefault((split, name), SpooledClass(category))
            self.images += 1
            if problem:
                self.skipped.append((origin, problem))
                continue
            spooled.offsets.append(self._end)
            spooled.sizes.append(size)
            spooled.digests.append(digest)
            self._end += size

    def origins(self, wanted: set[tuple[str, str, int]]) -> dict[tuple[str, str, int], str]:
        """The origins of images, each given as (split, class name, position in the class), read from the journal."""
        origins, seen = {}, Counter[tuple[str, str]]()
        for entry, _ in islice(_entries(self._journal_path), 1, None):
            for _, split, name, _, origin, _, problem in entry["images"]:
                if problem:
                    continue
                image = (split, name, seen[split, name])
                if image in wanted:
                    origins[image] = origin
                seen[split, name] += 1
        return origins


def _bytes(entry: dict[str, Any]) -> int:
    return sum(image[0] for image in entry["images"])


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _entries(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The journal's entries, each with its line's length, up to the first incomplete line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                return
            yield json.loads(text), len(line)


def _write(file: Any, content: bytes) -> None:
    """Write all bytes. A single write to an unbuffered file may write only a part."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
