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
_REMEDY = "Download images_background.zip and images_evaluation.zip again from https://github.com/brendenlake/omniglot."


class _Member(NamedTuple):
    """One drawing of a zip; the tuple's order is the order in which drawings are read."""

    alphabet: str
    character: str
    name: str


def read(folder: Path, seed: int = 0, val_alphabets: int = 5) -> Iterator[SourceImage]:
    """Every drawing of Omniglot: `val_alphabets` background alphabets are val, the other ones train, the evaluation alphabets test.

    Which alphabets are val depends on `seed` alone. A class is an alphabet's character, its category the alphabet.
    """
    with _open(folder, BACKGROUND) as background, _open(folder, EVALUATION) as evaluation:
        seen, unseen = _members(background, BACKGROUND), _members(evaluation, EVALUATION)
        val = _choose_val(sorted({member.alphabet for member in seen}), seed, val_alphabets)
        for member in seen:
            yield _image(background, member, "val" if member.alphabet in val else "train")
        for member in unseen:
            yield _image(evaluation, member, "test")


def _open(folder: Path, stem: str) -> zipfile.ZipFile:
    path = folder / f"{stem}.zip"
    if not path.is_file():
        raise DataError(f"{path} is not a file; Omniglot is read from {BACKGROUND}.zip and {EVALUATION}.zip in one folder.", _REMEDY)
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a whole zip file: {error}.", _REMEDY) from error


def _members(archive: zipfile.ZipFile, stem: str) -> list[_Member]:
    pattern = re.compile(rf"{stem}/([^/]+)/(character\d+)/[^/]+\.png")
    matches = (pattern.fullmatch(name) for name in archive.namelist())
    members = sorted(_Member(match[1], match[2], match[0]) for match in matches if match)
    if not members:
        raise DataError(f"{archive.filename} holds no member like {stem}/Greek/character01/0394_01.png, so it is not Omniglot's.", _REMEDY)
    return members


def _choose_val(alphabets: list[str], seed: int, count: int) -> set[str]:
    if not 1 <= count < len(alphabets):
        raise DataError(
            f"{count} val alphabets asked of {len(alphabets)} background alphabets; val and train need at least one each.",
            f"Ask for 1 to {len(alphabets) - 1} val alphabets.",
        )
    order = generator(seed, "omniglot val alphabets").permutation(len(alphabets))
    return {alphabets[index] for index in order[:count]}


def _image(archive: zipfile.ZipFile, member: _Member, split: str) -> SourceImage:
    origin = f"{archive.filename}:{member.name}"
    try:
        image = archive.read(member.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{origin} cannot be read, the zip is damaged: {error}.", _REMEDY) from error
    return SourceImage(split, f"{member.alphabet}/{member.character}", member.alphabet, image, origin)
