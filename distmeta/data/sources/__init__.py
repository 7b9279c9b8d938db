"""Where images come from: each module of this folder reads one kind of source and yields `SourceImage`s."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple


class SourceImage(NamedTuple):
    """One image as its source holds it.

    `split` is train, val or test; `class_name` is unique in the dataset (a WordNet id, an alphabet's character);
    `category` is the class's super-class; `image` is an encoded file (PNG, JPEG, ...); `origin` says where it lay, for error messages.
    """

    split: str
    class_name: str
    category: str
    image: bytes
    origin: str


class Source(NamedTuple):
    """A source, opened. `total` is about how many images there are, None if that would take a pass; `facts` go into the manifest."""

    images: Iterator[SourceImage]
    total: int | None = None
    facts: Mapping[str, str] = MappingProxyType({})
