"""The laws of the image sources: what they yield, in which split, and how they refuse bad input."""

import io
import itertools
import os
import tarfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, ImageOps

from distmeta.data.sources import SourceImage, glyphs, imagenet, omniglot
from distmeta.errors import DataError

SHARED = Path(os.environ.get("DISTMETA_SHARED", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
SPLITS = {"train", "val", "test"}


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not under DISTMETA_SHARED ({SHARED})")
    return path


def of_split(images: Iterable[SourceImage], field: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for image in images:
        found[image.split].add(getattr(image, field))
    return dict(found)


def assert_disjoint(sets: dict[str, set[str]]) -> None:
    assert set(sets) == SPLITS
    assert sum(len(group) for group in sets.values()) == len(set.union(*sets.values()))


def refusal(images: Iterable[SourceImage]) -> str:
    """The text of the DataError that reading ends in; its message and its remedy are one line each."""
    with pytest.raises(DataError) as caught:
        list(images)
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- glyphs


@pytest.fixture(scope="module")
def letters() -> list[SourceImage]:
    """One image of every letter."""
    return list(glyphs.read(images_per_class=1))


def codepoint(image: SourceImage) -> int:
    return int(image.class_name.split()[0].removeprefix("U+"), 16)


def ink(image: SourceImage) -> np.ndarray:
    return 255 - np.asarray(Image.open(io.BytesIO(image.image)))


def test_glyph_splits_hold_different_scripts_and_enough_letters(letters: list[SourceImage]) -> None:
    assert_disjoint(of_split(letters, "category"))
    classes = of_split(letters, "class_name")
    assert_disjoint(classes)
    assert len(letters) == sum(map(len, classes.values()))
    assert len(classes["train"]) >= 1000
    assert len(classes["val"]) >= 60
    assert len(classes["test"]) >= 200


def test_glyph_classes_are_named_letters(letters: list[SourceImage]) -> None:
    for image in letters:
        character = chr(codepoint(image))
        assert image.class_name == f"U+{codepoint(image):04X} {unicodedata.name(character)}"
        assert unicodedata.category(character)[0] == "L"
    assert {"U+0041 LATIN CAPITAL LETTER A", "U+10D0 GEORGIAN LETTER AN"} <= {image.class_name for image in letters}


@pytest.mark.parametrize("copies", ["AΑА", "oоο", "OОΟՕ", "HΗНᎻ", "lIΙІ", "ıι", "XΧХ", "sSѕꓢ", "Ɔↄ", "طﻁ"])
def test_glyph_copies_are_one_class(letters: list[SourceImage], copies: str) -> None:
    assert sum(chr(codepoint(image)) in copies for image in letters) <= 1


def test_a_glyph_copied_into_two_splits_stays_in_train(letters: list[SourceImage]) -> None:
    kept = {codepoint(image): image.split for image in letters}
    assert kept[ord("A")] == "train"
    assert not {0x0391, 0x0410, 0xA4EE} & set(kept)  # Greek, Cyrillic and Lisu copies of A


def test_no_two_glyph_classes_have_nearly_the_same_picture(letters: list[SourceImage]) -> None:
    """Drawn here anew, at another size and in one face, and compared by the share of the ink that differs."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), 100)

    def picture(character: str) -> np.ndarray:
        page = Image.new("L", (400, 300))
        ImageDraw.Draw(page).text((100, 100), character, fill=255, font=font)
        return np.asarray(ImageOps.pad(page.crop(page.getbbox()), (24, 24)), dtype=np.float32).ravel() / 255

    def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.abs(one - other).sum(axis=-1) / (one + other).sum(axis=-1)

    assert differing(picture("A"), picture("А")) < 0.01  # the measure does find a copy
    assert differing(picture("A"), picture("B")) > 0.2
    pictures = np.stack([picture(chr(codepoint(image))) for image in letters])
    for index in range(1, len(letters)):
        shares = differing(pictures[:index], pictures[index])
        assert shares.min() > 0.04, f"{letters[index].class_name} looks like {letters[int(shares.argmin())].class_name}"


def test_glyphs_are_dark_whole_letters_on_white(letters: list[SourceImage]) -> None:
    for image in letters:
        pixels = ink(image)
        assert pixels.shape == (28, 28)
        assert pixels.max() > 200, f"{image.origin} is blank"
        assert 5 < (pixels > 128).sum() < 500, f"{image.origin} is nearly blank or nearly full"
        assert not np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).any(), f"{image.origin} is clipped"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([14, 28, 40]), few=st.integers(1, 4), more=st.integers(0, 4))
def test_glyphs_depend_on_seed_letter_and_index_alone(seed: int, size: int, few: int, more: int) -> None:
    classes = 5
    small = list(itertools.islice(glyphs.read(seed, few, size), few * classes))
    large = list(itertools.islice(glyphs.read(seed, few + more, size), (few + more) * classes))
    assert small == [image for index, image in enumerate(large) if index % (few + more) < few]
    assert all(ink(image).shape == (size, size) for image in small)


def test_glyph_images_of_a_class_differ_and_each_class_has_its_number() -> None:
    images = list(itertools.islice(glyphs.read(seed=3), 20 * 30))
    assert set(Counter(image.class_name for image in images).values()) == {20}
    assert len({image.image for image in images}) == len(images)
    assert {image.image for image in images}.isdisjoint(image.image for image in itertools.islice(glyphs.read(seed=4), 20 * 30))


def test_glyph_images_of_a_letter_resemble_each_other_more_than_another_letter() -> None:
    """Distortions are moderate: the nearest image by pixels is far more often of the same letter than chance (1 in 40) would have it."""
    images = list(itertools.islice(glyphs.read(images_per_class=5), 5 * 40))
    vectors = np.stack([ink(image).ravel() for image in images]).astype(np.float32)
    distance = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    names = [image.class_name for image in images]
    right = np.mean([names[nearest] == name for name, nearest in zip(names, distance.argmin(axis=1), strict=True)])
    assert 0.15 < right < 0.95


@pytest.mark.parametrize(("arguments", "said"), [((0, 0, 28), "0 images per class"), ((0, 20, 5), "5 pixels")])
def test_glyphs_refuse_impossible_requests(arguments: tuple[int, int, int], said: str) -> None:
    assert said in refusal(glyphs.read(*arguments))


def test_glyphs_say_when_matplotlib_has_no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    monkeypatch.setattr(glyphs, "_letters", glyphs._letters.__wrapped__)  # past the cache, which other tests use later
    monkeypatch.setattr(glyphs, "_faces", glyphs._faces.__wrapped__)
    assert "DejaVuSans.ttf is not a file" in refusal(glyphs.read())


# -------------------------------------------------------------------------------------------------------------- omniglot

BACKGROUND = [f"images_background/Alphabet{a}/character{c:02}/{c:04}_{i:02}.png" for a in range(4) for c in (1, 2) for i in (1, 2)]
EVALUATION = [f"images_evaluation/Other{a}/character01/0001_{i:02}.png" for a in range(2) for i in (1, 2)]


def write_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"picture {name} " * 20)


@pytest.fixture
def tiny_omniglot(tmp_path: Path) -> Path:
    # Written backwards and with strange company: the order and the number of images must not depend on it.
    write_zip(tmp_path / "images_background.zip", ["images_background/", "__MACOSX/._0709_01.png", *reversed(BACKGROUND)])
    write_zip(tmp_path / "images_evaluation.zip", EVALUATION)
    return tmp_path


def test_omniglot_yields_every_drawing_once_under_its_alphabet(tiny_omniglot: Path) -> None:
    images = list(omniglot.read(tiny_omniglot, val_alphabets=1))
    assert Counter(image.image for image in images) == Counter(f"picture {name} ".encode() * 20 for name in BACKGROUND + EVALUATION)
    for image in images:
        folder, alphabet, character, _ = image.image.decode().split()[1].split("/")
        assert (image.category, image.class_name) == (alphabet, f"{alphabet}/{character}")
        assert (image.split == "test") == (folder == "images_evaluation")
        assert f"{folder}/{alphabet}/{character}" in image.origin
    assert [image.origin for image in images] == sorted(image.origin for image in images)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_omniglot_val_is_so_many_alphabets_chosen_by_the_seed(seed: int, count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("omniglot")
    write_zip(folder / "images_background.zip", BACKGROUND)
    write_zip(folder / "images_evaluation.zip", EVALUATION)
    images = list(omniglot.read(folder, seed, count))
    assert images == list(omniglot.read(folder, seed, count))
    alphabets = of_split(images, "category")
    assert_disjoint(alphabets)
    assert len(alphabets["val"]) == count


def test_omniglot_val_alphabets_change_with_the_seed(tiny_omniglot: Path) -> None:
    chosen = {min(of_split(omniglot.read(tiny_omniglot, seed, 1), "category")["val"]) for seed in range(30)}
    assert len(chosen) == 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), val=st.integers(1, 4), test=st.integers(1, 4))
def test_omniglots_random_characters_are_so_many_of_any_alphabet(
    seed: int, val: int, test: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("omniglot")
    write_zip(folder / "images_background.zip", BACKGROUND)
    write_zip(folder / "images_evaluation.zip", EVALUATION)
    images = list(omniglot.read_random_characters(folder, seed, val, test))
    assert images == list(omniglot.read_random_characters(folder, seed, val, test))
    classes = of_split(images, "class_name")
    assert_disjoint(classes)
    assert {split: len(names) for split, names in classes.items()} == {"train": 10 - val - test, "val": val, "test": test}
    assert Counter(image.image for image in images) == Counter(f"picture {name} ".encode() * 20 for name in BACKGROUND + EVALUATION)


def test_omniglots_random_characters_all_come_into_every_split(tiny_omniglot: Path) -> None:
    chosen = [of_split(omniglot.read_random_characters(tiny_omniglot, seed, 2, 3), "class_name") for seed in range(40)]
    for split in SPLITS:
        assert len(set.union(*(classes[split] for classes in chosen))) == 10
    assert "holds 10 characters, but val and test take 4 + 6" in refusal(omniglot.read_random_characters(tiny_omniglot, 0, 4, 6))


def test_the_real_omniglot_divided_by_characters_as_published() -> None:
    images = list(omniglot.read_random_characters(shared("omniglot")))
    assert len(images) == omniglot.IMAGES
    assert {split: len(names) for split, names in of_split(images, "class_name").items()} == {"train": 1100, "val": 100, "test": 423}


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]


def flip_last_drawing(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        last = archive.infolist()[-1]
    start = last.header_offset + 30 + len(last.filename)  # a member's data follow 30 bytes and its name
    data = path.read_bytes()
    path.write_bytes(data[: start + 4] + bytes(byte ^ 255 for byte in data[start + 4 : start + 14]) + data[start + 14 :])


OMNIGLOT_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "is not a file"),
    "not a zip": (damage(lambda data: b"<html>not found</html>"), "not a whole zip"),
    "empty": (damage(lambda data: b""), "not a whole zip"),
    "cut": (damage(lambda data: data[: len(data) // 2]), "not a whole zip"),
    "flipped bits": (flip_last_drawing, "damaged"),
    "another zip": (lambda path: write_zip(path, ["cats/1.png", "cats/2.png"]), "not Omniglot"),
    "the wrong half": (lambda path: write_zip(path, ["images_other/A/character01/0001_01.png"]), "not Omniglot"),
    "no member": (lambda path: write_zip(path, []), "not Omniglot"),
}


@pytest.mark.parametrize("stem", ["images_background", "images_evaluation"])
@pytest.mark.parametrize("kind", OMNIGLOT_DAMAGE)
def test_omniglot_refuses_a_bad_zip(tiny_omniglot: Path, stem: str, kind: str) -> None:
    spoil, said = OMNIGLOT_DAMAGE[kind]
    spoil(tiny_omniglot / f"{stem}.zip")
    text = refusal(omniglot.read(tiny_omniglot, val_alphabets=1))
    assert said in text
    assert f"{stem}.zip" in text


@pytest.mark.parametrize("count", [-1, 0, 4, 99])
def test_omniglot_refuses_a_val_that_leaves_a_split_empty(tiny_omniglot: Path, count: int) -> None:
    assert f"{count} val alphabets asked of 4" in refusal(omniglot.read(tiny_omniglot, val_alphabets=count))


def test_the_real_omniglot_has_its_published_size() -> None:
    images = list(omniglot.read(shared("omniglot")))
    classes = of_split(images, "class_name")
    assert_disjoint(classes)
    assert_disjoint(of_split(images, "category"))
    assert len(classes["train"] | classes["val"]) == 964
    assert len(classes["test"]) == 659
    assert len(of_split(images, "category")["val"]) == 5
    assert set(Counter(image.class_name for image in images).values()) == {20}
    assert Image.open(io.BytesIO(images[0].image)).size == (105, 105)


# -------------------------------------------------------------------------------------------------------------- imagenet

CLASSES = {"train": ["n00000001", "n00000002"], "val": ["n00000003"], "test": ["n00000004"]}
WNIDS = [wnid for wnids in CLASSES.values() for wnid in wnids]


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pictures_of(wnid: str, count: int = 3) -> dict[str, bytes]:
    return {f"{wnid}_{index}.JPEG": f"picture {wnid} {index} ".encode() * 60 for index in range(count)}


def class_tars(wnids: Iterable[str] = WNIDS) -> dict[str, bytes]:
    return {f"{wnid}.tar": tar_of(pictures_of(wnid)) for wnid in wnids}


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    folder = tmp_path / "splits"
    folder.mkdir()
    for split, wnids in CLASSES.items():
        category = f"n1{sorted(CLASSES).index(split):07}"
        (folder / f"{split}.csv").write_text("".join(f"{wnid},{category}\n" for wnid in wnids))
    return folder


def as_archive(folder: Path, wnids: list[str]) -> Path:
    path = folder / "train.tar"
    path.write_bytes(tar_of(class_tars(wnids)))
    return path


def as_tars(folder: Path, wnids: list[str]) -> Path:
    path = folder / "tars"
    path.mkdir()
    for name, data in class_tars(wnids).items():
        (path / name).write_bytes(data)
    return path


def as_folders(folder: Path, wnids: list[str]) -> Path:
    path = folder / "folders"
    for wnid in wnids:
        (path / wnid).mkdir(parents=True)
        for name, data in pictures_of(wnid).items():
            (path / wnid / name).write_bytes(data)
    return path


LAYOUTS = [as_archive, as_tars, as_folders]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_yields_the_classes_of_the_split_and_no_other(tmp_path: Path, splits: Path, layout: Callable[..., Path]) -> None:
    source = layout(tmp_path, ["n99999999", *WNIDS])
    images = list(imagenet.read(source, splits))
    assert of_split(images, "class_name") == {split: set(wnids) for split, wnids in CLASSES.items()}
    assert_disjoint(of_split(images, "category"))
    assert [image.image for image in images] == [data for wnid in WNIDS for data in pictures_of(wnid).values()]
    assert all(image.class_name in image.origin for image in images)
    assert images == list(imagenet.read(source, splits))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_names_missing_classes_before_the_first_image(tmp_path: Path, splits: Path, layout: Callable[..., Path]) -> None:
    source = layout(tmp_path, [wnid for wnid in WNIDS if wnid != "n00000002"])
    said: list[str] = []
    with pytest.raises(DataError) as caught:
        next(imagenet.read(source, splits, report=said.append))
    assert "1 of 2 train classes (n00000002)" in caught.value.message
    assert "--allow-missing" in caught.value.remedy
    assert not said

    images = list(imagenet.read(source, splits, allow_missing=True, report=said.append))
    assert len(images) == 9
    assert len(said) == 1
    assert "1 of 2 train classes (n00000002)" in said[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_imagenet_refuses_a_split_without_classes(tmp_path: Path, splits: Path, layout: Callable[..., Path], allow_missing: bool) -> None:
    source = layout(tmp_path, ["n00000001", "n00000002", "n00000003"])
    assert "none of the 1 classes that test.csv names" in refusal(imagenet.read(source, splits, allow_missing))


def test_imagenet_lists_at_most_ten_missing_classes(tmp_path: Path, splits: Path) -> None:
    with (splits / "val.csv").open("a") as file:
        file.writelines(f"n{number:08},n10000002\n" for number in range(100, 150))
    said: list[str] = []
    list(imagenet.read(as_archive(tmp_path, WNIDS), splits, True, said.append))
    assert "50 of 51 val classes" in said[0]
    assert "n00000109, ...)" in said[0]
    assert "n00000110" not in said[0]


def test_imagenet_reads_the_archive_once_and_strictly_forward(tmp_path: Path, splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once images flow nothing seeks, so the archive may be far larger than memory and lie on a slow disk."""
    source = as_archive(tmp_path, WNIDS)
    whole = source.stat().st_size
    images = imagenet.read(source, splits)
    modes: list[str] = []
    genuine = tarfile.open

    def recorded(*arguments: object, **options: object) -> tarfile.TarFile:
        modes.append(str(options["mode"]))
        return genuine(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(tarfile, "open", recorded)
    assert len(list(images)) == 12
    assert modes == ["r:", "r|", *["r|"] * len(WNIDS)]
    assert source.stat().st_size == whole
    assert {path.name for path in tmp_path.iterdir()} == {"splits", "train.tar"}


def test_imagenet_takes_names_as_labels_only(tmp_path: Path, splits: Path) -> None:
    tars = class_tars()
    tars["../../n00000001.tar"] = tar_of({"../../../escaped.JPEG": b"a", "/etc/n00000001_1.JPEG": b"b", "._n00000001_1.JPEG": b"c"})
    del tars["n00000001.tar"]
    source = tmp_path / "deep" / "er"
    source.mkdir(parents=True)
    (source / "train.tar").write_bytes(tar_of(tars))
    images = [image for image in imagenet.read(source / "train.tar", splits) if image.class_name == "n00000001"]
    assert [image.image for image in images] == [b"a", b"b"]
    assert not list(tmp_path.rglob("escaped*"))


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_imagenet_never_takes_a_cut_archive_for_a_whole_one(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    for split, wnids in CLASSES.items():
        (folder / f"{split}.csv").write_text("".join(f"{wnid},n10000000\n" for wnid in wnids))
    # A tar may end in any number of zero blocks: what matters ends with the last class.
    data = tar_of(class_tars()).rstrip(b"\0")
    (folder / "train.tar").write_bytes(data[: int(share * len(data))])
    assert "train.tar" in refusal(imagenet.read(folder / "train.tar", folder, True, lambda text: None))


def with_class(member: bytes) -> bytes:
    return tar_of({**class_tars(), "n00000002.tar": member})


GOOD_CLASS = tar_of(pictures_of("n00000002"))
ARCHIVE_DAMAGE: dict[str, tuple[bytes, list[str]]] = {
    "not a tar": (b"<html>not found</html>" * 500, ["not a whole, uncompressed tar"]),
    "empty file": (b"", ["not a whole, uncompressed tar"]),
    "tar without classes": (tar_of({"readme.txt": b"hello", "val.JPEG": b"x"}), ["holds no class"]),
    "tar of nothing": (tar_of({}), ["holds no class"]),
    "damaged header": (tar_of(class_tars()).replace(b"n00000003.tar", b"n0000000X.tar"), ["train.tar", "after n00000002.tar"]),
    "class without images": (with_class(tar_of({"readme.txt": b"hello"})), ["n00000002.tar holds no"]),
    "class of nothing": (with_class(tar_of({})), ["n00000002.tar holds no"]),
    "class of no bytes": (with_class(b""), ["n00000002.tar", "not a whole"]),
    "class that is no tar": (with_class(b"hello" * 1000), ["n00000002.tar", "not a whole"]),
    "class cut inside an image": (with_class(GOOD_CLASS[: 512 + 1536 + 512 + 300]), ["n00000002.tar", "inside n00000002_1.JPEG"]),
    "class cut inside a header": (with_class(GOOD_CLASS[: 512 + 1536 + 100]), ["n00000002.tar", "after n00000002_0.JPEG"]),
    "class cut between images": (with_class(GOOD_CLASS[: 512 + 1536]), ["n00000002.tar", "after n00000002_0.JPEG"]),
    "class twice": (tar_of({**class_tars(), "again/n00000002.tar": GOOD_CLASS}), ["n00000002 twice"]),
}


@pytest.mark.parametrize("kind", ARCHIVE_DAMAGE)
def test_imagenet_refuses_a_bad_archive(tmp_path: Path, splits: Path, kind: str) -> None:
    data, said = ARCHIVE_DAMAGE[kind]
    path = tmp_path / "train.tar"
    path.write_bytes(data)
    text = refusal(imagenet.read(path, splits))
    assert str(path) in text
    for words in said:
        assert words in text


def test_imagenet_refuses_a_bad_folder(tmp_path: Path, splits: Path) -> None:
    assert "neither a file nor a folder" in refusal(imagenet.read(tmp_path / "nowhere", splits))
    assert "holds no class" in refusal(imagenet.read(splits, splits))
    source = as_folders(tmp_path, WNIDS)
    (source / "n00000002.tar").write_bytes(GOOD_CLASS)
    assert "n00000002 twice" in refusal(imagenet.read(source, splits))
    (source / "n00000002.tar").unlink()
    for file in (source / "n00000002").iterdir():
        file.rename(file.with_suffix(".txt"))
    assert "n00000002 holds no" in refusal(imagenet.read(source, splits))


SPLIT_DAMAGE: dict[str, tuple[str, str]] = {
    "header": ("wnid,category\nn00000003,n10000002\n", "val.csv line 1 is 'wnid,category'"),
    "one field": ("n00000003,n10000002\nn00000005\n", "val.csv line 2"),
    "three fields": ("n00000003,n10000002,n10000003\n", "val.csv line 1"),
    "no category": ("n00000003,\n", "val.csv line 1"),
    "not a class": ("\nn3,n10000002\n", "val.csv line 2"),
    "not text": ("\0\1\2\n", "val.csv line 1"),
    "in train too": ("n00000003,n10000002\nn00000001,n10000002\n", "val.csv line 2 names n00000001, which train.csv names already"),
    "named twice": ("n00000003,n10000002\nn00000003,n10000002\n", "val.csv line 2 names n00000003, which val.csv names already"),
    "empty": ("", "none of the 0 classes that val.csv names"),
}


@pytest.mark.parametrize("kind", SPLIT_DAMAGE)
def test_imagenet_refuses_a_bad_split(tmp_path: Path, splits: Path, kind: str) -> None:
    rows, said = SPLIT_DAMAGE[kind]
    (splits / "val.csv").write_text(rows)
    assert said in refusal(imagenet.read(as_archive(tmp_path, WNIDS), splits))


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_imagenet_needs_all_three_lists(tmp_path: Path, splits: Path, split: str) -> None:
    (splits / f"{split}.csv").unlink()
    assert f"{split}.csv is not a file" in refusal(imagenet.read(as_archive(tmp_path, WNIDS), splits))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_imagenet_says_what_it_may_not_read(tmp_path: Path, splits: Path) -> None:
    source = as_archive(tmp_path, WNIDS)
    source.chmod(0)
    assert "cannot be read" in refusal(imagenet.read(source, splits))


def test_the_number_of_images_is_guessed_from_the_archives_headers(tmp_path: Path, splits: Path) -> None:
    count = len(list(imagenet.read(as_archive(tmp_path, WNIDS), splits)))
    assert imagenet.estimate(as_archive(tmp_path, WNIDS), splits) == count
    assert imagenet.estimate(as_folders(tmp_path / "f", WNIDS), splits) == count
    assert imagenet.estimate(tmp_path / "absent", splits) is None
    assert imagenet.estimate(splits, splits) is None


def test_the_real_imagenet_archive_meets_the_tiered_split() -> None:
    archive, split = shared("imagenet64/ILSVRC2012_img_train.tar"), shared("tiered_imagenet_split")
    said: list[str] = []
    images = list(imagenet.read(archive, split, True, said.append))
    classes = of_split(images, "class_name")
    assert {name: len(group) for name, group in classes.items()} == {"train": 61, "val": 17, "test": 25}
    assert_disjoint(of_split(images, "category"))
    assert len(images) == 32800
    assert abs((imagenet.estimate(archive, split) or 0) / 32800 - 1) < 0.5
    assert [text.split(" lacks ")[1].split(" classes")[0] for text in said] == ["290 of 351 train", "80 of 97 val", "135 of 160 test"]
    assert "--allow-missing" in refusal(imagenet.read(archive, split))
