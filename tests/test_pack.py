"""Packing and shards: the same bytes for the same input, every image once, nothing half-written, every damage named."""

import functools
import hashlib
import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import options, patterns

from distmeta.data.images import decode
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.data.sources import SourceImage
from distmeta.errors import DataError


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_input_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack(patterns(), tmp_path / "again", options())
    assert digests(tmp_path / "again") == digests(packed)
    pack(patterns(), tmp_path / "other", options(seed=1))
    assert digests(tmp_path / "other") != digests(packed)


def test_every_image_is_packed_once_and_every_shard_holds_every_class(packed: Path, dataset: Dataset) -> None:
    originals = Counter(hashlib.sha256(decode(s.image, dataset.manifest.preprocessing, "").tobytes()).hexdigest() for s in patterns())
    found: Counter[str] = Counter()
    for info in dataset.manifest.shards:
        shard = dataset.fetch(info)
        counts = Counter(info.class_ids)
        assert set(counts) == set(dataset.class_ids(info.split))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert min(counts.values()) >= options().images_per_class
        for member in range(len(info.class_ids)):
            found[hashlib.sha256(decode(shard.image(member), dataset.manifest.preprocessing, "").tobytes()).hexdigest()] += 1
    assert found == originals


def test_splits_share_no_class(dataset: Dataset) -> None:
    ids = [set(dataset.class_ids(split)) for split in ("train", "val", "test")]
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(dataset.manifest.classes)


def test_plain_webdataset_reads_the_shards(packed: Path, dataset: Dataset) -> None:
    for info in dataset.manifest.shards:
        samples = list(webdataset.WebDataset(str(packed / info.name), shardshuffle=False))
        assert [int(sample["cls"]) for sample in samples] == info.class_ids.tolist()
        shard = dataset.fetch(info)
        assert all(sample["png"] == shard.image(i) for i, sample in enumerate(samples))


def test_pixel_statistics_are_the_training_splits(dataset: Dataset) -> None:
    preprocessing = dataset.manifest.preprocessing
    pixels = np.stack([decode(s.image, preprocessing, "") for s in patterns() if s.split == "train"])
    values = preprocessing.network_input(pixels)
    assert abs(values.mean().item()) < 1e-3
    assert abs(values.std().item() - 1) < 1e-3


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DataError, match="exists already"):
        pack(patterns(), tmp_path / "mine", options())
    assert (tmp_path / "mine").read_text() == "precious"


def broken_at(n: int) -> Iterator[SourceImage]:
    for i, image in enumerate(patterns()):
        yield image._replace(image=image.image[:40]) if i == n else image


@pytest.mark.parametrize("n", [0, 100])
def test_an_undecodable_image_is_named_and_nothing_is_left(n: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pattern \d+/\d+ does not decode"):
        pack(broken_at(n), tmp_path / "out", options())
    assert list(tmp_path.iterdir()) == []


def interrupted() -> Iterator[SourceImage]:
    for i, image in enumerate(patterns()):
        if i == 50:
            raise KeyboardInterrupt
        yield image


def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(interrupted(), tmp_path / "out", options())
    assert list(tmp_path.iterdir()) == []


def test_two_packs_into_one_folder(tmp_path: Path) -> None:
    def second() -> Iterator[SourceImage]:
        with pytest.raises(DataError, match="another pack"):
            pack(patterns(), tmp_path / "out", options())
        yield from patterns()

    pack(second(), tmp_path / "out", options())
    Dataset(str(tmp_path / "out"))


def test_any_flipped_byte_of_a_shard_is_noticed(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "copy")
    info = dataset.manifest.shards[0]
    path = folder / info.name
    for position in random.Random(0).sample(range(info.bytes), 20):
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{info.name} does not match"):
            Dataset(str(folder)).fetch(info)
        content[position] ^= 1
        path.write_bytes(content)
    assert Dataset(str(folder)).fetch(info).content[:] == path.read_bytes()


def test_a_truncated_or_missing_shard_is_named(packed: Path, dataset: Dataset, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "copy")
    info = dataset.manifest.shards[-1]
    (folder / info.name).write_bytes((folder / info.name).read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"{info.name} has {info.bytes - 1000} bytes; the manifest says {info.bytes}"):
        Dataset(str(folder)).fetch(info)
    (folder / info.name).unlink()
    with pytest.raises(DataError, match=f"{info.name} is missing"):
        Dataset(str(folder)).fetch(info)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m | {"format_version": 99}, r"format version 99.*\nupdate distmeta"),
        (lambda m: m | {"format_version": 1}, r"format version 1;.*\npack the dataset again"),
        (lambda m: m | {"shards": [m["shards"][0] | {"sizes": "not base64"}]}, r"damaged: shards.0.sizes"),
        (lambda m: m | {"dataset": "another"}, "does not match its own fingerprint"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "damaged: shards"),
        (lambda m: m | {"shards": [m["shards"][0] | {"name": "../../etc/passwd"}]}, r"damaged: shards.0.name"),
        (lambda m: m | {"shards": [m["shards"][0] | {"name": "pipe:id"}]}, r"damaged: shards.0.name"),
        (lambda m: [1, 2], "format version None"),
    ],
)
def test_a_damaged_manifest_is_refused(packed: Path, tmp_path: Path, damage: object, message: str) -> None:
    folder = shutil.copytree(packed, tmp_path / "copy")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(damage(content)))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        Dataset(str(folder))


@pytest.fixture
def served(packed: Path) -> Iterator[str]:
    """The dataset's folder over HTTP."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(packed))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_over_http_it_is_the_same_dataset(served: str, dataset: Dataset) -> None:
    remote = Dataset(served)
    assert remote.manifest == dataset.manifest
    assert remote.fetch(remote.manifest.shards[0]).content[:] == dataset.fetch(dataset.manifest.shards[0]).content[:]
    with pytest.raises(DataError, match=r"no-such\.tar is missing"):
        remote.fetch(remote.manifest.shards[0].model_copy(update={"name": "no-such.tar"}))
    with pytest.raises(DataError, match="is no packed dataset"):
        Dataset(f"{served}/elsewhere")


def test_no_manifest_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no packed dataset.*\npack it first"):
        Dataset(str(tmp_path / "absent"))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Dataset(str(tmp_path))
