"""Anybody's folder of images: its three layouts, how it is divided, and what is ignored or refused."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.data.sources import SourceImage, folder
from distmeta.errors import ConfigError, DataError

IMAGE = png(np.zeros((4, 4), np.uint8))
EVEN = (0.5, 0.25, 0.25)


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGE)
    return root


def read(root: Path, split: tuple[float, float, float] | None = None, by: str = "class", seed: int = 0) -> list[SourceImage]:
    source = folder.read(root, split, by, seed, lambda text: None)  # type: ignore[arg-type]
    images = list(source.images)
    assert source.total == len(images)
    return images


def test_splits_of_classes_and_splits_of_categories(tmp_path: Path) -> None:
    write(tmp_path / "flat", "train/cat/1.jpg", "train/dog/1.PNG", "val/cow/1.jpeg", "test/hen/1.webp", "test/hen/2.bmp")
    images = read(tmp_path / "flat")
    assert [image[:3] for image in images] == [
        ("train", "cat", "cat"),
        ("train", "dog", "dog"),
        ("val", "cow", "cow"),
        ("test", "hen", "hen"),
        ("test", "hen", "hen"),
    ]
    write(tmp_path / "deep", "train/pets/cat/1.jpg", "train/barn/cat/1.jpg", "test/birds/hen/1.jpg")
    assert [image[:3] for image in read(tmp_path / "deep")] == [
        ("train", "barn/cat", "barn"),
        ("train", "pets/cat", "pets"),
        ("test", "birds/hen", "birds"),
    ]


def test_class_names_in_any_alphabet(tmp_path: Path) -> None:
    names = ["кошка", "猫", "قطة", "γάτα", "cat and dog", "Katze-ß", "e\u0301te\u0301"]
    write(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert {image.class_name for image in read(tmp_path, EVEN)} == {*names[:-1], "été"}


@settings(max_examples=30)
@given(
    classes=st.integers(3, 30),
    shares=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
)
def test_a_split_takes_every_class_once_in_numbers_nearest_the_fractions(
    classes: int, shares: tuple[int, int, int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write(tmp_path_factory.mktemp("classes"), *(f"c{i}/1.jpg" for i in range(classes)))
    fractions = tuple(share / sum(shares) for share in shares)
    images = read(root, fractions, seed=seed)  # type: ignore[arg-type]
    assert sorted(image.class_name for image in images) == sorted(f"c{i}" for i in range(classes))
    counts = Counter(image.split for image in images)
    for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
        assert counts[split] >= 1
        assert abs(counts[split] - fraction * classes) <= 1 or 1 in counts.values()


def test_a_split_by_category_keeps_categories_whole_and_depends_on_the_seed(tmp_path: Path) -> None:
    write(tmp_path, *(f"category{i}/class{j}/1.jpg" for i in range(6) for j in range(3)))
    chosen = set()
    for seed in range(10):
        images = read(tmp_path, EVEN, "category", seed)
        split_of = {image.category: image.split for image in images}
        assert all(split_of[image.category] == image.split for image in images)
        assert Counter(split_of.values())["train"] == 3
        assert images == read(tmp_path, EVEN, "category", seed)
        chosen.add(tuple(sorted(split_of.items())))
    assert len(chosen) > 5


def test_what_is_no_image_is_ignored_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/cat/.hidden.jpg", "train/cat/._1.jpg", "train/cat/notes.txt", "train/cat/inner/2.jpg")
    write(tmp_path, "test/dog/1.jpg", "test/dog/Thumbs.db", ".git/x.jpg", "readme.md")
    said: list[str] = []
    images = list(folder.read(tmp_path, None, "class", 0, said.append).images)
    assert [image.origin for image in images] == [f"{tmp_path}/train/cat/1.jpg", f"{tmp_path}/test/dog/1.jpg"]
    assert len(said) == 1
    for part in (
        "3 hidden files or folders",
        "1 folders inside class folders",
        "2 files not named as images",
        "1 files outside class folders",
    ):
        assert part in said[0]
    assert f"({tmp_path}/.git, {tmp_path}/readme.md, " in said[0]
    assert said[0].endswith(", ...)")


def test_links_that_loop_end_and_links_to_classes_are_followed(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "train/cat/1.jpg", "test/dog/1.jpg")
    elsewhere = write(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    (root / "train/cat/self").symlink_to(root / "train/cat")
    (root / "train/cat/me.jpg").symlink_to(root / "train/cat/me.jpg")  # a link to itself
    (root / "train/up").symlink_to(root / "train")
    (root / "test/cow").symlink_to(elsewhere)
    with pytest.raises(DataError, match="up holds no image"):
        read(root)
    (root / "train/up").unlink()
    assert [image.class_name for image in read(root)] == ["cat", "cow", "cow", "dog"]
    (root / "train/cow").symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"class 'cow' of .* is in train and test"):
        read(root)
    (root / "train/cow").rename(root / "train/kine")
    with pytest.raises(DataError, match=r"(kine|cow) and .*(kine|cow) are one class"):
        read(root)


@pytest.mark.parametrize(
    ("paths", "split", "message"),
    [
        (["cat/1.jpg", "dog/1.jpg"], None, "holds cat, dog; without --split it must hold train, val and test"),
        (["train/cat/1.jpg", "other/dog/1.jpg"], None, "holds other, train; without --split"),
        (["test/cat/1.jpg"], None, "holds test; without --split"),
        (["x.jpg"], None, "holds no folder; without --split"),
        (["train/x.jpg"], None, "train holds no class folder with images"),
        (["train/cat/1.jpg", "test/cat/1.jpg"], None, "class 'cat' of .* is in train and test"),
        (["train/cat/1.jpg", "train/dog/x.txt"], None, "dog holds no image"),
        (["a/1.jpg", "b/1.jpg"], EVEN, "2 class folders cannot be divided into train, val and test"),
        (["x.jpg"], EVEN, "holds no class folder with images"),
        (["e\u0301/1.jpg", "\u00e9/1.jpg", "c/1.jpg"], EVEN, "are one class; each must be there once"),
        (["a\nb/1.jpg", "b/1.jpg", "c/1.jpg"], EVEN, "is not named in printable UTF-8"),
        (["a\udcff/1.jpg", "b/1.jpg", "c/1.jpg"], EVEN, "is not named in printable UTF-8"),
    ],
)
def test_folders_that_cannot_be_split_are_refused(
    paths: list[str], split: tuple[float, float, float] | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path, *paths)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, split)
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.remedy


def test_a_missing_folder_or_a_file(tmp_path: Path) -> None:
    write(tmp_path, "file.jpg")
    for path in (tmp_path / "absent", tmp_path / "file.jpg"):
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    (tmp_path / "train/dog/1.jpg").chmod(0)
    with pytest.raises(DataError, match=r"dog/1\.jpg cannot be read: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["0.7/0.3", "0.7/0.2/0.2", "1/0/0", "a/b/c", "0.7/0.15/0.15/0", "1.2/-0.1/-0.1", "nan/0.5/0.5"])
def test_fractions_must_add_up(text: str) -> None:
    with pytest.raises(ConfigError, match="is not three positive fractions that add up to 1"):
        folder.fractions(text)
    assert folder.fractions("0.7/0.15/0.15") == (0.7, 0.15, 0.15)
