"""Checking a packed dataset against its manifest, shard by shard and image by image."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from distmeta.data.images import decode
from distmeta.data.shards import Dataset, Shard
from distmeta.errors import DataError


class Finding(NamedTuple):
    """Something wrong: in which shard, at which key (empty if it concerns the whole shard), and what."""

    shard: str
    key: str
    reason: str


def verify(dataset: Dataset, quick: bool = False) -> Iterator[Finding]:
    """Everything in the shards that is not as the manifest says: sizes; unless `quick` also SHA-256, labels and every image."""
    for info in dataset.manifest.shards:
        try:
            size = dataset.size(info)
            if size != info.bytes:
                yield Finding(info.name, "", f"{size} bytes; the manifest says {info.bytes}")
            if not quick:
                yield from _check_content(dataset, Shard(info, dataset.read(info)))
        except DataError as error:
            yield Finding(info.name, "", error.message)


def _check_content(dataset: Dataset, shard: Shard) -> Iterator[Finding]:
    if hashlib.sha256(shard.content[:]).hexdigest() != shard.info.sha256:
        yield Finding(shard.info.name, "", "does not match its SHA-256")
    labels = _labels(shard)
    for member, class_id in enumerate(shard.info.class_ids):
        key = f"{member:08d}"
        if labels.get(key) != str(class_id).encode():
            yield Finding(shard.info.name, key, f"label {labels.get(key, b'missing')!r}; the manifest says {class_id}")
        try:
            decode(shard.image(member), dataset.manifest.preprocessing, "the image")
        except DataError as error:
            yield Finding(shard.info.name, key, error.message)


def _labels(shard: Shard) -> dict[str, bytes]:
    """key → content of its .cls member, as far as the tar file can be read."""
    labels = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(shard.content[:])) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if member.name.endswith(".cls") and content is not None:
                    labels[member.name.removesuffix(".cls")] = content.read()
    except tarfile.TarError:
        pass  # what is missing is found missing
    return labels
