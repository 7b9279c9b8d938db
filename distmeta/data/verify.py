"""Checks a packed dataset against its manifest, shard by shard and image by image."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from distmeta.data.ahead import in_order
from distmeta.data.copies import SeenPictures
from distmeta.data.encode import pixels_digest
from distmeta.data.images import decode_packed
from distmeta.data.shards import Dataset, Shard, ShardInfo
from distmeta.data.tars import content_of, members
from distmeta.data.workers import usable_cpus
from distmeta.errors import DataError

_LONGEST_LABEL = 20  # digits
_THREADS = 8  # each thread holds one shard in memory


class Finding(NamedTuple):
    """A fault: its shard, its key (empty if it concerns the whole shard), and the reason."""

    shard: str
    key: str
    reason: str


class _Member(NamedTuple):
    """A file of a shard; `label` is its content if it is a .cls."""

    offset: int
    size: int
    label: bytes


def verify(dataset: Dataset, quick: bool = False, seen: SeenPictures | None = None) -> Iterator[list[Finding]]:
    """For each shard in the manifest's order, all differences from the manifest. Several shards are checked at once.

    Sizes are checked. Unless `quick`, also SHA-256, the tar's members and their names, labels, and that every image decodes; every picture
    is added to `seen`.
    """
    threads = min(_THREADS, usable_cpus())
    check = partial(_check, dataset, quick, seen)
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        yield from in_order(pool, check, dataset.manifest.shards, 2 * threads)


def _check(dataset: Dataset, quick: bool, seen: SeenPictures | None, info: ShardInfo) -> list[Finding]:
    findings = []
    try:
        size = dataset.size(info)
        if size != info.bytes:
            findings.append(Finding(info.name, "", f"{size} bytes; the manifest says {info.bytes}"))
        if not quick:
            findings += _check_content(dataset, Shard(info, dataset.read(info)), seen)
    except DataError as error:
        findings.append(Finding(info.name, "", error.message))
    return findings


def _check_content(dataset: Dataset, shard: Shard, seen: SeenPictures | None) -> Iterator[Finding]:
    info = shard.info
    if hashlib.sha256(shard.content[:]).hexdigest() != info.sha256:
        yield Finding(info.name, "", "does not match its SHA-256")
    files: dict[str, _Member] = {}
    yield from _read_members(shard, files)
    suffix = dataset.manifest.image_format
    expected = {f"{member:08d}.{kind}" for member in range(len(info.class_ids)) for kind in (suffix, "cls")}
    for name in files.keys() - expected:
        yield Finding(info.name, name, "is not in the manifest")
    for member, class_id in enumerate(info.class_ids):
        key = f"{member:08d}"
        reason = _label_problem(files.get(f"{key}.cls"), class_id, len(dataset.manifest.classes))
        if reason:
            yield Finding(info.name, key, reason)
        image = files.get(f"{key}.{suffix}")
        if image and image[:2] != (info.offsets[member], info.sizes[member]):
            yield Finding(info.name, key, f"the image is not at byte {info.offsets[member]}, where the manifest says it does")
    yield from _check_pictures(dataset, shard, seen)


def _check_pictures(dataset: Dataset, shard: Shard, seen: SeenPictures | None) -> Iterator[Finding]:
    whole, digests = [], []
    for member in range(len(shard.info.class_ids)):
        try:
            pixels = decode_packed(shard.image(member), dataset.manifest.preprocessing, "the image")
        except DataError as error:
            yield Finding(shard.info.name, f"{member:08d}", error.message)
            continue
        whole.append(member)
        digests.append(pixels_digest(pixels.transpose(1, 2, 0)))
    if seen is not None:
        seen.add(shard.info.class_ids[whole], digests)


def _read_members(shard: Shard, files: dict[str, _Member]) -> Iterator[Finding]:
    """Fill `found` with the tar's files, as far as the tar can be read."""
    try:
        for member, content in members(io.BytesIO(shard.content[:]), "r:", "the shard"):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                yield Finding(shard.info.name, member.name, "names a place outside the shard")
            if member.name in files:
                yield Finding(shard.info.name, member.name, "appears twice")
            label = content_of(member, content, "the shard") if member.name.endswith(".cls") else b""
            files[member.name] = _Member(member.offset_data, member.size, label)
    except DataError as error:
        yield Finding(shard.info.name, "", error.message)


def _label_problem(member: _Member | None, class_id: int, classes: int) -> str:
    if member is None:
        return "the label (.cls) is missing"
    if not member.label.isdigit() or len(member.label) > _LONGEST_LABEL:
        return f"label {member.label[:20]!r} is not a number"
    if int(member.label) >= classes:
        return f"label {int(member.label)} is out of range; the manifest has {classes} classes"
    return "" if int(member.label) == class_id else f"label {int(member.label)}; the manifest says {class_id}"
