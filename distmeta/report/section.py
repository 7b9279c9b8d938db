"""What a report is made of, beside its figures: titled parts with plots and pictures, which a domain may add to."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup


class Plot(NamedTuple):
    """An SVG and what it shows, in a sentence."""

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
    """A part of the page: its title, a sentence on what is seen, and plots, then rows of pictures."""

    title: str
    text: str
    plots: Sequence[Plot] = ()
    rows: Sequence[Row] = ()
