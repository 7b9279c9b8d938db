"""ImageNet classes from the archive of per-class tars (ILSVRC2012_img_train.tar) or from a folder, divided by a list of classes.

The archive is read in one sequential pass: it is never unpacked to disk, and one image at a time is in memory.
"""

import csv
import logging
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, Self

from distmeta.data.sources import SourceImage
from distmeta.errors import DataError

SPLITS = ("train", "val", "test")

_log = logging.getLogger(__name__)
_WNID = re.compile(r"n\d{8}")
_SUFFIXES = (".jpeg", ".jpg", ".png")
_LAYOUT = "Give ILSVRC2012_img_train.tar, or a folder that holds n01443537/*.JPEG or n01443537.tar for each class."
_AGAIN = "Copy or download the archive again; it must be a plain tar that `tar tf` lists without a complaint."


class _Class(NamedTuple):
    split: str
    category: str


def read(source: Path, splits: Path, allow_missing: bool = False, report: Callable[[str], None] = _log.warning) -> Iterator[SourceImage]:
    """Every image of the classes that `splits` names, in the order in which `source` holds them.

    `source` is an archive of per-class tars, or a folder of per-class folders or tars; `splits` holds train.csv, val.csv and test.csv with
    rows `wnid,category`. Classes that `source` lacks are an error before the first image, or with `allow_missing` one `report` per split.
    """
    try:
        classes = _read_splits(splits)
        if source.is_dir():
            places = _places([(path.name, path) for path in sorted(source.iterdir()) if _names_class(path.name)], source)
            pictures = _from_folder({wnid: path for wnid, path in places.items() if wnid in classes})
        else:
            places = _places([(name, source) for name in _outer_names(source)], source)
            pictures = _from_archive(source, classes)
        _check_missing(classes, set(places), source, allow_missing, report)
        for wnid, origin, image in pictures:
            yield SourceImage(classes[wnid].split, wnid, classes[wnid].category, image, origin)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}.", "Check its permissions and its disk.") from error


def _read_splits(folder: Path) -> dict[str, _Class]:
    classes: dict[str, _Class] = {}
    for split in SPLITS:
        path = folder / f"{split}.csv"
        if not path.is_file():
            raise DataError(f"{path} is not a file; a class split is train.csv, val.csv and test.csv.", "Give the folder that holds them.")
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            row = [field.strip() for field in next(csv.reader([line]))]
            if len(row) != 2 or not all(_WNID.fullmatch(field) for field in row):
                raise DataError(f"{path} line {number} is {line!r}; a row is wnid,category without a header.", "Write n02099267,n02098550.")
            wnid, category = row
            if wnid in classes:
                raise DataError(
                    f"{path} line {number} names {wnid}, which {classes[wnid].split}.csv names already; a class is in one split.",
                    "Delete one of the two rows.",
                )
            classes[wnid] = _Class(split, category)
    return classes


def _wnid(name: str) -> str:
    """The class that an archive member or a folder entry stands for; names are labels only, never paths to write to."""
    return PurePosixPath(name).name.removesuffix(".tar")


def _names_class(name: str) -> bool:
    return _WNID.fullmatch(_wnid(name)) is not None


def _places(entries: list[tuple[str, Path]], source: Path) -> dict[str, Path]:
    """Where each class lies. A class that lies in two places would put the same images into a task twice."""
    places: dict[str, Path] = {}
    for name, path in entries:
        wnid = _wnid(name)
        if wnid in places:
            raise DataError(f"{source} holds class {wnid} twice; it must hold each class once.", "Remove one of the two.")
        places[wnid] = path
    if not places:
        raise DataError(f"{source} holds no class; classes are named like n01443537.", _LAYOUT)
    return places


def _outer_names(source: Path) -> list[str]:
    """The archive's per-class tars, by seeking from header to header: a cut archive or a missing class shows within seconds."""
    if not source.is_file():
        raise DataError(f"{source} is neither a file nor a folder.", _LAYOUT)
    with source.open("rb") as file:
        return [member.name for member, _ in _members(file, "r:", str(source)) if _is_class_tar(member.name)]


def _is_class_tar(name: str) -> bool:
    return name.endswith(".tar") and _names_class(name)


def _check_missing(classes: dict[str, _Class], present: set[str], source: Path, allow_missing: bool, report: Callable[[str], None]) -> None:
    missing: list[str] = []
    for split in SPLITS:
        named = [wnid for wnid in classes if classes[wnid].split == split]
        absent = [wnid for wnid in named if wnid not in present]
        if len(absent) == len(named):
            raise DataError(
                f"{source} holds none of the {len(named)} classes that {split}.csv names; a split needs at least one.",
                f"Name classes that the archive holds, such as {min(present)}, in {split}.csv.",
            )
        if absent:
            names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            missing.append(f"{len(absent)} of {len(named)} {split} classes ({names})")
    if missing and not allow_missing:
        raise DataError(f"{source} lacks {'; '.join(missing)}.", "Give the whole archive, or pass --allow-missing to go on without them.")
    for text in missing:
        report(f"{source} lacks {text}; going on without them.")


def _from_archive(source: Path, classes: dict[str, _Class]) -> Iterator[tuple[str, str, bytes]]:
    with source.open("rb") as file:
        for member, content in _members(file, "r|", str(source)):
            if _is_class_tar(member.name) and _wnid(member.name) in classes:
                yield from _from_class_tar(content, _wnid(member.name), f"{source}:{member.name}")


def _from_folder(places: dict[str, Path]) -> Iterator[tuple[str, str, bytes]]:
    for wnid, path in places.items():
        if path.is_file():
            with path.open("rb") as tar:
                yield from _from_class_tar(tar, wnid, str(path))
            continue
        pictures = [file for file in sorted(path.iterdir()) if _is_picture(file.name)]
        if not pictures:
            raise DataError(f"{path} holds no {', '.join(_SUFFIXES)} file; a class has at least one.", "Fill the folder or remove it.")
        for file in pictures:
            yield wnid, str(file), file.read_bytes()


def _from_class_tar(file: IO[bytes], wnid: str, origin: str) -> Iterator[tuple[str, str, bytes]]:
    empty = True
    for member, content in _members(file, "r|", origin):
        if _is_picture(member.name):
            empty = False
            yield wnid, f"{origin}:{member.name}", _content(member, content, origin)
    if empty:
        raise DataError(f"{origin} holds no {', '.join(_SUFFIXES)} file; a class has at least one.", _AGAIN)


class _Header(tarfile.TarInfo):
    """A member's header that is an error when absent, cut or damaged, where tarfile alone would take the archive to end there."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):  # the zeros that end a whole tar
                raise
            raise tarfile.ReadError(str(error)) from error


def _members(file: IO[bytes], mode: Literal["r:", "r|"], origin: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of a tar: mode r: seeks over those that are not read, mode r| reads strictly forward."""
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content:
                    yield member, content
                last = member.name
    except tarfile.TarError as error:
        raise DataError(f"{origin} is not a whole, uncompressed tar; reading stopped after {last}: {error}.", _AGAIN) from error


def _content(member: tarfile.TarInfo, content: IO[bytes], origin: str) -> bytes:
    try:
        return content.read()
    except tarfile.TarError as error:
        raise DataError(f"{origin} is cut inside {member.name}, which should have {member.size} bytes.", _AGAIN) from error


def _is_picture(name: str) -> bool:
    # Some systems add hidden files of their own (._n01443537_0.JPEG) when they pack a folder.
    last = PurePosixPath(name).name
    return last.lower().endswith(_SUFFIXES) and not last.startswith(".")
