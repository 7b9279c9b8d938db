"""tieredImageNet in its published files: images of 84 px for each split, with their labels.

Two forms, each with `{split}_labels.pkl`: `{split}_images_png.pkl`, a pickled list of PNG files (Ren et al. 2018), and
`{split}_images.npz`, one array `images` (n, 84, 84, 3) in OpenCV's channel order (blue, green, red).

A pickle is a program, so these are read by an unpickler that creates only arrays, lists, dicts, text, bytes and numbers.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from distmeta.data.sources import Source, SourceImage
from distmeta.data.splits import SPLITS
from distmeta.errors import DataError

_FILES = "give the folder with {train,val,test}_labels.pkl and _images_png.pkl or _images.npz, as they were published"
_LARGEST = 4096  # side (pixels)


def holds(folder: Path) -> bool:
    """Whether `folder` holds these files, not ImageNet."""
    return (folder / "train_labels.pkl").is_file()


def read(folder: Path) -> Source:
    """Every image of the three splits.

    Memory: one image for .npz. For .pkl, whose format allows no streaming, the whole split's PNG files (train: about 7 GB).
    Raises DataError if a file is missing or damaged, or a pickle holds anything but data.
    """
    labels: dict[str, tuple[list[str], list[str]]] = {split: _labels(folder / f"{split}_labels.pkl") for split in SPLITS}
    return Source(_images(folder, labels), sum(len(of_image) for of_image, _ in labels.values()))


def _images(folder: Path, labels: dict[str, tuple[list[str], list[str]]]) -> Iterator[SourceImage]:
    for split, (names, categories) in labels.items():
        path = folder / f"{split}_images.npz"
        files = _from_npz(path) if path.is_file() else _from_pickle(folder / f"{split}_images_png.pkl")
        count = -1
        for count, image in enumerate(files):
            if count >= len(names):
                raise DataError(
                    f"{path.parent / split}_images holds more images than the {len(names)} labels of {split}_labels.pkl", _FILES
                )
            yield SourceImage(
                split=split, class_name=names[count], category=categories[count], image=image, origin=f"{folder}: {split} image {count}"
            )
        if count + 1 != len(names):
            raise DataError(f"{folder} holds {count + 1} {split} images but {len(names)} labels in {split}_labels.pkl", _FILES)


def _labels(path: Path) -> tuple[list[str], list[str]]:
    """The class and category of every image of a split. They are names if the file has names, else the split's name and a number. Without
    categories each class is its own category.
    """
    split = path.name.removesuffix("_labels.pkl")
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table of labels", _FILES)
    try:
        return _classes(content, split, path)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{path} holds labels of another form: {error}", _FILES) from error


def _classes(content: dict[Any, Any], split: str, path: Path) -> tuple[list[str], list[str]]:
    table = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    specific = table.get("label_specific", table.get("labels"))
    if specific is None or not len(specific):
        raise DataError(f"{path} holds neither label_specific nor labels, but {', '.join(map(str, table))}", _FILES)
    classes = _names(specific, table.get("label_specific_str"), split, path)
    if "label_general" not in table:
        return classes, classes
    categories = _names(table["label_general"], table.get("label_general_str"), f"{split}-category", path)
    if len(categories) != len(classes):
        raise DataError(f"{path} holds {len(classes)} labels but {len(categories)} categories", _FILES)
    return classes, categories


def _names(labels: Any, names: Any, stem: str, path: Path) -> list[str]:
    numbers = np.asarray(labels)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {numbers.dtype} of shape {numbers.shape}; they are one integer for each image", _FILES)
    texts = None if names is None else [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    if texts is not None and not 0 <= numbers.min() <= numbers.max() < len(texts):
        raise DataError(f"{path}: labels run from {numbers.min()} to {numbers.max()} but there are {len(texts)} names", _FILES)
    return [texts[number] if texts else f"{stem}-{number:04d}" for number in numbers.tolist()]


def _from_pickle(path: Path) -> Iterator[bytes]:
    content = _load(path)
    if not isinstance(content, list | np.ndarray):
        raise DataError(f"{path} holds {type(content).__name__}; it should be a list of images", _FILES)
    for image in content:
        if not isinstance(image, bytes) and not (isinstance(image, np.ndarray) and image.dtype == np.uint8):
            raise DataError(f"{path} holds an image as {type(image).__name__}; it should be a PNG file's bytes", _FILES)
        yield bytes(image)


def _from_npz(path: Path) -> Iterator[bytes]:
    """The array's images one by one, never the array: a zip member is read forward."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
            shape = _shape(file, path)
            size = int(np.prod(shape[1:]))
            for number in range(shape[0]):
                content = file.read(size)
                if len(content) != size:
                    raise DataError(f"{path} is cut inside image {number} of {shape[0]}", _FILES)
                buffer = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(shape[1:])[:, :, ::-1])).save(buffer, "PNG")
                yield buffer.getvalue()
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}", _FILES) from error


def _shape(file: IO[bytes], path: Path) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read_header(file)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or columns_first or not all(1 <= side <= _LARGEST for side in shape[1:]):
        raise DataError(
            f"{path}: images are {dtype} of shape {shape}; they should be uint8 (n, height, width, 3), sides up to {_LARGEST}", _FILES
        )
    return shape


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()  # needed for arrays and text from Python 2
    except DataError as error:
        raise DataError(f"{path} cannot be read: {error.message}", error.remedy) from None
    except Exception as error:  # a damaged pickle can raise nearly any exception
        reason = "not enough memory" if isinstance(error, MemoryError) else error
        raise DataError(f"{path} cannot be read: {reason}", _FILES) from error


class _DataUnpickler(pickle.Unpickler):
    """Creates arrays, lists, dicts, text, bytes and numbers. Any other name in a pickle raises DataError and is not imported."""

    def find_class(self, module: str, name: str) -> Any:
        made = _ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if made is None:
            raise DataError(f"a pickle names {module}.{name}; only arrays, lists, dicts, text and numbers are read", _FILES)
        return made


def _encode(text: str, encoding: str) -> bytes:
    """The form of bytes in pickles of protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"text is encoded as {encoding}")
    return text.encode("latin1")


def _scalar(dtype: np.dtype[Any], content: bytes | str) -> Any:
    if dtype.kind not in "biuf":
        raise ValueError(f"a number of type {dtype}")
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype)[0]


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The empty array with which a pickled array begins; its content follows as state."""
    if kind is not np.ndarray:
        raise ValueError(f"an array of type {kind}")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _frombuffer(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
