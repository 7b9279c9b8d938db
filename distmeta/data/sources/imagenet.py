"""ImageNet classes from the archive of per-class tars (ILSVRC2012_img_train.tar) or from a folder, split by a list of classes.

The archive is read in one sequential pass: it is never unpacked to disk, and one image at a time is in memory.
"""

import csv
import logging
import re
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from distmeta.data.decode import read_file
from distmeta.data.image_files import is_image_name
from distmeta.data.sources import SourceImage
from distmeta.data.splits import SPLITS
from distmeta.data.tars import AGAIN, content_of, members
from distmeta.errors import DataError
from distmeta.files import read_bytes

_log = logging.getLogger(__name__)
_LONGEST_LIST = 1 << 26  # bytes; ImageNet's 14 million images are never listed
WNID = re.compile(r"n\d{8}")
_LAYOUT = "give ILSVRC2012_img_train.tar, or a folder that holds n01443537/*.JPEG or n01443537.tar for each class"

Choose = Callable[[str, list[str]], Collection[str]]


class Class(NamedTuple):
    """A class's place in the list of classes."""

    split: str
    category: str


def read(source: Path, splits: Path, allow_missing: bool = False, report: Callable[[str], None] = _log.warning) -> Iterator[SourceImage]:
    """Every image of the classes that `splits` names, in the order of `source`.

    `source` is an archive of per-class tars, or a folder of per-class folders or tars; `splits` holds train.csv, val.csv and test.csv with
    rows `wnid,category`. If `source` lacks classes, DataError is raised before the first image; with `allow_missing` they are reported once
    per split.
    """
    with readable(source):
        classes = _read_splits(splits)
        places = find_classes(source)
        check_missing(classes, set(places), source, allow_missing, report)
        for wnid, origin, image in pictures(source, {wnid: path for wnid, path in places.items() if wnid in classes}):
            yield SourceImage(split=classes[wnid].split, class_name=wnid, category=classes[wnid].category, image=image, origin=origin)


def estimate(source: Path, splits: Path) -> int | None:
    """The approximate number of images: a folder's files, or an archive's bytes divided by the size of an image in its first class. None if
    `read` will refuse the source, or if classes in a folder are tars.
    """
    try:
        with readable(source):
            classes = _read_splits(splits)
            if source.is_dir():
                folders = [path for wnid, path in find_classes(source).items() if wnid in classes]
                return None if any(map(Path.is_file, folders)) else sum(is_image_name(f.name) for p in folders for f in p.iterdir())
            with source.open("rb") as file:
                wanted = [m for m in members(file, "r:", str(source)) if _is_class_tar(m[0].name) and _wnid(m[0].name) in classes]
                first = sum(is_image_name(m.name) for m, _ in members(wanted[0][1], "r:", str(source))) if wanted else 0
                return sum(m.size for m, _ in wanted) * first // max(1, wanted[0][0].size) if wanted else None
    except DataError:
        return None


@contextmanager
def readable(source: Path) -> Iterator[None]:
    """An OSError under `source` becomes a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}", "check its permissions and its disk") from error


def find_classes(source: Path) -> dict[str, Path]:
    """WordNet id → the class's location: `source` itself if it is an archive, else a folder or tar in it. Raises DataError if there is
    none.
    """
    if source.is_dir():
        return _places([(path.name, path) for path in sorted(source.iterdir()) if _names_class(path.name)], source)
    return _places([(name, source) for name in _outer_names(source)], source)


def pictures(source: Path, places: dict[str, Path], choose: Choose | None = None) -> Iterator[tuple[str, str, bytes]]:
    """(wnid, origin, encoded image) of the classes in `places`. `choose(wnid, names)` selects among a class's files; None takes all."""
    if source.is_dir():
        yield from _from_folder(places, choose)
    else:
        yield from _from_archive(source, places, choose)


def rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line number, line, its fields) of every non-empty line of a CSV file. Raises DataError if the file does not exist."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; a class split is train.csv, val.csv and test.csv", "give the folder that holds them")
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            try:
                fields = next(csv.reader([line]))
            except csv.Error as error:
                raise DataError(f"{path} line {number} is {line[:60]!r}…: {error}", "write one row of a CSV file on each line") from None
            yield number, line, [field.strip() for field in fields]


def _text(path: Path) -> str:
    try:
        return read_bytes(path, _LONGEST_LIST).decode(errors="replace")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give the folder that holds the class split") from None


def _read_splits(folder: Path) -> dict[str, Class]:
    classes: dict[str, Class] = {}
    for split in SPLITS:
        path = folder / f"{split}.csv"
        for number, line, row in rows(path):
            if len(row) != 2 or not all(WNID.fullmatch(field) for field in row):
                raise DataError(f"{path} line {number} is {line!r}; a row is wnid,category without a header", "write n02099267,n02098550")
            wnid, category = row
            if wnid in classes:
                raise DataError(
                    f"{path} line {number} names {wnid}, which {classes[wnid].split}.csv names already; a class is in one split",
                    "delete one of the two rows",
                )
            classes[wnid] = Class(split, category)
    return classes


def _wnid(name: str) -> str:
    """The class of an archive member or a folder entry. Names are labels only, never paths to write to."""
    return PurePosixPath(name).name.removesuffix(".tar")


def _names_class(name: str) -> bool:
    return WNID.fullmatch(_wnid(name)) is not None


def _places(entries: list[tuple[str, Path]], source: Path) -> dict[str, Path]:
    """The location of each class. A class with two locations would put the same images into a task twice."""
    places: dict[str, Path] = {}
    for name, path in entries:
        wnid = _wnid(name)
        if wnid in places:
            raise DataError(f"{source} holds class {wnid} twice; it must hold each class once", "remove one of the two")
        places[wnid] = path
    if not places:
        raise DataError(f"{source} holds no class; classes are named like n01443537", _LAYOUT)
    return places


def _outer_names(source: Path) -> list[str]:
    """The archive's per-class tars, found by seeking from header to header. A truncated archive or a missing class is found within
    seconds.
    """
    if not source.is_file():
        raise DataError(f"{source} is neither a file nor a folder", _LAYOUT)
    with source.open("rb") as file:
        return [member.name for member, _ in members(file, "r:", str(source)) if _is_class_tar(member.name)]


def _is_class_tar(name: str) -> bool:
    return name.endswith(".tar") and _names_class(name)


def check_missing(classes: dict[str, Class], present: set[str], source: Path, allow_missing: bool, report: Callable[[str], None]) -> None:
    """Raises DataError if `present` lacks some of `classes`, or all of a split. With `allow_missing`, lacking some is only reported."""
    missing: list[str] = []
    for split in SPLITS:
        named = [wnid for wnid in classes if classes[wnid].split == split]
        absent = [wnid for wnid in named if wnid not in present]
        if len(absent) == len(named):
            raise DataError(
                f"{source} holds none of the {len(named)} classes that {split}.csv names; a split needs at least one",
                f"name classes that the archive holds, such as {min(present)}, in {split}.csv",
            )
        if absent:
            names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            missing.append(f"{len(absent)} of {len(named)} {split} classes ({names})")
    if missing and not allow_missing:
        raise DataError(f"{source} lacks {'; '.join(missing)}", "give the whole archive, or pass --allow-missing to continue without them")
    for text in missing:
        report(f"{source} lacks {text}; continuing without them")


def _from_archive(source: Path, wnids: Container[str], choose: Choose | None) -> Iterator[tuple[str, str, bytes]]:
    with source.open("rb") as file:
        for member, content in members(file, "r:" if choose else "r|", str(source)):
            if _is_class_tar(member.name) and _wnid(member.name) in wnids:
                yield from _from_class_tar(content, _wnid(member.name), f"{source}:{member.name}", choose)


def _from_folder(places: dict[str, Path], choose: Choose | None) -> Iterator[tuple[str, str, bytes]]:
    for wnid, path in places.items():
        if path.is_file():
            with path.open("rb") as tar:
                yield from _from_class_tar(tar, wnid, str(path), choose)
            continue
        names = sorted(file.name for file in path.iterdir() if is_image_name(file.name))
        if not names:
            raise DataError(f"{path} holds no image; a class has at least one", "fill the folder or remove it")
        for name in sorted(choose(wnid, names)) if choose else names:
            yield wnid, str(path / name), read_file(path / name)


def _from_class_tar(file: IO[bytes], wnid: str, origin: str, choose: Choose | None) -> Iterator[tuple[str, str, bytes]]:
    empty, chosen = True, None
    if choose:  # a first pass over the headers alone
        chosen = choose(wnid, [member.name for member, _ in members(file, "r:", origin) if is_image_name(member.name)])
        file.seek(0)
    for member, content in members(file, "r|", origin):
        if is_image_name(member.name):
            empty = False
            if chosen is not None and member.name not in chosen:
                continue
            yield wnid, f"{origin}:{member.name}", content_of(member, content, origin)
    if empty:
        raise DataError(f"{origin} holds no image; a class has at least one", AGAIN)
