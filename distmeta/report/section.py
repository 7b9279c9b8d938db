"""The sections of a report: titled parts with plots and pictures. A domain may add its own."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup


class Plot(NamedTuple):
    """An SVG and a sentence on its contents."""

    svg: Markup
    caption: str


class Tile(NamedTuple):
    """One small picture: `image` as a data URI, what it shows, and whether it is marked ("right", "wrong" or "")."""

    image: str
    caption: str
    alt: str
    mark: str = ""


class Row(NamedTuple):
    """Pictures side by side under a heading."""

    heading: str
    tiles: Sequence[Tile]


class Section(NamedTuple):
    """A part of the page: title, introduction, plots, then rows of pictures."""

    title: str
    text: str
    plots: Sequence[Plot] = ()
    rows: Sequence[Row] = ()
