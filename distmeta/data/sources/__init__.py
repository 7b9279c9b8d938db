"""Sources of images. Each module of this folder reads one kind of source and yields `SourceImage`s."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple


class SourceImage(NamedTuple):
    """One image in its source.

    `split` is train, val or test; `class_name` is unique in the dataset (a WordNet id, an alphabet's character);
    `category` is the class's super-class; `image` is an encoded file (PNG, JPEG, ...); `origin` is its place, for error messages.
    """

    split: str
    class_name: str
    category: str
    image: bytes
    origin: str


class Source(NamedTuple):
    """An open source. `total` is the approximate number of images, or None if counting would take a pass; `facts` go into the manifest."""

    images: Iterator[SourceImage]
    total: int | None = None
    facts: Mapping[str, str] = MappingProxyType({})
