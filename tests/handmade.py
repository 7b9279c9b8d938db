"""Datasets whose shards are put together by hand: fewer classes in a shard, or images that do not decode."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
from conftest import patterns
from webdataset import TarWriter

from distmeta.data.images import Preprocessing
from distmeta.data.shards import MANIFEST, ClassInfo, Dataset, Manifest, ShardInfo
from distmeta.data.splits import Split
from distmeta.seeds import generator

Images = dict[Split, list[list[bytes]]]  # split → class → its images

CLASSES = (12, 8, 7)


def images(per_class: int = 12) -> Images:
    found: dict[str, dict[str, list[bytes]]] = {}
    for image in patterns(per_class, CLASSES):
        found.setdefault(image.split, {}).setdefault(image.class_name, []).append(image.image)
    return {split: list(classes.values()) for split, classes in found.items()}  # type: ignore[misc]


def write(out: Path, content: Images, rounds: int, groups: int) -> Dataset:
    """Each class is cut into `rounds` chunks; in each round the classes are dealt to `groups` shards, which take a chunk of each."""
    out.mkdir()
    classes: list[ClassInfo] = []
    shards: list[ShardInfo] = []
    for split, of_class in content.items():
        first = len(classes)
        classes += [ClassInfo(name=f"{split}-{i}", category="", split=split, images=len(c)) for i, c in enumerate(of_class)]
        for round_ in range(rounds):
            for group in np.array_split(generator(1, split, round_).permutation(len(of_class)), groups):
                samples = [(first + int(c), image) for c in group for image in of_class[c][round_::rounds]]
                shards.append(_shard(out / f"{split}-{len(shards):06d}.tar", split, samples))
    preprocessing = Preprocessing(image_size=16, channels=1, resize="squash", mean=[0.5], std=[0.2])
    manifest = Manifest(
        dataset="handmade", seed=0, source={}, image_format="png", preprocessing=preprocessing, classes=classes, shards=shards
    )
    manifest = manifest.model_copy(update={"fingerprint": manifest.digest()})
    (out / MANIFEST).write_text(manifest.model_dump_json())
    return Dataset(str(out))


def _shard(path: Path, split: Split, samples: list[tuple[int, bytes]]) -> ShardInfo:
    with TarWriter(str(path), encoder=False) as writer:
        for key, (class_id, image) in enumerate(samples):
            writer.write({"__key__": f"{key:08d}", "png": image, "cls": str(class_id).encode()})
    with tarfile.open(path) as archive:
        offsets = [member.offset_data for member in archive if member.name.endswith(".png")]
    return ShardInfo(
        name=path.name,
        split=split,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        class_ids=np.array([class_id for class_id, _ in samples]),
        offsets=np.array(offsets),
        sizes=np.array([len(image) for _, image in samples]),
    )
