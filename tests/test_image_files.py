"""Which files are images of which class: packing, prediction and the library give one answer, and name what they leave out."""

import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from hypothesis import given, settings
from hypothesis import strategies as st

import distmeta
from distmeta.data.image_files import SUFFIXES, LeftOut, class_folders, class_of, images_under
from distmeta.data.sources import folder as folder_source
from distmeta.errors import DataError
from distmeta.inference.predict import support_set

IMAGE = png(np.zeros((4, 4), np.uint8))
NAMES = ["1.jpg", "2.JFIF", "3.heic", "4.avif", "5.pgm", ".6.jpg", "._7.png", "8.txt", "9.jpg/10.jpg", ".ipynb_checkpoints/11.png", "é.png"]


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGE)
    return root


@settings(max_examples=60)
@given(
    layout=st.dictionaries(st.sampled_from(["cat", "dog", "e\u0301", "猫"]), st.sets(st.sampled_from(NAMES), min_size=1), min_size=3),
    with_categories=st.booleans(),
)
def test_packing_prediction_and_the_library_find_the_same_images(
    layout: dict[str, set[str]], with_categories: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("layout")
    paths = [f"{'pets/' if with_categories else ''}{name}/{file}" for name, files in layout.items() for file in {*files, "0.png"}]
    write(root, *paths, ".ipynb_checkpoints/x/1.png", "__MACOSX/x/1.png")
    by_library = {found.full_name: [str(path) for path in found.files()] for found in distmeta.class_folders(root)}
    assert {name: [str(path) for path in files] for name, files in support_set(root).items()} == by_library
    said: list[str] = []
    packed: dict[str, list[str]] = {}
    for image in folder_source.read(root, (0.4, 0.3, 0.3), "class", 0, said.append).images:
        packed.setdefault(image.class_name, []).append(image.origin)
    assert packed == by_library
    assert set(by_library) == {unicodedata.normalize("NFC", f"{'pets/' if with_categories else ''}{name}") for name in layout}
    left_out = LeftOut()
    class_folders(root, left_out)
    assert said == [str(left_out)]
    inside = sum(1 for path in paths if not path.endswith(("/9.jpg/10.jpg", "/.ipynb_checkpoints/11.png")))
    folders = len(paths) - inside
    assert sum(map(len, by_library.values())) + left_out.counts.total() == inside + folders + 2


def test_every_suffix_in_any_case_is_an_image_and_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path, *(f"cat/1{suffix}" for suffix in SUFFIXES), *(f"cat/2{suffix.upper()}" for suffix in SUFFIXES), "dog/1.png")
    write(tmp_path, "dog/notes.txt", "dog/.DS_Store", "dog/deeper/1.png", "readme.md", "loose.png", ".git/x/1.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    left_out = LeftOut()
    cat, dog = class_folders(tmp_path, left_out)
    assert (cat.images, dog.images) == (2 * len(SUFFIXES), 1)
    assert dict(left_out.counts) == {
        "hidden files or folders": 2,
        "files outside class folders": 2,
        "folders inside class folders": 1,
        "files not named as images": 1,
        "broken links, pipes or devices": 2,
    }
    assert str(left_out).startswith("left out 2 hidden files or folders, 2 files outside class folders")
    assert f"{tmp_path}/loose.png" in str(left_out)
    assert str(LeftOut()) == ""
    assert {path.name for path in images_under(tmp_path / "cat", LeftOut())} == {path.name for path in (tmp_path / "cat").iterdir()}


def test_queries_in_linked_folders_are_found_once(tmp_path: Path) -> None:
    query = write(tmp_path / "query", "cat/1.png", "dog/1.png")
    write(tmp_path / "elsewhere", "2.png")
    (query / "hen").symlink_to(tmp_path / "elsewhere")
    (query / "cat" / "up").symlink_to(query)
    left_out = LeftOut()
    found = [str(path.relative_to(query)) for path in images_under(query, left_out)]
    assert found == ["cat/1.png", "dog/1.png", "hen/2.png"]
    assert dict(left_out.counts) == {"links to a folder above them": 1}


def test_a_class_is_the_same_in_every_unicode_form() -> None:
    composed, decomposed = "\u00e9te", "e\u0301te"
    for folder in (composed, decomposed):
        assert class_of(Path(f"query/{folder}/1.png"), [composed, "dog"]) == composed
        assert class_of(Path(f"query/{folder}/dog/1.png"), [f"{composed}/dog", "dog"]) == f"{composed}/dog"
    assert class_of(Path("query/hen/1.png"), [composed, "dog"]) is None
    assert class_of(Path("1.png"), [composed, "dog"]) is None


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no class folder with images"),
        (("1.png",), "holds no class folder with images"),
        (("cat/1.png", "dog/notes.txt"), "class folder .*dog holds no image"),
        (("cat/1.png", "dog/deeper/1.png"), "class folder .*dog holds no image"),
        (("e\u0301/1.png", "\u00e9/1.png"), "are one class; each must be there once"),
    ],
)
def test_folders_without_classes_of_images_are_refused(paths: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write(tmp_path, *paths)
    with pytest.raises(DataError, match=message):
        class_folders(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        class_folders(tmp_path / "absent")


def test_the_list_on_standard_input_is_taken_as_it_is(tmp_path: Path) -> None:
    from distmeta.inference.predict import query_files

    assert list(query_files("-", io.StringIO("a.txt\n\n.hidden\n"))) == [Path("a.txt"), Path(".hidden")]
