"""A dataset without download: letters of matplotlib's DejaVu fonts, distorted like handwriting of many people.

A class is a letter, its category the letter's script. An image is the letter in one of the twelve faces, with a thin or thick pen,
turned, sheared, scaled and shifted a little, dark on white as in Omniglot. Splits hold different scripts, and no two classes look alike.
"""

import io
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from fontTools import unicodedata
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from distmeta.data.sources import SourceImage
from distmeta.errors import DataError
from distmeta.seeds import generator

SCRIPTS = {
    "train": ("Latin", "Greek", "Arabic", "Canadian Aboriginal"),
    "val": ("Cyrillic", "Coptic", "Old Italic"),
    "test": ("Georgian", "Armenian", "Hebrew", "Tifinagh", "Lao", "Nko", "Lisu", "Ogham"),
}

IMAGES_PER_CLASS = 20

_FACES = (
    *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
    *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
    *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
)

# Modifier letters (Lm) are left out: they are small copies of other letters, and images do not keep a letter's size.
_LETTERS = ("Lu", "Ll", "Lt", "Lo")

# Two letters correlated this much in any one face differ by a dot or less at 28 pixels (C and c: 0.94; A and its Greek copy: 1.00).
_ALIKE = 0.93

# font size at which glyphs are drawn before they are distorted; glyphs under a third of it are marks, which would become illegible
_EM = 64
_PAD = 4  # blank pixels around a drawn glyph, room for the pen and for smooth edges
_FINE = 3  # distorted images are drawn larger by this factor, then averaged down
_SMALLEST = 14  # pixels; letters in smaller images cannot be distinguished


class _Face(NamedTuple):
    font: ImageFont.FreeTypeFont
    covers: frozenset[int]


class _Letter(NamedTuple):
    """One class: its split, code point, script, and the faces that can draw it."""

    split: str
    codepoint: int
    script: str
    faces: tuple[_Face, ...]


def read(seed: int = 0, images_per_class: int = IMAGES_PER_CLASS, image_size: int = 28) -> Iterator[SourceImage]:
    """`images_per_class` PNG images, `image_size` pixels square, of every letter.

    Image i of a letter depends only on `seed`, the letter and i. A smaller dataset is therefore a prefix of a larger one.
    """
    if images_per_class < 1:
        raise DataError(f"{images_per_class} images per class asked of the glyphs; a class has at least 1", "ask for 1 or more")
    if image_size < _SMALLEST:
        raise DataError(f"glyph images of {image_size} pixels requested; letters need {_SMALLEST} or more", f"ask for {_SMALLEST} or more")
    for letter in _letters():
        character = chr(letter.codepoint)
        name = f"U+{letter.codepoint:04X} {unicodedata.name(character)}"
        for index in range(images_per_class):
            chance = generator(seed, "glyph image", letter.codepoint, index)
            image = _distorted(character, letter.faces, chance, image_size)
            yield SourceImage(
                split=letter.split, class_name=name, category=letter.script, image=_png(image), origin=f"DejaVu {name}, image {index}"
            )


def classes() -> int:
    """The number of letters."""
    return len(_letters())


@cache
def _letters() -> tuple[_Letter, ...]:
    """Every class, in the order train, val, test; of similar letters only the first is kept, so letters of the test split are truly
    unseen.
    """
    faces = _faces()
    candidates = _candidates(faces)
    likeness = _likeness([letter.codepoint for letter in candidates], faces)
    kept: list[int] = []
    for index in range(len(candidates)):
        drawn = likeness[index, index] > 0
        if drawn and not (likeness[index, kept] >= _ALIKE).any():
            kept.append(index)
    return tuple(candidates[index] for index in kept)


def _candidates(faces: tuple[_Face, ...]) -> list[_Letter]:
    of_script: dict[str, list[int]] = {}
    for codepoint in sorted(faces[0].covers):  # the first face covers the most
        if unicodedata.category(chr(codepoint)) in _LETTERS:
            of_script.setdefault(unicodedata.script_name(unicodedata.script(chr(codepoint))), []).append(codepoint)
    return [
        _Letter(split, codepoint, script, tuple(face for face in faces if codepoint in face.covers))
        for split, scripts in SCRIPTS.items()
        for script in scripts
        for codepoint in of_script.get(script, [])
    ]


@cache
def _faces() -> tuple[_Face, ...]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(_face(folder / f"DejaVu{name}.ttf") for name in _FACES)


def _face(path: Path) -> _Face:
    if not path.is_file():
        raise DataError(f"{path} is not a file; glyphs are drawn with matplotlib's own fonts", "reinstall matplotlib from PyPI")
    with TTFont(path, lazy=True) as tables:
        covers = frozenset(codepoint for codepoint, glyph in tables.getBestCmap().items() if glyph != ".notdef")
    # The basic layout draws every code point unchanged; the other layout needs a library that may be missing.
    return _Face(ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC), covers)


def _likeness(codepoints: list[int], faces: tuple[_Face, ...]) -> np.ndarray:
    """For each pair of letters, the largest correlation of their pictures over the faces; 0 if no face draws both."""
    largest = np.zeros((len(codepoints), len(codepoints)), dtype=np.float32)
    for face in faces:
        covered = [index for index, codepoint in enumerate(codepoints) if codepoint in face.covers]
        pictures = np.stack([_picture(chr(codepoints[index]), face.font) for index in covered])
        pairs = np.ix_(covered, covered)
        largest[pairs] = np.maximum(largest[pairs], pictures @ pictures.T)
    return largest


def _picture(character: str, font: ImageFont.FreeTypeFont, side: int = 24) -> np.ndarray:
    """The character scaled into a square and centred, as a vector of mean 0 and norm 1; all 0 if it is blank or only a mark."""
    ink = _glyph(character, font, 0.0)
    box = ink.getbbox() or (0, 0, 0, 0)
    if max(box[2] - box[0], box[3] - box[1]) < _EM / 3:
        return np.zeros(side * side, dtype=np.float32)
    fitted = ImageOps.pad(ink.crop(box), (side, side), Image.Resampling.BILINEAR)
    vector = np.asarray(fitted, dtype=np.float32).ravel()
    vector -= vector.mean()
    return vector / np.linalg.norm(vector)


def _glyph(character: str, font: ImageFont.FreeTypeFont, pen: float) -> Image.Image:
    """The character in white on black, with every stroke widened by `pen` pixels on each side."""
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (math.ceil(right - left) + 2 * _PAD, math.ceil(bottom - top) + 2 * _PAD))
    ImageDraw.Draw(image).text((_PAD - left, _PAD - top), character, fill=255, font=font, stroke_width=pen)
    return image


def _distorted(character: str, faces: tuple[_Face, ...], chance: np.random.Generator, size: int) -> Image.Image:
    """The character under a random face, pen and affine map, dark on white; it is always completely inside the image."""
    face = faces[chance.integers(len(faces))]
    draws = chance.uniform((0.0, -12.0, -0.15, 0.8, -1.0, -1.0), (1.5, 12.0, 0.15, 1.0, 1.0, 1.0))
    pen, turn, shear, scale, right, down = draws.tolist()
    ink = _glyph(character, face.font, pen)
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    # Turn times shear, x' = a x + b y and y' = c x + d y, has determinant 1, so its inverse is x = d x' - b y' and y = a y' - c x'.
    a, b, c, d = cos, cos * shear - sin, sin, sin * shear + cos
    x0, y0, x1, y1 = ink.getbbox() or (0, 0, *ink.size)
    width, height = x1 - x0 + 1, y1 - y0 + 1  # plus a pixel for smooth edges
    # The turned and sheared box spans at most 11/14 of the side and shifts at most 1/14: 22 and 2 pixels of 28.
    side = size * _FINE
    zoom = max(abs(a) * width + abs(b) * height, abs(c) * width + abs(d) * height) / (scale * side * 11 / 14)
    x, y = side * (1 / 2 + right / 14), side * (1 / 2 + down / 14)
    source_x = (d * zoom, -b * zoom, (x0 + x1) / 2 - (d * x - b * y) * zoom)
    source_y = (-c * zoom, a * zoom, (y0 + y1) / 2 - (a * y - c * x) * zoom)
    drawn = ink.transform((side, side), Image.Transform.AFFINE, source_x + source_y, Image.Resampling.BILINEAR)
    return ImageChops.invert(drawn.reduce(_FINE))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
