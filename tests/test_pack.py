"""Packing and shards: the same bytes for the same input, every image once, nothing half-written, every damage named."""

import functools
import hashlib
import io
import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import options, patterns, png
from pictures import tiff
from PIL import Image

import distmeta.data.pack as pack_module
from distmeta.data.encode import encode
from distmeta.data.episodes import Task
from distmeta.data.images import decode
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.data.sources import SourceImage
from distmeta.errors import ConfigError, DataError


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_input_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack(patterns(), tmp_path / "again", options())
    assert digests(tmp_path / "again") == digests(packed)
    pack(patterns(), tmp_path / "other", options(seed=1))
    assert digests(tmp_path / "other") != digests(packed)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_no_byte(processes: int, packed: Path, tmp_path: Path) -> None:
    pack(patterns(), tmp_path / "out", options(), processes)
    assert digests(tmp_path / "out") == digests(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_stops_a_process_stops_the_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the archive is cut"):
        pack(refusing(100), tmp_path / "out", options(), processes=2)
    assert not (tmp_path / "out").exists()


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


def test_webdataset_alone_reads_the_shards(packed: Path) -> None:
    program = """
import sys, webdataset
samples = list(webdataset.WebDataset(sys.argv[1], shardshuffle=False))
assert not any(name.startswith("distmeta") for name in sys.modules)
print(len(samples), *sorted(samples[0]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(packed / "train-000000.tar")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["72", "__key__", "__local_path__", "__url__", "cls", "png"]


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


def broken(*positions: int) -> Iterator[SourceImage]:
    for i, image in enumerate(patterns()):
        yield image._replace(image=image.image[:40]) if i in positions else image


@pytest.mark.parametrize("n", [0, 100, 299])
def test_an_undecodable_image_is_left_out_and_named(n: int, tmp_path: Path) -> None:
    packed = pack(broken(n), tmp_path / "out", options())
    assert [origin for origin, _ in packed.skipped] == [list(patterns())[n].origin]
    assert "does not decode" in packed.skipped[0][1]
    assert sum(info.images for info in packed.manifest.classes) == 299
    others = [image for i, image in enumerate(patterns()) if i != n]
    assert pack(others, tmp_path / "without", options()).manifest == packed.manifest


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_whatever_is_wrong_in_an_image_is_its_problem_alone(form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(buffer, form)
    chance, whole, encoding = random.Random(form), buffer.getvalue(), options(channels=3).encoding
    spoilt = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(min(len(content), chance.choice([60, 400, 10**6])))] = chance.randrange(256)
        content = content[: chance.choice([len(content), chance.randrange(len(content))])]
        images = [
            SourceImage(split="train", class_name="a", category="a", image=image, origin="") for image in (whole, bytes(content), whole)
        ]
        first, second, third = encode(encoding, images).images
        assert first.content == third.content
        assert (first.problem, bool(second.problem)) == ("", not second.content)
        spoilt += not second.content
    assert spoilt > 30


def test_too_many_undecodable_images_stop_the_pack_and_more_may_be_allowed(tmp_path: Path) -> None:
    bad = (0, 20, 40, 299)
    with pytest.raises(DataError, match=r"4 of 300 images do not decode.*0\.01.*such as pattern 0/0") as caught:
        pack(broken(*bad), tmp_path / "out", options())
    assert "--max-bad-fraction" in caught.value.remedy
    assert not (tmp_path / "out").exists()
    assert len(pack(broken(*bad), tmp_path / "out", options(max_bad_fraction=0.02)).skipped) == 4


def test_a_class_without_any_image_left_stops_the_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image of class 'train-1' can be used, such as pattern 1/0"):
        pack(broken(*range(12, 24)), tmp_path / "out", options(max_bad_fraction=1.0))
    assert not (tmp_path / "out").exists()


def refusing(after: int) -> Iterator[SourceImage]:
    yield from itertools.islice(patterns(), after)
    raise DataError("the archive is cut", "copy it again")


def test_a_source_that_refuses_at_once_leaves_nothing(tmp_path: Path) -> None:
    for source in (refusing(0), iter(())):
        with pytest.raises(DataError):
            pack(source, tmp_path / "out", options())
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(7, 1, 2), "way=7 but split 'val' has 6 classes"),
        (Task(2, 6, 7), r"shot \+ queries = 13 but class 'train-0' of split 'train' has 12 images"),
    ],
)
def test_a_task_that_a_split_cannot_serve_is_refused(task: Task, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        pack(patterns(), tmp_path / "out", options(task=task))
    assert not (tmp_path / "out").exists()


def test_a_shard_with_fewer_classes_than_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="way=5 but with --classes-per-shard 4 a shard has 4 classes"):
        pack(patterns(), tmp_path / "out", options(task=Task(5, 1, 2), classes_per_shard=4))


def test_every_shard_serves_the_task_it_was_packed_for(tmp_path: Path) -> None:
    manifest = pack(patterns(), tmp_path / "out", options(images_per_class=2, task=Task(3, 1, 3))).manifest
    for info in manifest.shards:
        assert min(Counter(info.class_ids).values()) >= 4


@pytest.mark.parametrize(("limit", "groups"), [(40_000, (4, 2, 3)), (100_000, (2, 1, 1))])
def test_shards_hold_all_classes_or_as_many_as_keep_them_at_the_limit(
    limit: int, groups: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image and its label take 2048 bytes of a shard here: a chunk of 6 images of all classes is 147, 74 and 86 kB."""
    monkeypatch.setattr(pack_module, "SHARD_BYTES", limit)
    manifest = pack(patterns(), tmp_path / "cut", options()).manifest
    for split, classes, count in zip(("train", "val", "test"), (12, 6, 7), groups, strict=True):
        shards = [info for info in manifest.shards if info.split == split]
        assert len(shards) == 2 * count
        assert {len(set(info.class_ids)) for info in shards} == {classes // count, -(-classes // count)}
        assert all(len(info.class_ids) * 2048 <= limit for info in shards)


def test_classes_per_shard_is_the_training_splits(tmp_path: Path) -> None:
    manifest = pack(patterns(), tmp_path / "out", options(classes_per_shard=5)).manifest
    held = {split: {len(set(s.class_ids)) for s in manifest.shards if s.split == split} for split in ("train", "val", "test")}
    assert held == {"train": {4}, "val": {6}, "test": {7}}
    assert sorted(Counter(class_id for s in manifest.shards for class_id in s.class_ids).values()) == [12] * 25


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
    with pytest.raises(DataError, match="is not a packed dataset"):
        Dataset(f"{served}/elsewhere")


def test_no_manifest_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a packed dataset.*\npack it first"):
        Dataset(str(tmp_path / "absent"))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Dataset(str(tmp_path))


def coloured(values: np.ndarray) -> Iterator[SourceImage]:
    """The patterns' classes, each image made of `values`."""
    yield from (image._replace(image=png_of(values)) for image in patterns())


def png_of(values: np.ndarray) -> bytes:
    return tiff(values) if values.dtype != np.uint8 else png(values)


def test_a_dataset_without_any_contrast_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all training images are one flat colour \(7 of 255\): standard deviation 0"):
        pack(coloured(np.full((16, 16), 7, np.uint8)), tmp_path / "out", options())
    only_red = np.zeros((16, 16, 3), np.uint8)
    only_red[:8, :, 0] = 200
    with pytest.raises(DataError, match="standard deviation 0 in a channel"):
        pack(coloured(only_red), tmp_path / "out", options(channels=3))
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_contrast_or_of_no_numbers_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "copy")
    content = json.loads((folder / "manifest.json").read_text())
    for key, value in (("std", [0.0]), ("std", [-1.0]), ("mean", ["x"]), ("std", []), ("value_range", [1, 1])):
        damaged = content | {"preprocessing": content["preprocessing"] | {key: value}}
        (folder / "manifest.json").write_text(json.dumps(damaged))
        with pytest.raises(DataError, match=rf"damaged: preprocessing\.{key}"):
            Dataset(str(folder))


def test_16_bit_images_of_fewer_bits_are_refused_over_the_dataset_as_a_whole(tmp_path: Path) -> None:
    def in_16_bits(factor: int, brightest: int = 0) -> Iterator[SourceImage]:
        for i, image in enumerate(patterns()):
            pixels = np.asarray(Image.open(io.BytesIO(image.image))).astype(np.uint16) * factor
            if brightest and i == 70:
                pixels[0, 0] = brightest
            yield image._replace(image=tiff(pixels))

    with pytest.raises(DataError, match=r"pattern \d+/\d+ has 16-bit values, but none above 2\d\d of 65535") as refused:
        pack(in_16_bits(1), tmp_path / "out", options())
    assert "--value-range 0,255" in refused.value.remedy
    by_range = pack(in_16_bits(1), tmp_path / "out", options(value_range=(0.0, 255.0))).manifest
    plain = pack(patterns(), tmp_path / "plain", options()).manifest
    assert by_range.preprocessing.value_range == (0, 255)
    assert Dataset(str(tmp_path / "out")).manifest == by_range
    assert by_range.preprocessing == plain.preprocessing.model_copy(update={"value_range": (0.0, 255.0)})
    assert [shard.sha256 for shard in by_range.shards] == [shard.sha256 for shard in plain.shards]
    pack(in_16_bits(1, brightest=9000), tmp_path / "bright", options())
    assert pack(in_16_bits(257), tmp_path / "full", options()).manifest == plain


def test_images_without_a_range_are_named_with_what_they_need(tmp_path: Path) -> None:
    floats = np.linspace(0, 0.5, 256, dtype=np.float32).reshape(16, 16)
    with pytest.raises(DataError, match=r"pattern 0/0: the image has float values, 0 to 0\.5: say which .* by --value-range"):
        pack(coloured(floats), tmp_path / "out", options())
    packed = pack(coloured(floats), tmp_path / "out", options(value_range=(0.0, 1.0)))
    assert packed.manifest.preprocessing.mean == [pytest.approx(0.25, abs=0.01)]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_are_packed_upright(orientation: int, tmp_path: Path) -> None:
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]

    def lying() -> Iterator[SourceImage]:
        exif = Image.Exif()
        exif[274] = orientation
        for image in patterns():
            file = io.BytesIO()
            Image.open(io.BytesIO(image.image)).transpose(stored).save(file, "PNG", exif=exif)
            yield image._replace(image=file.getvalue())

    assert pack(lying(), tmp_path / "lying", options()).manifest == pack(patterns(), tmp_path / "upright", options()).manifest


def test_animated_files_are_counted(tmp_path: Path) -> None:
    def animated() -> Iterator[SourceImage]:
        for i, image in enumerate(patterns()):
            picture = Image.open(io.BytesIO(image.image))
            gif = io.BytesIO()
            picture.save(gif, "GIF", save_all=True, append_images=[Image.new("L", picture.size)])
            yield image._replace(image=gif.getvalue()) if i < 3 else image

    packed = pack(animated(), tmp_path / "out", options(), processes=2)
    assert packed.several == 3


def test_files_of_too_many_pixels_and_damaged_avif_are_left_out_and_named(tmp_path: Path) -> None:
    avif = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(avif, "AVIF")
    damaged = avif.getvalue()[:-40] + bytes(40)

    def some_bad() -> Iterator[SourceImage]:
        for i, image in enumerate(patterns()):
            yield image._replace(image={5: b"DDS " + bytes(200), 6: damaged, 7: avif.getvalue()}.get(i, image.image))

    packed = pack(some_bad(), tmp_path / "out", options(max_pixels=1000, max_bad_fraction=0.02))
    assert [origin for origin, _ in packed.skipped] == ["pattern 0/5", "pattern 0/6", "pattern 0/7"]
    assert "40 x 40 pixels, more than the limit of 1,000" in packed.skipped[2][1]
