"""miniImageNet's lists, over its own images and over ImageNet's, by name and by number."""

import hashlib
import io
import tarfile
from itertools import islice
from pathlib import Path

import pytest

from distmeta.data.sources import SourceImage, mini_imagenet
from distmeta.errors import DataError

WNIDS = {"train": ["n00000001", "n00000002"], "val": ["n00000003"], "test": ["n00000004"]}
NUMBERS = [2, 3, 5]
IMAGENET = [7, 1, 100, 23, 9, 1000]  # the numbers in a class's own names, as an archive may hold them: in no order


def renamed(wnid: str, number: int) -> str:
    return f"{wnid}{number:08d}.jpg"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    for split, wnids in WNIDS.items():
        rows = [f"{renamed(wnid, number)},{wnid}\n" for wnid in wnids for number in NUMBERS]
        (folder / f"{split}.csv").write_text("filename,label\n" + "".join(rows))
    return folder


ALL = [wnid for wnids in WNIDS.values() for wnid in wnids]


def content(name: str) -> bytes:
    return f"picture {name}".encode()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def imagenet_names(wnid: str) -> list[str]:
    return [f"{wnid}_{number}.JPEG" for number in IMAGENET]


def as_folders(root: Path, wnids: list[str]) -> Path:
    for wnid in wnids:
        (root / wnid).mkdir(parents=True)
        for name in imagenet_names(wnid):
            (root / wnid / name).write_bytes(content(name))
    return root


def as_tars(root: Path, wnids: list[str]) -> Path:
    root.mkdir()
    for wnid in wnids:
        (root / f"{wnid}.tar").write_bytes(tar_of({name: content(name) for name in imagenet_names(wnid)}))
    return root


def as_archive(root: Path, wnids: list[str]) -> Path:
    root.write_bytes(tar_of({f"{wnid}.tar": tar_of({name: content(name) for name in imagenet_names(wnid)}) for wnid in wnids}))
    return root


def read(source: Path, lists: Path, allow_missing: bool = False) -> tuple[list[SourceImage], str]:
    opened = mini_imagenet.read(source, lists, allow_missing, lambda text: None)
    return list(opened.images), opened.facts["mini_imagenet_images"]


@pytest.mark.parametrize("place", ["images/{name}", "{name}", "train/{wnid}/{name}"])
def test_its_own_images_are_found_by_name_wherever_they_lie(place: str, lists: Path, tmp_path: Path) -> None:
    for wnid in ALL:
        for number in [*NUMBERS, 77]:
            path = tmp_path / "mini" / place.format(name=renamed(wnid, number), wnid=wnid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(path.name))
    images, rule = read(tmp_path / "mini", lists)
    assert rule == "by name"
    assert [(i.split, i.class_name, i.category, i.image) for i in images] == [
        (split, wnid, wnid, content(renamed(wnid, number))) for split, wnids in WNIDS.items() for wnid in wnids for number in NUMBERS
    ]


@pytest.mark.parametrize("layout", [as_folders, as_tars, as_archive])
def test_in_imagenet_a_number_counts_the_classs_files_in_order_of_their_own_numbers(layout: object, lists: Path, tmp_path: Path) -> None:
    images, rule = read(layout(tmp_path / "imagenet", [*ALL, "n00000009"]), lists)  # type: ignore[operator]
    assert rule == "by number"
    # of 1, 7, 9, 23, 100, 1000 the second, third and fifth
    expected = {(split, wnid, content(f"{wnid}_{n}.JPEG")) for split, wnids in WNIDS.items() for wnid in wnids for n in (7, 9, 100)}
    assert {(i.split, i.class_name, i.image) for i in images} == expected
    assert len(images) == len(expected)


def test_lists_with_imagenets_own_names_are_taken_by_name(lists: Path, tmp_path: Path) -> None:
    for split, wnids in WNIDS.items():
        (lists / f"{split}.csv").write_text("".join(f"{wnid}_{n}.JPEG,{wnid}\n" for wnid in wnids for n in (9, 1000)))
    for source in (as_archive(tmp_path / "imagenet.tar", ALL), as_folders(tmp_path / "folders", ALL)):
        images, rule = read(source, lists)
        assert rule == "by name"
        assert sorted(i.image for i in images) == sorted(content(f"{wnid}_{n}.JPEG") for wnid in ALL for n in (9, 1000))
    (lists / "val.csv").write_text("n00000003_5.JPEG,n00000003\n")
    with pytest.raises(DataError, match=r"class n00000003 lacks 1 images of the lists, such as n00000003_5\.JPEG"):
        read(tmp_path / "imagenet.tar", lists)


def test_an_incomplete_imagenet_is_refused_because_numbers_would_mean_other_images(lists: Path, tmp_path: Path) -> None:
    (lists / "val.csv").write_text("n0000000300000007.jpg,n00000003\n")
    with pytest.raises(DataError, match="ask for image 7 of class n00000003, but the source has 6") as caught:
        read(as_archive(tmp_path / "imagenet.tar", ALL), lists)
    assert "ILSVRC2012_img_train.tar whole" in caught.value.remedy


def test_missing_images_and_classes(lists: Path, tmp_path: Path) -> None:
    mini = tmp_path / "mini"
    mini.mkdir()
    for wnid in ALL:
        for number in NUMBERS[:-1]:
            (mini / renamed(wnid, number)).write_bytes(b"x")
    with pytest.raises(DataError, match=r"lacks 4 of 12 images of the lists \(n0000000100000005\.jpg"):
        read(mini, lists)
    assert len(read(mini, lists, allow_missing=True)[0]) == 8
    some = as_folders(tmp_path / "folders", ["n00000001", "n00000003", "n00000004"])
    with pytest.raises(DataError, match=r"lacks 1 of 2 train classes \(n00000002\)"):
        read(some, lists)
    assert len(read(some, lists, allow_missing=True)[0]) == 9


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("n0000000300000001.jpg", "val.csv line 1"),
        ("n0000000300000001.jpg,cat", "val.csv line 1"),
        ("n0000000400000001.jpg,n00000003", "val.csv line 1"),
        ("n0000000100000001.jpg,n00000001", "names n0000000100000001.jpg, but train.csv names it or its class already"),
        ("n0000000300000001.jpg,n00000003\nn0000000300000001.jpg,n00000003", "line 2 names n0000000300000001.jpg, but val.csv names it"),
    ],
)
def test_bad_lists(row: str, message: str, lists: Path, tmp_path: Path) -> None:
    (lists / "val.csv").write_text(row)
    with pytest.raises(DataError, match=message):
        read(as_folders(tmp_path / "folders", ALL), lists)


def test_lists_and_images_must_be_there(lists: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.csv is not a file"):
        read(tmp_path, tmp_path)
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path / "absent", lists)
    with pytest.raises(DataError, match="holds no class"):
        read(lists, lists)


@pytest.mark.parametrize(
    ("classes", "images", "said"),
    [
        ((2, 1, 1), 3, "2/1/1 classes in train/val/test, theirs have 64/16/20"),
        ((64, 16, 20), 3, "classes have 3 to 3 images, theirs 600"),
        ((64, 16, 20), 600, "as many classes and images, but not the same"),
    ],
)
def test_lists_that_are_not_the_published_ones_are_told_apart(
    classes: tuple[int, int, int], images: int, said: str, tmp_path: Path
) -> None:
    wnids = iter(f"n{number:08d}" for number in range(1, 101))
    for split, count in zip(WNIDS, classes, strict=True):
        rows = [f"{renamed(wnid, number)},{wnid}\n" for wnid in islice(wnids, count) for number in range(images)]
        (tmp_path / f"{split}.csv").write_text("filename,label\n" + "".join(rows))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / renamed("n00000001", 0)).write_bytes(b"x")
    told: list[str] = []
    opened = mini_imagenet.read(tmp_path / "images", tmp_path, True, told.append)
    assert opened.facts["mini_imagenet_lists"] == "others"
    assert told[0].endswith(said)


def test_the_published_lists_are_known_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: Path) -> None:
    lines = sorted(f"{split},{wnid},{renamed(wnid, n)}\n" for split, wnids in WNIDS.items() for wnid in wnids for n in NUMBERS)
    monkeypatch.setattr(mini_imagenet, "_PUBLISHED_SHA256", hashlib.sha256("".join(lines).encode()).hexdigest())
    header, *rows = (lists / "train.csv").read_text().splitlines()
    (lists / "train.csv").write_text("\n".join([header, *reversed(rows)]))
    told: list[str] = []
    opened = mini_imagenet.read(as_folders(tmp_path / "folders", ALL), lists, False, told.append)
    assert (opened.facts["mini_imagenet_lists"], told) == ("Ravi and Larochelle 2017", [])
