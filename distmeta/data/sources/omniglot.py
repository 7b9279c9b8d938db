"""Omniglot from its two official zips, read in place: nothing is ever extracted to disk."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distmeta.data.sources import SourceImage
from distmeta.errors import DataError
from distmeta.seeds import generator

BACKGROUND = "images_background"
EVALUATION = "images_evaluation"
_LARGEST = 1 << 20  # maximum bytes of a drawing, which usually has about 200
IMAGES = 32460  # 1623 characters by 20 people
_REMEDY = "download images_background.zip and images_evaluation.zip again from https://github.com/brendenlake/omniglot"


class _Member(NamedTuple):
    """One drawing of a zip; the tuple's order is the order in which drawings are read."""

    alphabet: str
    character: str
    name: str


def read(folder: Path, seed: int = 0, val_alphabets: int = 5) -> Iterator[SourceImage]:
    """Every drawing of Omniglot: `val_alphabets` background alphabets are val, the others train; the evaluation alphabets are test. The
    choice of val alphabets depends on `seed` alone. A class is a character of an alphabet; its category is the alphabet.
    """
    with _open(folder, BACKGROUND) as background, _open(folder, EVALUATION) as evaluation:
        seen, unseen = _members(background, BACKGROUND), _members(evaluation, EVALUATION)
        val = _choose_val(sorted({member.alphabet for member in seen}), seed, val_alphabets)
        for member in seen:
            yield _image(background, member, "val" if member.alphabet in val else "train")
        for member in unseen:
            yield _image(evaluation, member, "test")


def read_random_characters(folder: Path, seed: int = 0, val: int = 100, test: int = 423) -> Iterator[SourceImage]:
    """Every drawing of Omniglot, with its 1623 characters split regardless of alphabets into `test`, `val` and train.

    Vinyals et al. (2016) and Santoro et al. (2016) use such a split, 1200 against 423; MAML's code takes 100 of the 1200 for validation. It
    is easier than `read`, because several splits have characters of the same alphabet. The split depends on `seed` alone.
    """
    with _open(folder, BACKGROUND) as background, _open(folder, EVALUATION) as evaluation:
        members = [(background, member) for member in _members(background, BACKGROUND)]
        members += [(evaluation, member) for member in _members(evaluation, EVALUATION)]
        characters = sorted({member[:2] for _, member in members})
        if val + test >= len(characters):
            raise DataError(f"{folder} holds {len(characters)} characters, but val and test take {val} + {test} of them", _REMEDY)
        order = generator(seed, "omniglot random characters").permutation(len(characters))
        split = dict.fromkeys(characters, "train")
        split |= {characters[i]: "test" for i in order[:test]} | {characters[i]: "val" for i in order[test : test + val]}
        for archive, member in members:
            yield _image(archive, member, split[member[:2]])


def _open(folder: Path, stem: str) -> zipfile.ZipFile:
    path = folder / f"{stem}.zip"
    if not path.is_file():
        raise DataError(f"{path} is not a file; Omniglot is read from {BACKGROUND}.zip and {EVALUATION}.zip in one folder", _REMEDY)
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a whole zip file: {error}", _REMEDY) from error


def _members(archive: zipfile.ZipFile, stem: str) -> list[_Member]:
    pattern = re.compile(rf"{stem}/([^/]+)/(character\d+)/[^/]+\.png")
    matches = (pattern.fullmatch(name) for name in archive.namelist())
    members = sorted(_Member(match[1], match[2], match[0]) for match in matches if match)
    if not members:
        raise DataError(f"{archive.filename} holds no member like {stem}/Greek/character01/0394_01.png, so it is not Omniglot's", _REMEDY)
    return members


def _choose_val(alphabets: list[str], seed: int, count: int) -> set[str]:
    if not 1 <= count < len(alphabets):
        raise DataError(
            f"{count} val alphabets asked of {len(alphabets)} in {BACKGROUND}.zip; val and train need at least one each",
            _REMEDY,
        )
    order = generator(seed, "omniglot val alphabets").permutation(len(alphabets))
    return {alphabets[index] for index in order[:count]}


def _image(archive: zipfile.ZipFile, member: _Member, split: str) -> SourceImage:
    origin = f"{archive.filename}:{member.name}"
    size = archive.getinfo(member.name).file_size
    if size > _LARGEST:
        raise DataError(f"{origin} has {size:,} bytes; a drawing has {_LARGEST:,} at most", _REMEDY)
    try:
        image = archive.read(member.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{origin} cannot be read, the zip is damaged: {error}", _REMEDY) from error
    return SourceImage(
        split=split, class_name=f"{member.alphabet}/{member.character}", category=member.alphabet, image=image, origin=origin
    )
