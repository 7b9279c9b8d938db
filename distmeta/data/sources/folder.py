"""A user's folder of images: split/category/class/*, split/class/*, or without splits class/* or category/class/*.

A class whose folders are one level deeper has the upper folder as its category; otherwise it is its own category.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from distmeta.data.decode import MAX_PIXELS, read_file
from distmeta.data.image_files import ClassFolder, LeftOut, check_twice, class_folders, folders
from distmeta.data.sources import Source, SourceImage
from distmeta.data.splits import SPLITS
from distmeta.errors import ConfigError, DataError
from distmeta.seeds import generator

_LAYOUT = "arrange images as train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg, or as CLASS/*.jpg and give --split 0.7/0.15/0.15"


def fractions(text: str) -> tuple[float, float, float]:
    """'0.7/0.15/0.15' → the shares of classes in train, val and test. Raises ConfigError unless they are positive and add up to 1."""
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
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Every image, class by class, sorted by name. With `split` None the top folders are the splits. Files that `class_folders` leaves out
    are counted and reported. Raises DataError if the layout is neither of these, a class is in two splits or appears twice, a class has no
    image, or something cannot be read.
    """
    left_out = LeftOut()
    classes = _cut(class_folders(folder, left_out), split, split_by, seed) if split else _divided(folder, left_out)
    if left_out.counts:
        report(str(left_out))
    return Source(_images(classes, max_pixels), sum(class_folder.images for group in classes.values() for class_folder in group))


def _images(classes: dict[str, list[ClassFolder]], max_pixels: int) -> Iterator[SourceImage]:
    for split, group in classes.items():
        for class_folder in group:
            name = class_folder.full_name
            for path in class_folder.files():
                yield SourceImage(
                    split=split,
                    class_name=name,
                    category=class_folder.category or name,
                    image=read_file(path, max_pixels),
                    origin=str(path),
                )


def _divided(folder: Path, left_out: LeftOut) -> dict[str, list[ClassFolder]]:
    names = [entry.name for entry in folders(folder, left_out)]
    if "train" not in names or not set(names) <= set(SPLITS):
        held = ", ".join(names[:5]) or "no folder"
        raise DataError(f"{folder} holds {held}; without --split it must hold train, val and test and no other folder", _LAYOUT)
    classes: dict[str, list[ClassFolder]] = {split: class_folders(folder / split, left_out) for split in SPLITS if split in names}
    split_of: dict[str, str] = {}
    for split, group in classes.items():
        for class_folder in group:
            other = split_of.setdefault(class_folder.full_name, split)
            if other != split:
                text = f"class '{class_folder.full_name}' of {folder} is in {other} and {split}; splits must not share a class"
                raise DataError(text, "move or rename one of them")
    check_twice(class_folder for group in classes.values() for class_folder in group)
    return classes


def _cut(classes: list[ClassFolder], split: tuple[float, float, float], by: str, seed: int) -> dict[str, list[ClassFolder]]:
    """Assign classes, or whole categories, to splits at random by `seed`. Their numbers are nearest to the fractions, with at least one in
    each split.
    """
    unit = [one.full_name if by == "class" else one.category or one.name for one in classes]
    units = sorted(set(unit))
    if len(units) < len(SPLITS):
        raise DataError(f"{len(units)} {by} folders cannot be divided into train, val and test", "give more of them, or --split-by class")
    bounds = np.rint(np.cumsum(split) * len(units)).astype(int)
    val = min(max(bounds[0], 1), len(units) - 2)
    test = min(max(bounds[1], val + 1), len(units) - 1)
    order = generator(seed, "folder split").permutation(len(units))
    split_of = {units[i]: SPLITS[int(place >= val) + int(place >= test)] for place, i in enumerate(order)}
    return {name: [one for one, its in zip(classes, unit, strict=True) if split_of[its] == name] for name in SPLITS}
