"""Adapt a published model to a folder of labelled images and classify others, however many."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from scipy.stats import binomtest
from torch import Tensor

from distmeta.errors import DataError
from distmeta.inference.model import CHUNK, Adapted, Model, network_input

_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
_NAMED = ".jpg, .png"


def support_set(folder: Path) -> dict[str, list[Path]]:
    """class name → image files, from folder/class_name/*. Raises DataError unless two or more classes have an image each."""
    if not folder.is_dir():
        raise DataError(f"support folder {folder} does not exist", "give a folder that holds a folder of images for each class")
    classes = {sub.name: list(_images_in(sub)) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    if len(classes) < 2:
        found = "no class folder" if not classes else f"one class folder, {next(iter(classes))!r}"
        raise DataError(
            f"support folder {folder} has {found}; at least two are needed", "put the images of each class in a folder of its name"
        )
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise DataError(f"class folder {folder / empty[0]} holds no image", f"put {_NAMED} files there, or remove it")
    return classes


def query_files(query: Path, listed: TextIO) -> Iterator[Path]:
    """Images to classify: all under a folder, sorted; one file; or, for `-`, the paths that `listed` gives line by line.

    Raises DataError if there are none.
    """
    if str(query) == "-":
        files: Iterator[Path] = (Path(line.rstrip("\n")) for line in listed if line.strip())
    else:
        files = _images_in(query) if query.is_dir() else iter([query] if query.is_file() else [])
    first = next(files, None)
    if first is None:
        raise DataError(f"{query} holds no image to classify", f"give a folder with {_NAMED} files, or - and their paths on standard input")
    yield first
    yield from files


def _images_in(folder: Path) -> Iterator[Path]:
    """In the order of their paths; one folder's names are held at a time. Linked folders are not entered."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}", "check its permissions, or take it out") from None
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            yield from _images_in(path)
        elif path.suffix.lower() in _SUFFIXES and path.is_file():
            yield path


class Prediction(NamedTuple):
    """For one query: its most probable class, all probabilities, and the class whose folder it lies in, if that is one of them."""

    file: Path
    label: str
    probability: float
    probabilities: dict[str, float]
    truth: str | None

    def as_dict(self) -> dict[str, Any]:
        return {"file": str(self.file), "class": self.label, "probability": self.probability}


def adapt_to_folder(model: Model, support: Path, steps: int | None = None) -> tuple[Adapted, list[Path]]:
    """`model` adapted to support/class_name/*, by `steps` inner steps (those it was evaluated with, if None), and the files it saw.

    Raises DataError, ConfigError.
    """
    classes = support_set(support)
    model.check_classes(len(classes), f"support folder {support}")
    files = [path for paths in classes.values() for path in paths]
    return model.adapt(files, [name for name, paths in classes.items() for _ in paths], steps), files


def predict_files(
    adapted: Adapted, files: Iterable[Path], support: Iterable[Path], bad: Callable[[DataError], None]
) -> Iterator[Prediction]:
    """A prediction for each of `files`, as they come. The answer for an image does not depend on which others are asked.

    A file that is no whole image is told to `bad` and left out. Raises DataError where a query is one of the `support` images.
    """
    inputs = _inputs(adapted, _apart(files, {path.resolve() for path in support}), bad)
    while chunk := list(islice(inputs, CHUNK)):
        rows = adapted.predict(torch.cat([image for _, image in chunk])).tolist()
        for (path, _), row in zip(chunk, rows, strict=True):
            probabilities = dict(zip(adapted.classes, row, strict=True))
            label = max(probabilities, key=lambda name: probabilities[name])
            truth = path.parent.name if path.parent.name in probabilities else None
            yield Prediction(path, label, probabilities[label], probabilities, truth)


def _apart(files: Iterable[Path], seen: set[Path]) -> Iterator[Path]:
    for path in files:
        if path.resolve() in seen:
            raise DataError(
                f"{path} is a query and a support image, too: what the model was shown says nothing of what it knows",
                "keep queries apart from the support folder",
            )
        yield path


def _inputs(adapted: Adapted, files: Iterable[Path], bad: Callable[[DataError], None]) -> Iterator[tuple[Path, Tensor]]:
    """Each file that is a whole image, as network input (1, C, H, W)."""
    like = next(iter(adapted.tensors().values()))
    for path in files:
        try:
            yield path, network_input([path], adapted.preprocessing, like)
        except DataError as error:
            bad(error)


class Score:
    """Counts predictions whose truth is known."""

    def __init__(self) -> None:
        self.asked = self.labelled = self.right = 0

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions through, counted."""
        for prediction in predictions:
            self.asked += 1
            self.labelled += prediction.truth is not None
            self.right += prediction.label == prediction.truth
            yield prediction

    @property
    def known(self) -> bool:
        """Whether the truth of every query was known."""
        return self.labelled == self.asked > 0

    def accuracy(self) -> tuple[float, float, float]:
        """Part that was right, and its 95% interval (Wilson 1927, as scipy gives it)."""
        interval = binomtest(self.right, self.labelled).proportion_ci(method="wilson")
        return self.right / self.labelled, float(interval.low), float(interval.high)
