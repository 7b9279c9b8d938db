"""Fonts for names in any script: matplotlib's DejaVu Sans, else a font of this system, else a readable escape."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

_OURS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_PLAIN, _BOLD = _OURS / "DejaVuSans.ttf", _OURS / "DejaVuSans-Bold.ttf"
_PROBE = 14  # font size; bitmap fonts, such as coloured emoji, cannot be drawn at this size
_BOXES = "Last Resort"  # matplotlib's fallback font, which draws a box for every character


class Drawable(NamedTuple):
    """Drawable text, and a font file that covers all of it."""

    text: str
    font: Path


def drawable(text: str) -> Drawable:
    """`text` with a font that has all its characters. A character that is in no font becomes an escape, such as \\u732b for 猫."""
    if all(_covers(_PLAIN, letter) for letter in text):
        return Drawable(text, _PLAIN)
    for font in _of_this_system():
        if all(_covers(font, letter) for letter in text):
            return Drawable(text, font)
    return Drawable("".join(letter if _covers(_PLAIN, letter) else ascii(letter)[1:-1] for letter in text), _PLAIN)


@cache
def opened(font: Path | None, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font for Pillow; None is DejaVu Sans."""
    return ImageFont.truetype(str(font or (_BOLD if bold else _PLAIN)), size)


@cache
def _face(font: Path) -> FT2Font:
    return FT2Font(str(font))


@cache
def _covers(font: Path, letter: str) -> bool:
    return letter == "\n" or (letter.isprintable() and _face(font).get_char_index(ord(letter)) != 0)


@cache
def _of_this_system() -> tuple[Path, ...]:
    """The system's fonts that both Pillow and matplotlib can use."""
    fonts = []
    for path in sorted({entry.fname for entry in font_manager.fontManager.ttflist if _BOXES not in entry.name}):
        try:
            ImageFont.truetype(path, _PROBE)
            _face(Path(path))
        except (OSError, RuntimeError):
            continue
        fonts.append(Path(path))
    return tuple(fonts)
