"""Names in any script are drawn, or replaced by an escape that can be read."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import options, patterns
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from distmeta.data import fonts
from distmeta.data.episodes import Task
from distmeta.data.fonts import drawable, opened
from distmeta.data.inspect import draw_episode
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset

NAMES = ["cat", "кошка", "γάτα", "猫", "고양이", "ねこ", "🐈", "cat 猫 🐈", "a$b_{$", "\u202eevil\u0007"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_drawn_without_a_missing_glyph(name: str, tmp_path: Path) -> None:
    shown = drawable(name)
    assert shown.text == name or shown.text.isascii() or "\\" in shown.text
    assert not any(0xD800 <= ord(letter) <= 0xDFFF or not letter.isprintable() for letter in shown.text)
    box = Image.new("L", (400, 40))
    ImageDraw.Draw(box).text((5, 5), shown.text, fill=255, font=opened(shown.font, 14))
    assert np.asarray(box).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        figure.suptitle(shown.text, font=shown.font, parse_math=False)
        figure.savefig(tmp_path / "x.png")


def test_what_no_font_has_becomes_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_of_this_system", lambda: ())
    assert drawable("cat") == ("cat", opened(None, 14).path and fonts._PLAIN)
    assert drawable("кошка").text == "кошка"
    assert drawable("猫 cat").text == "\\u732b cat"
    assert drawable("🐈").text == "\\U0001f408"


def test_another_font_is_taken_whole_where_it_has_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    other = fonts._PLAIN.with_name("DejaVuSerif.ttf")
    monkeypatch.setattr(fonts, "_of_this_system", lambda: (other,))
    monkeypatch.setattr(fonts, "_covers", lambda font, letter: font == other or letter != "猫")
    assert drawable("猫 cat") == ("猫 cat", other)
    assert drawable("cat") == ("cat", fonts._PLAIN)


def test_an_episode_of_such_classes_is_drawn(tmp_path: Path) -> None:
    renamed = {"test-0": "猫", "test-1": "🐈", "test-2": "a$b_{$"}
    pack((image._replace(class_name=renamed.get(image.class_name, image.class_name)) for image in patterns()), tmp_path / "out", options())
    draw_episode(Dataset(str(tmp_path / "out")), "test", Task(7, 1, 1), 0, tmp_path / "episode.png")
    assert Image.open(tmp_path / "episode.png").size[1] > 600
