"""The same picture twice is counted: within classes, across classes, across splits; and a copy among queries is refused."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import options, patterns
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_pack_verb import run
from test_predict import call

from distmeta.data.copies import Copies, SeenPictures, find_copies
from distmeta.data.datasets import DATASETS, PackRequest, pack_options
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.data.sources import Source, SourceImage
from distmeta.data.verify import verify
from distmeta.errors import DataError

SPLITS = ["train", "train", "train", "val", "val", "test"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=40))
def test_copies_are_counted_as_one_would_by_hand(images: list[tuple[int, int]]) -> None:
    class_ids, digests = np.array([c for c, _ in images]), np.array([d for _, d in images], np.uint64)
    found = find_copies(digests, class_ids, SPLITS)
    held = {(c, d) for c, d in images}
    pictures = {d for _, d in held}
    assert found.copies.within_classes == len(images) - len(held)
    splits_of = {d: [SPLITS[c] for c, other in held if other == d] for d in pictures}
    assert found.copies.across_classes == sum(len(splits) > len(set(splits)) for splits in splits_of.values())
    assert found.copies.across_splits == sum(len(set(splits)) > 1 for splits in splits_of.values())
    assert all({d for c, d in held if c == a} & {d for c, d in held if c == b} for a, b in found.copies.pairs)
    assert bool(found.copies.pairs) == (found.copies.across_classes + found.copies.across_splits > 0)
    if found.across:
        first, second = found.across
        assert digests[first] == digests[second]
        assert SPLITS[class_ids[first]] != SPLITS[class_ids[second]]
    assert (found.across is not None) == (found.copies.across_splits > 0)
    seen = SeenPictures()
    for start in range(0, len(images), 7):
        seen.add(class_ids[start : start + 7], digests[start : start + 7].tolist())
    assert seen.copies(SPLITS).copies.model_dump(exclude={"pairs"}) == found.copies.model_dump(exclude={"pairs"})


def with_copies() -> Iterator[SourceImage]:
    """The patterns, and in addition: two within train-0, one of train-0 in train-1, two of train-2 in test-0, re-encoded."""
    images = list(patterns())
    yield from images
    train = [image for image in images if image.class_name == "train-0"]
    yield from (image._replace(origin="again") for image in train[:2])
    yield train[5]._replace(class_name="train-1", category="train category 1", origin="elsewhere")
    third = [image for image in images if image.class_name == "train-2"]
    yield from (image._replace(split="test", class_name="test-0", category="test category 0", origin="leak") for image in third[:2])


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_pack_verify_and_the_manifest_agree(image_format: str, tmp_path: Path) -> None:
    packed = pack(with_copies(), tmp_path / "out", options(image_format=image_format))
    copies = packed.manifest.copies
    assert copies is not None
    names = [info.name for info in packed.manifest.classes]
    assert copies.model_dump(exclude={"pairs"}) == {"within_classes": 2, "across_classes": 1, "across_splits": 2}
    assert [(names[a], names[b]) for a, b in copies.pairs] == [("train-2", "test-0"), ("train-0", "train-1")]
    dataset, seen = Dataset(str(tmp_path / "out")), SeenPictures()
    assert dataset.manifest.copies == copies
    assert list(filter(None, verify(dataset, seen=seen))) == []
    assert seen.copies([info.split for info in dataset.manifest.classes]).copies == copies


def test_copies_are_no_part_of_a_datasets_identity_and_older_manifests_have_none(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("copies") == Copies(within_classes=0, across_classes=0, across_splits=0).model_dump()
    assert "value_range" not in manifest["preprocessing"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Dataset(str(folder)).manifest.copies is None


def test_a_pack_goes_on_where_it_stopped_with_its_copies_and_notes(tmp_path: Path) -> None:
    whole = pack(with_copies(), tmp_path / "whole", options())

    def stopping() -> Iterator[SourceImage]:
        yield from islice(with_copies(), 200)
        raise DataError("the disk is gone", "put it back")

    with pytest.raises(DataError, match="the disk is gone"):
        pack(stopping(), tmp_path / "out", options())
    assert pack(with_copies(), tmp_path / "out", options()).manifest == whole.manifest


def test_an_official_dataset_stays_as_it_was_published_and_its_copies_are_reported(tmp_path: Path) -> None:
    def kept(dataset: str) -> bool:
        return pack_options(PackRequest(dataset, tmp_path), Source(iter(()), 0, {})).allow_copies

    assert all(kept(name) for name in DATASETS if name != "folder")
    assert not kept("folder")
    leaked = pack(with_copies(), tmp_path / "out", options(allow_copies=True)).manifest.copies
    assert leaked is not None
    assert leaked.across_splits == 2
    with pytest.raises(DataError, match="2 pictures are in more than one split"):
        pack(with_copies(), tmp_path / "other", options(allow_copies=False))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for image in patterns(images_per_class=12, classes=(6, 6, 6)):
        path = tmp_path / "pictures" / image.split / image.class_name / f"{image.origin.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.image)
    first = next((tmp_path / "pictures/train/train-1").iterdir())
    Image.open(first).convert("RGB").save(tmp_path / "pictures/test/test-2/leak.bmp")  # other bytes, the same pixels
    return tmp_path / "pictures"


def test_a_users_folder_may_share_no_picture_across_splits_unless_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = ["pack", "--dataset", "folder", str(pictures), "--out", out, "--processes", "1", "--image-size", "16", "--format", "png"]
    code, _, err = call(monkeypatch, capsys, *command)
    assert code == 1
    reason, remedy = err.splitlines()[-2:]
    original = sorted((pictures / "train/train-1").iterdir())
    assert reason.startswith(f"distmeta: 1 pictures are in more than one split, such as {pictures}/train/train-1/")
    assert any(str(path) in reason for path in original)
    assert f"{pictures}/test/test-2/leak.bmp" in reason
    assert remedy == "  accept them with --allow-copies, or remove the copies; the same command continues where it stopped"
    # Both halves of the remedy work.
    _, said = run(monkeypatch, capsys, *command, "--allow-copies")
    assert "1 pictures are in more than one split\nclasses that share a picture: train-1 and test-2\n" in said
    _, said = run(monkeypatch, capsys, "inspect", out)
    assert "classes that share a picture: train-1 and test-2" in said
    shown, said = run(monkeypatch, capsys, "verify", out, "--json")
    assert json.loads(shown.splitlines()[-1])["copies"]["across_splits"] == 1
    assert json.loads(shown.splitlines()[-1])["ok"]
    shutil.rmtree(out)
    call(monkeypatch, capsys, *command)
    (pictures / "test/test-2/leak.bmp").unlink()
    run(monkeypatch, capsys, *command)
