"""Anybody's folder of images: split/category/class/*, split/class/*, or without splits class/* or category/class/*.

A class whose folders lie one level deeper has the upper folder as its category; else it is its own category.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from distmeta.data.sources import SPLITS, Source, SourceImage, is_picture
from distmeta.errors import ConfigError, DataError
from distmeta.seeds import generator

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_LAYOUT = "Lay images out as train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg, or as CLASS/*.jpg and give --split 0.7/0.15/0.15."


class _Class(NamedTuple):
    """`category` is empty where the layout has none."""

    category: str
    name: str
    path: Path

    @property
    def full_name(self) -> str:
        return f"{self.category}/{self.name}" if self.category else self.name


def fractions(text: str) -> tuple[float, float, float]:
    """'0.7/0.15/0.15' → how much of the classes is train, val and test. Raises ConfigError unless these are positive and add up to 1."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = -1.0
    if not (min(train, val, test) > 0 and abs(train + val + test - 1) < 1e-6):  # nor NaN
        raise ConfigError(f"--split {text} is not three positive fractions that add up to 1", "write --split 0.7/0.15/0.15")
    return train, val, test


def read(
    folder: Path,
    split: tuple[float, float, float] | None,
    split_by: Literal["class", "category"],
    seed: int,
    report: Callable[[str], None],
) -> Source:
    """Every image, class by class in the order of their names. `split` None means that the top folders are the splits.

    Hidden files and what is no image by its name are left out, counted and reported. Links are followed, two levels or three at most, so
    a loop of links ends as a folder among a class's files. Raises DataError if the layout is neither, a class stands in two splits or
    twice, a class holds no image, or something cannot be read.
    """
    try:
        classes = _cut(_classes(folder), split, split_by, seed) if split else _divided(folder)
        counts: Counter[str] = Counter()
        for found in (found for group in classes.values() for found in group):
            here = Counter(_kind(entry) for entry in os.scandir(found.path))
            if not here["image"]:
                raise DataError(f"{found.path} holds no image ({', '.join(SUFFIXES)}).", "Fill the folder or remove it.")
            counts += here
    except OSError as error:
        raise _unreadable(error, folder) from error
    ignored = ", ".join(f"{counts[kind]} {kind}s" for kind in ("hidden file", "folder", "other file") if counts[kind])
    if ignored:
        report(f"ignoring {ignored} in class folders")
    return Source(_images(classes, folder), counts["image"])


def _images(classes: dict[str, list[_Class]], folder: Path) -> Iterator[SourceImage]:
    try:
        for split, group in classes.items():
            for found in group:
                name = found.full_name
                for file in sorted(entry.name for entry in os.scandir(found.path) if _kind(entry) == "image"):
                    path = found.path / file
                    yield SourceImage(split, name, found.category or name, path.read_bytes(), str(path))
    except OSError as error:
        raise _unreadable(error, folder) from error


def _unreadable(error: OSError, folder: Path) -> DataError:
    return DataError(f"{error.filename or folder} cannot be read: {error.strerror}.", "Check its permissions, or take it out.")


def _kind(entry: "os.DirEntry[str]") -> str:
    if entry.name.startswith("."):
        return "hidden file"
    if _is_folder(entry):
        return "folder"
    return "image" if is_picture(entry.name, SUFFIXES) else "other file"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return sorted((entry for entry in os.scandir(folder) if _is_folder(entry) and not entry.name.startswith(".")), key=lambda e: e.name)


def _divided(folder: Path) -> dict[str, list[_Class]]:
    names = [entry.name for entry in _folders(folder)]
    if "train" not in names or not set(names) <= set(SPLITS):
        held = ", ".join(names[:5]) or "no folder"
        raise DataError(f"{folder} holds {held}; without --split it must hold train, val and test and no other folder.", _LAYOUT)
    classes = {split: _classes(folder / split) for split in SPLITS if split in names}
    split_of: dict[str, str] = {}
    for split, group in classes.items():
        for found in group:
            other = split_of.setdefault(found.full_name, split)
            if other != split:
                text = f"class '{found.full_name}' of {folder} stands in {other} and {split}; splits share no class."
                raise DataError(text, "Move or rename one of them.")
    _check_twice([found for group in classes.values() for found in group])
    return classes


def _classes(folder: Path) -> list[_Class]:
    """The class folders under `folder`: its own folders if one of them holds an image, else their folders."""
    entries = _folders(folder)
    if any(_kind(file) == "image" for entry in entries for file in os.scandir(entry.path)):
        classes = [_Class("", _name(entry), Path(entry.path)) for entry in entries]
    else:
        classes = [_Class(_name(entry), _name(inner), Path(inner.path)) for entry in entries for inner in _folders(Path(entry.path))]
    if not classes:
        raise DataError(f"{folder} holds no class folder with images.", _LAYOUT)
    return classes


def _name(entry: "os.DirEntry[str]") -> str:
    """A folder's name in one spelling: systems differ in whether é is one letter or two."""
    name = unicodedata.normalize("NFC", entry.name)
    if not name.isprintable() or any("\udc80" <= letter <= "\udcff" for letter in name):
        raise DataError(f"{os.fsencode(entry.path)!r} is not named in printable UTF-8.", "Rename that folder.")
    return name


def _check_twice(classes: list[_Class]) -> None:
    """A class that lies in two places, by its name or by a link, would put the same images into a task twice."""
    names: dict[tuple[str, str], Path] = {}
    places: dict[Path, Path] = {}
    for found in classes:
        for known in (names.setdefault(found[:2], found.path), places.setdefault(found.path.resolve(), found.path)):
            if known != found.path:
                raise DataError(f"{found.path} and {known} are one class; each must stand once.", "Remove or rename one of the two.")


def _cut(classes: list[_Class], split: tuple[float, float, float], by: str, seed: int) -> dict[str, list[_Class]]:
    """Classes, or whole categories, to splits at random by `seed`: numbers nearest to the fractions, one at least in each split."""
    _check_twice(classes)
    unit = [found.full_name if by == "class" else found.category or found.name for found in classes]
    units = sorted(set(unit))
    if len(units) < len(SPLITS):
        raise DataError(f"{len(units)} {by} folders cannot be divided into train, val and test.", "Give more of them, or --split-by class.")
    bounds = np.rint(np.cumsum(split) * len(units)).astype(int)
    val = min(max(bounds[0], 1), len(units) - 2)
    test = min(max(bounds[1], val + 1), len(units) - 1)
    order = generator(seed, "folder split").permutation(len(units))
    split_of = {units[i]: SPLITS[int(place >= val) + int(place >= test)] for place, i in enumerate(order)}
    return {name: [found for found, its in zip(classes, unit, strict=True) if split_of[its] == name] for name in SPLITS}
