"""Decides which files of a folder are images, and of which class, for packing, prediction and the library."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from distmeta.errors import DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".avif", ".heic", ".heif", ".hif"),
)
LAYOUT = "put the images of each class in a folder of its name: CLASS/*.jpg, or CATEGORY/CLASS/*.jpg"
_SYSTEM = ("__MACOSX", "@eaDir")  # folders of thumbnails and notes that systems add beside images
_NAMED = 5

IMAGE, FOLDER = "image", "folder"
HIDDEN, OTHER, NO_FILE = "hidden files or folders", "files not named as images", "broken links, pipes or devices"
NESTED, OUTSIDE, LOOP = "folders inside class folders", "files outside class folders", "links to a folder above them"


class LeftOut:
    """Files that a search for images left out: counted by kind, with a few examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: list[str] = []

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        if len(self._examples) < _NAMED:
            self._examples.append(path)

    def __str__(self) -> str:
        """A sentence with the counts; empty if nothing was left out."""
        if not self.counts:
            return ""
        more = ", ..." if self.counts.total() > len(self._examples) else ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return f"left out {kinds} ({', '.join(self._examples)}{more})"


class ClassFolder(NamedTuple):
    """A folder with one class's images. `category` is empty if the layout has none; `images` is their number."""

    category: str
    name: str
    path: Path
    images: int

    @property
    def full_name(self) -> str:
        return f"{self.category}/{self.name}" if self.category else self.name

    def files(self) -> list[Path]:
        """The images, sorted by name. Raises DataError if the folder cannot be read."""
        return [self.path / entry.name for entry in entries(self.path) if kind_of(entry) == IMAGE]


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name. Hidden files are not, because some systems add files such as ._n01443537_0.JPEG."""
    last = PurePosixPath(name).name
    return last.lower().endswith(SUFFIXES) and not last.startswith(".")


def entries(folder: Path) -> list["os.DirEntry[str]"]:
    """The entries of a folder, sorted by name. Raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}", "check its permissions, or remove it") from None


def kind_of(entry: "os.DirEntry[str]") -> str:
    """IMAGE or FOLDER, or the reason why it is neither: HIDDEN, OTHER or NO_FILE. Links are followed."""
    if entry.name.startswith(".") or entry.name in _SYSTEM:
        return HIDDEN
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            return NO_FILE
    except OSError:  # a link to a folder above itself
        return NO_FILE
    return IMAGE if is_image_name(entry.name) else OTHER


def class_name(entry: "os.DirEntry[str]") -> str:
    """A folder's name in Unicode's form NFC, because systems differ in whether é is one character or two. Raises DataError if it cannot be
    printed.
    """
    name = unicodedata.normalize("NFC", entry.name)
    if not name.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(f"{os.fsencode(entry.path)!r} is not named in printable UTF-8", "rename that folder")
    return name


def folders(folder: Path, left_out: LeftOut) -> list["os.DirEntry[str]"]:
    """The folders in a folder; everything else is left out."""
    inner = []
    for entry in entries(folder):
        kind = kind_of(entry)
        if kind == FOLDER:
            inner.append(entry)
        else:
            left_out.add(OUTSIDE if kind in (IMAGE, OTHER) else kind, entry.path)
    return inner


def class_folders(folder: Path | str, left_out: LeftOut | None = None) -> list[ClassFolder]:
    """The class folders under `folder`: its own folders if one of them holds an image, else the folders in these, which are categories.

    A class has the images that are directly in its folder; its name is in Unicode's form NFC. Everything else is counted in `left_out`.
    Raises DataError if there is no class, a class has no image or appears twice, or something cannot be read.
    """
    folder, left_out = Path(folder), left_out if left_out is not None else LeftOut()
    outer = folders(folder, left_out)
    if any(kind_of(file) == IMAGE for entry in outer for file in entries(Path(entry.path))):
        classes = [_class_folder("", entry, left_out) for entry in outer]
    else:
        classes = [_class_folder(class_name(entry), inner, left_out) for entry in outer for inner in folders(Path(entry.path), left_out)]
    if not classes:
        raise DataError(f"{folder} holds no class folder with images", LAYOUT)
    check_twice(classes)
    return classes


def _class_folder(category: str, entry: "os.DirEntry[str]", left_out: LeftOut) -> ClassFolder:
    images = 0
    for file in entries(Path(entry.path)):
        kind = kind_of(file)
        if kind == IMAGE:
            images += 1
        else:
            left_out.add(NESTED if kind == FOLDER else kind, file.path)
    if not images:
        raise DataError(f"class folder {entry.path} holds no image ({', '.join(SUFFIXES)})", "put images into that folder, or remove it")
    return ClassFolder(category, class_name(entry), Path(entry.path), images)


def check_twice(classes: Iterable[ClassFolder]) -> None:
    """Raises DataError if a class appears twice, by its name or by a link, because the same images would be in a task twice."""
    names: dict[str, Path] = {}
    places: dict[Path, Path] = {}
    for folder in classes:
        for known in (names.setdefault(folder.full_name, folder.path), places.setdefault(folder.path.resolve(), folder.path)):
            if known != folder.path:
                raise DataError(f"{folder.path} and {known} are one class; each must be there once", "remove or rename one of the two")


def images_under(folder: Path, left_out: LeftOut, _above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All images in `folder` and its subfolders, sorted by path.

    Only one folder's names are in memory at a time. Everything else is counted in `left_out`. Links to folders are followed, except to a
    folder above them. Raises DataError if a folder cannot be read.
    """
    status = folder.stat()
    above = _above | {(status.st_dev, status.st_ino)}
    for entry in entries(folder):
        kind = kind_of(entry)
        if kind == IMAGE:
            yield folder / entry.name
        elif kind != FOLDER:
            left_out.add(kind, entry.path)
        elif (entry.stat().st_dev, entry.stat().st_ino) in above:
            left_out.add(LOOP, entry.path)
        else:
            yield from images_under(folder / entry.name, left_out, above)


def class_of(file: Path, classes: Iterable[str]) -> str | None:
    """The one of `classes` whose folder holds the file, or None: CLASS or CATEGORY/CLASS, or the CLASS of a CATEGORY/CLASS if no other
    category has one of that name and the folder above is not another category.
    """
    parent, above = (unicodedata.normalize("NFC", name) for name in (file.parent.name, file.parent.parent.name))
    named = next((name for name in (f"{above}/{parent}", parent) if name in classes), None)
    if named is not None:
        return named
    in_categories = [name for name in classes if name.endswith(f"/{parent}")]
    another = any(name.startswith(f"{above}/") for name in classes)
    return in_categories[0] if len(in_categories) == 1 and not another else None
