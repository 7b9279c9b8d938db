"""miniImageNet by Ravi and Larochelle's lists: train.csv, val.csv and test.csv with rows `filename,label`, 600 images a class.

The published lists name images n0153282900000005.jpg: the WordNet id, then eight digits of a number. Two sources exist: images under these
names, and ImageNet itself, which uses other names. Ravi and Larochelle published no table between the two. Tools such as
mini-imagenet-tools follow this rule: the number counts, from 1, the class's files in ImageNet, sorted by the number in their names
(n01532829_28.JPEG). The manifest records which of the two was used.

The lists are compared with the published ones, because accuracies on other lists cannot be compared with published figures.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from distmeta.data.decode import read_file
from distmeta.data.sources import Source, SourceImage
from distmeta.data.sources.imagenet import WNID, Class, check_missing, find_classes, pictures, readable, rows
from distmeta.data.splits import SPLITS
from distmeta.errors import DataError

_RENAMED = re.compile(r"(n\d{8})(\d{8})\.jpe?g", re.IGNORECASE)
_NUMBERED = re.compile(r"_(\d+)\.[A-Za-z]+$")
_PUBLISHED = {"train": 64, "val": 16, "test": 20}  # classes of 600 images each
# Of github.com/twitter/meta-learning-lstm, commit 0df7fc7, data/miniImagenet: SHA-256 of its sorted lines "split,wnid,filename".
_PUBLISHED_SHA256 = "abf3e1af8ab01a353312fbac39746cc2a34595261bbaa9679cc61ac1e90ceeb9"
_EITHER = "give the folder of miniImageNet's own images, or ILSVRC2012_img_train.tar whole"


class _Lists(NamedTuple):
    classes: dict[str, Class]
    files: dict[str, list[str]]  # wnid → file names

    @property
    def total(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def are_published(self) -> bool:
        """Whether they are Ravi and Larochelle's images in the same splits."""
        lines = sorted(f"{self.classes[wnid].split},{wnid},{name}\n" for wnid, names in self.files.items() for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest() == _PUBLISHED_SHA256


def read(source: Path, splits: Path, allow_missing: bool, report: Callable[[str], None]) -> Source:
    """The images that the lists in `splits` name, each class its own category.

    `source` is a folder with files of those names at any depth, or ImageNet as accepted by `imagenet.read`. With `allow_missing`, images
    that `source` lacks are left out and reported. Raises DataError if a list is wrong or an image cannot be found by either rule.
    """
    with readable(source):
        lists = _read_lists(splits)
        paths = _find_files(source, {name for names in lists.files.values() for name in names}) if source.is_dir() else {}
    facts = {"mini_imagenet_lists": "Ravi and Larochelle 2017" if lists.are_published else "others"}
    if not lists.are_published:
        report(_differences(splits, lists))
    if paths:
        return Source(_by_name(source, lists, paths, allow_missing, report), lists.total, facts | {"mini_imagenet_images": "by name"})
    renamed = all(_RENAMED.fullmatch(name) for names in lists.files.values() for name in names)
    rule = "by number" if renamed else "by name"
    choose = (lambda wnid, names: _by_number(wnid, names, lists)) if renamed else (lambda wnid, names: _named(wnid, names, lists))
    images = _from_imagenet(source, lists, choose, allow_missing, report)
    return Source(images, lists.total, facts | {"mini_imagenet_images": rule})


def _differences(folder: Path, lists: _Lists) -> str:
    """A sentence on how these lists differ from the published ones."""
    counts = {split: sum(known.split == split for known in lists.classes.values()) for split in SPLITS}
    sizes = sorted({len(names) for names in lists.files.values()})
    text = f"the lists in {folder} are not Ravi and Larochelle's, so accuracies cannot be compared with published ones"
    if counts != _PUBLISHED:
        return f"{text}: {'/'.join(map(str, counts.values()))} classes in {'/'.join(counts)}, theirs have 64/16/20"
    if sizes != [600]:
        return f"{text}: classes have {sizes[0]} to {sizes[-1]} images, theirs 600"
    return f"{text}: as many classes and images, but not the same"


def _read_lists(folder: Path) -> _Lists:
    lists = _Lists({}, {})
    for split in SPLITS:
        path = folder / f"{split}.csv"
        for number, line, row in rows(path):
            if number == 1 and row == ["filename", "label"]:
                continue
            if len(row) != 2 or not WNID.fullmatch(row[1]) or not row[0].startswith(row[1]):
                raise DataError(f"{path} line {number} is {line!r}; a row is filename,label", "write n0153282900000005.jpg,n01532829")
            name, wnid = row
            known = lists.classes.setdefault(wnid, Class(split, wnid))
            if known.split != split or name in lists.files.setdefault(wnid, []):
                raise DataError(
                    f"{path} line {number} names {name}, but {known.split}.csv names it or its class already",
                    "delete one of the two rows; a class is in one split and an image in it once",
                )
            lists.files[wnid].append(name)
    return lists


def _find_files(source: Path, wanted: set[str]) -> dict[str, Path]:
    return {name: Path(folder) / name for folder, _, names in os.walk(source) for name in names if name in wanted}


def _by_name(
    source: Path, lists: _Lists, paths: dict[str, Path], allow_missing: bool, report: Callable[[str], None]
) -> Iterator[SourceImage]:
    missing = [name for names in lists.files.values() for name in names if name not in paths]
    if missing:
        text = (
            f"{source} lacks {len(missing)} of {lists.total} images of the lists ({', '.join(missing[:5])}{', ...' * (len(missing) > 5)})"
        )
        if not allow_missing:
            raise DataError(text, "give all of miniImageNet's images, or pass --allow-missing to continue without them")
        report(f"{text}; continuing without them")
    with readable(source):
        for wnid, names in lists.files.items():
            for name in names:
                if name in paths:
                    yield SourceImage(
                        split=lists.classes[wnid].split,
                        class_name=wnid,
                        category=wnid,
                        image=read_file(paths[name]),
                        origin=str(paths[name]),
                    )


def _from_imagenet(
    source: Path, lists: _Lists, choose: Callable[[str, list[str]], set[str]], allow_missing: bool, report: Callable[[str], None]
) -> Iterator[SourceImage]:
    with readable(source):
        places = find_classes(source)
        check_missing(lists.classes, set(places), source, allow_missing, report)
        for wnid, origin, image in pictures(source, {wnid: path for wnid, path in places.items() if wnid in lists.classes}, choose):
            yield SourceImage(split=lists.classes[wnid].split, class_name=wnid, category=wnid, image=image, origin=origin)


def _by_number(wnid: str, names: list[str], lists: _Lists) -> set[str]:
    numbered = {int(match[1]): name for name in names if (match := _NUMBERED.search(name))}
    ordered = [numbered[number] for number in sorted(numbered)]
    numbers = [int(match[2]) for name in lists.files[wnid] if (match := _RENAMED.fullmatch(name))]
    if not 1 <= min(numbers) <= max(numbers) <= len(ordered):
        raise DataError(
            f"the lists ask for image {max(numbers)} of class {wnid}, but the source has {len(ordered)} named like {wnid}_28.JPEG; "
            "numbers count all of ImageNet's",
            _EITHER,
        )
    return {ordered[number - 1] for number in numbers}


def _named(wnid: str, names: list[str], lists: _Lists) -> set[str]:
    wanted = set(lists.files[wnid])
    chosen = {name for name in names if Path(name).name in wanted}
    if len(chosen) < len(wanted):
        lacking = min(wanted - {Path(name).name for name in chosen})
        raise DataError(f"the source's class {wnid} lacks {len(wanted) - len(chosen)} images of the lists, such as {lacking}", _EITHER)
    return chosen
