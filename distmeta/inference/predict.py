"""Adapt a published model to a folder of labelled images and classify others, however many."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from distmeta.data.decode import MAX_PIXELS, check_bright, check_value_range, decode_file, read_file
from distmeta.data.image_files import LAYOUT, LeftOut, class_folders, class_of, images_under
from distmeta.data.images import Preprocessing, fitted
from distmeta.errors import DataError
from distmeta.inference.model import Adapted, Model


class FileReader:
    """Reads image files as model input. `several` counts those that are animated or have several pages; the first picture is read."""

    def __init__(self, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> None:
        self.several = 0
        self._scaled_means: list[float] = []  # sums over the files that were read by the value range
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels

    def read(self, path: Path) -> tuple[NDArray[np.uint8], bytes]:
        """Pixels (H, W, C) of the model's size, and a digest of the file's bytes. Raises DataError if the file is not a complete image."""
        content, wanted = read_file(path, self._max_pixels), self._preprocessing
        decoded = decode_file(content, wanted.channels, str(path), wanted.value_range, self._max_pixels)
        check_bright(decoded.peak, str(path))
        self.several += decoded.has_more
        pixels = fitted(decoded.picture, wanted).transpose(1, 2, 0)
        if decoded.scaled:
            self._scaled_means.append(float(pixels.mean()))
        return pixels, blake2b(content, digest_size=16).digest()

    def check_value_range(self) -> None:
        """Raises DataError if all images read so far by the model's value range are nearly black or nearly white together."""
        if self._preprocessing.value_range is not None and self._scaled_means:
            check_value_range(sum(self._scaled_means) / len(self._scaled_means), self._preprocessing.value_range)


class Support(NamedTuple):
    """The labelled images that a network was adapted to: class name → files, and each file by its path and by its content's digest.

    `copies` are pairs of files with the same content.
    """

    classes: dict[str, list[Path]]
    places: set[Path]
    digests: dict[bytes, Path]
    copies: list[tuple[Path, Path]]


def support_set(folder: Path, left_out: LeftOut | None = None) -> dict[str, list[Path]]:
    """class name → image files, as `class_folders` finds them. Raises DataError unless two or more classes have an image each."""
    if not folder.is_dir():
        raise DataError(f"support folder {folder} does not exist", "give a folder that holds a folder of images for each class")
    classes = {labelled.full_name: labelled.files() for labelled in class_folders(folder, left_out)}
    if len(classes) < 2:
        raise DataError(f"support folder {folder} has one class folder, {next(iter(classes))!r}; at least two are needed", LAYOUT)
    return classes


def query_files(query: Path | str, listed: TextIO, left_out: LeftOut | None = None) -> Iterator[Path]:
    """Images to classify: all under a folder, sorted; one file; or, for the text "-", the paths in `listed`, one per line. A file or
    folder called - is `./-`. Other files of a folder are counted in `left_out`. Raises DataError if there is no image.
    """
    left_out = left_out if left_out is not None else LeftOut()
    if query == "-":
        files: Iterator[Path] = (Path(line.rstrip("\r\n")) for line in listed if line.strip())
    else:
        query = Path(query)
        files = images_under(query, left_out) if query.is_dir() else iter([query] if query.is_file() else [])
    first = next(files, None)
    if first is None:
        besides = f" ({left_out})" if left_out.counts else ""
        raise DataError(f"{query} holds no image to classify{besides}", "give a folder of images, or - and their paths on standard input")
    return chain([first], files)


class Prediction(NamedTuple):
    """For one query: its most probable class, all probabilities, and the true class if the query's folder is named like one.

    `rejected`: the probability is below the lowest that the user accepts.
    """

    file: Path
    label: str
    probability: float
    probabilities: dict[str, float]
    truth: str | None
    rejected: bool = False

    @property
    def right(self) -> bool | None:
        """Whether the class is the true one, or None if unknown."""
        return None if self.truth is None else self.label == self.truth

    def as_dict(self) -> dict[str, Any]:
        known = {"truth": self.truth, "right": self.right, "rejected": self.rejected}
        return {"file": str(self.file), "class": self.label, "probability": self.probability} | known

    @property
    def wrong(self) -> bool:
        """Whether it is known to be wrong, and was not rejected."""
        return self.right is False and not self.rejected


def wrong_first(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Wrong predictions, the most confident first, and then all others in their order."""
    return sorted(predictions, key=lambda prediction: -prediction.probability if prediction.wrong else 0)


def adapt_to_folder(
    model: Model, folder: Path, steps: int | None = None, reader: FileReader | None = None, left_out: LeftOut | None = None
) -> tuple[Adapted, Support]:
    """`model` adapted to the classes of `folder`, by `steps` inner steps (default: those it was evaluated with), and what it saw.

    Raises DataError, ConfigError.
    """
    classes = support_set(folder, left_out)
    model.check_classes(len(classes), f"support folder {folder}")
    reader = reader or FileReader(model.preprocessing)
    support = Support(classes, {path.resolve() for files in classes.values() for path in files}, {}, [])
    images, labels = [], []
    for name, files in classes.items():
        for path in files:
            pixels, digest = reader.read(path)
            if support.digests.setdefault(digest, path) != path:
                support.copies.append((support.digests[digest], path))
            images.append(pixels)
            labels.append(name)
    reader.check_value_range()
    return model.adapt(images, labels, steps), support


def predict_files(
    adapted: Adapted,
    files: Iterable[Path],
    support: Support,
    bad: Callable[[DataError], None],
    reader: FileReader | None = None,
    reject_below: float = 0.0,
) -> Iterator[Prediction]:
    """A prediction for each of `files`, in their order. The answer for an image does not depend on the other images.

    Those whose probability is below `reject_below` are marked as rejected. A file that is not a whole image is reported to `bad` and left
    out. Raises DataError if a query is one of the `support` images, or has the same content.
    """
    images = _images(files, support, bad, reader or FileReader(adapted.preprocessing))
    for path, pixels in images:
        (row,) = adapted.predict([pixels]).tolist()
        probabilities = dict(zip(adapted.classes, row, strict=True))
        label = max(probabilities, key=lambda name: probabilities[name])
        yield Prediction(
            file=path,
            label=label,
            probability=probabilities[label],
            probabilities=probabilities,
            truth=class_of(path, probabilities),
            rejected=probabilities[label] < reject_below,
        )


def _images(
    files: Iterable[Path], support: Support, bad: Callable[[DataError], None], reader: FileReader
) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Each file that is a complete image, with its pixels (H, W, C)."""
    apart = "keep queries apart from the support folder"
    for path in files:
        if _place(path) in support.places:
            raise DataError(f"{path} is in both the support and the query folder; its prediction would be meaningless", apart)
        try:
            pixels, digest = reader.read(path)
        except DataError as error:
            bad(error)
            continue
        if digest in support.digests:
            text = f"{path} is a copy of the support image {support.digests[digest]}; its prediction would be meaningless"
            raise DataError(text, apart)
        yield path, pixels


def _place(path: Path) -> Path:
    """The real path of a file, or the path itself if it cannot be resolved; reading it then raises."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, or a null in the name
        return path


class ClassScore(NamedTuple):
    """The counts of one class: its labelled queries, those of them that were right, all queries predicted as this class, and the classes
    that its queries were predicted as, the most frequent first.
    """

    name: str
    labelled: int
    right: int
    predicted: int
    taken_for: list[tuple[str, int]]


class Score:
    """Counts predictions: all that were `asked` for, those whose truth is `known` and, of those that were not rejected, the `labelled`, the
    `right`, and how often each (true class, predicted class) came, with None where the truth is not known."""

    def __init__(self) -> None:
        self.asked = self.known = self.rejected = self.labelled = self.right = 0
        self.answers: Counter[tuple[str | None, str]] = Counter()

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions through, counted."""
        for prediction in predictions:
            self.asked += 1
            self.known += prediction.truth is not None
            if prediction.rejected:
                self.rejected += 1
            else:
                self.labelled += prediction.truth is not None
                self.right += prediction.right is True
                self.answers[prediction.truth, prediction.label] += 1
            yield prediction

    def by_class(self, classes: Iterable[str]) -> list["ClassScore"]:
        """The counts of each class, those with the lowest accuracy first."""
        rows = []
        for name in classes:
            taken = {label: count for (truth, label), count in self.answers.items() if truth == name}
            predicted = sum(count for (_, label), count in self.answers.items() if label == name)
            wrong = Counter({label: count for label, count in taken.items() if label != name})
            rows.append(
                ClassScore(
                    name=name, labelled=sum(taken.values()), right=taken.get(name, 0), predicted=predicted, taken_for=wrong.most_common()
                )
            )
        return sorted(rows, key=lambda row: (row.right / row.labelled if row.labelled else 2.0, row.name))

    def accuracy(self) -> tuple[float, float, float]:
        """The accuracy over the labelled queries (at least one), and its 95% interval (Wilson 1927, by scipy)."""
        interval = binomtest(self.right, self.labelled).proportion_ci(method="wilson")
        return self.right / self.labelled, float(interval.low), float(interval.high)
