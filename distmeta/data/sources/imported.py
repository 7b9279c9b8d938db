"""Images from a user's function, named by its import path."""

import importlib
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distmeta.data.sources import SourceImage
from distmeta.data.splits import SPLITS
from distmeta.errors import RAISED, ConfigError, DataError, DistmetaError

_KINDS = (str, str, str, bytes, str)  # characters of a SourceImage's fields


def read(name: str, source: Path | None) -> Iterator[SourceImage]:
    """The images that the callable at import path `name` yields when called with `source`, or with nothing if that is None.

    It yields (split, class, category, an image file's bytes) and optionally the image's origin, in the same order each time, so that a
    stopped pack can continue. `name` is imported, so it must come from the user's flags, never from received data. Raises ConfigError if
    there is no such callable. While yielding images, raises DataError if the function fails, yields anything else, or puts a class into two
    splits or categories.
    """
    module, _, attribute = name.rpartition(".")
    remedy = "give the path of a function that Python finds, my_package.my_source"
    try:
        function = getattr(importlib.import_module(module), attribute)
    except RAISED as error:  # a user's module may raise anything
        raise ConfigError(f"--dataset {name} cannot be imported: {_one_line(repr(error))}", remedy) from error
    if not callable(function):
        raise ConfigError(f"--dataset {name} is a {type(function).__name__}, not a function that yields images", remedy)
    return _images(name, function, [] if source is None else [source])


def _images(name: str, function: Callable[..., Any], arguments: list[Path]) -> Iterator[SourceImage]:
    places: dict[str, tuple[str, str]] = {}  # class → split and category
    number = 0
    try:
        for number, item in enumerate(function(*arguments), 1):
            wrong = _wrong(item)
            if wrong:
                text = f"item {number} of {name}, {_one_line(reprlib.repr(item))}, {wrong}"
                raise DataError(text, "yield (split, class, category, an image file's bytes), such as path.read_bytes()")
            split, class_name, category, content, *origin = item
            place = places.setdefault(class_name, (split, category))
            if place != (split, category):
                both = f"split {split}, category {category!r}, before in split {place[0]}, category {place[1]!r}"
                text = f"item {number} of {name} has class {class_name!r} in {both}"
                raise DataError(text, "give each class one split and one category")
            yield SourceImage(split, class_name, category, content, origin=origin[0] if origin else f"item {number} of {name}")
    except DistmetaError:
        raise
    except Exception as error:  # a user's function may raise anything
        text = f"{name} failed after {number} items: {_one_line(repr(error))}"
        raise DataError(text, "fix it and run the same command again; it continues from there") from error


def _wrong(item: Any) -> str:
    """Why `item` is not an image; empty if it is one."""
    if not isinstance(item, tuple) or len(item) not in (4, 5):
        return "is not (split, class, category, image)"
    for field, value, kind in zip(SourceImage._fields, item, _KINDS, strict=False):
        if not isinstance(value, kind):
            return f"has a {type(value).__name__} as its {field}, where {kind.__name__} is needed"
    if item[0] not in SPLITS:
        return f"has the split {item[0]!r}, which is not one of {', '.join(SPLITS)}"
    for field, value in zip(("class_name", "category"), item[1:3], strict=True):
        if not value or not value.isprintable():
            return f"has {value!r} as its {field}, which must be printable text"
    return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
