"""A packed dataset: `manifest.json` and the shards it names, at any location fsspec can read."""

import hashlib
import json
from collections import defaultdict
from functools import cached_property
from typing import Literal, NamedTuple

import fsspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distmeta.data.episodes import Task
from distmeta.data.images import Preprocessing
from distmeta.errors import ConfigError, DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Split = Literal["train", "val", "test"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassInfo(_Strict):
    """One class; its class_id is its position in the manifest's list. `name` is the source's own (a WordNet id, "Greek/character07")."""

    name: str
    category: str
    split: Split
    images: int


class ShardInfo(_Strict):
    """One shard. `name` is a bare file name; image i of the shard is `sizes[i]` bytes from `offsets[i]` and belongs to `class_ids[i]`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    split: Split
    bytes: int
    sha256: str
    class_ids: list[int]
    offsets: list[int]
    sizes: list[int]


class Manifest(_Strict):
    """Everything about a packed dataset but its pixels."""

    format_version: int = FORMAT_VERSION
    dataset: str
    fingerprint: str = ""
    seed: int
    source: dict[str, str]
    image_format: Literal["png", "jpg"]
    preprocessing: Preprocessing
    classes: list[ClassInfo]
    shards: list[ShardInfo]

    def digest(self) -> str:
        """SHA-256 over all fields but the fingerprint itself, the shards' own SHA-256 among them."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude={"fingerprint"}), sort_keys=True).encode()).hexdigest()


class Shard(NamedTuple):
    """A shard in memory: the whole tar file, and what the manifest says of it."""

    info: ShardInfo
    content: bytes

    def image(self, member: int) -> bytes:
        offset = self.info.offsets[member]
        return self.content[offset : offset + self.info.sizes[member]]


class Dataset:
    """A packed dataset, opened. `location` is a folder or any URL that fsspec reads (http, https, s3, gs)."""

    def __init__(self, location: str) -> None:
        """Raises DataError if there is no whole manifest of this version at `location`."""
        self.location = location.rstrip("/")
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        path = f"{self.location}/{MANIFEST}"
        pack = "pack it first: distmeta pack --help"
        try:
            with fsspec.open(path, "rb") as file:
                content = json.loads(file.read())
        except FileNotFoundError:
            raise DataError(f"{self.location} is no packed dataset: it has no {MANIFEST}", pack) from None
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{path} cannot be read: {error}", "check the location, or pack the dataset again") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}; this distmeta reads {FORMAT_VERSION}", "update distmeta or pack again")
        try:
            manifest = Manifest.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path} is damaged: {where}: {first['msg']}", "pack the dataset again") from None
        if manifest.digest() != manifest.fingerprint:
            raise DataError(f"{path} does not match its own fingerprint {manifest.fingerprint[:12]}", "pack the dataset again")
        return manifest

    @cached_property
    def _class_ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for class_id, info in enumerate(self.manifest.classes):
            ids[info.split].append(class_id)
        return ids

    def class_ids(self, split: Split) -> list[int]:
        return self._class_ids[split]

    def shards(self, split: Split) -> list[ShardInfo]:
        return [shard for shard in self.manifest.shards if shard.split == split]

    def check_task(self, split: Split, task: Task, section: str = "data") -> None:
        """Raises ConfigError unless every shard of `split` can serve `task`; `section` names its config keys in the message."""
        classes = len(self.class_ids(split)) * (4 if task.class_rotations else 1)
        if task.way > classes:
            raise ConfigError(
                f"{section}.way={task.way} but split '{split}' of {self.location} has {classes} classes",
                f"lower {section}.way or pack more classes",
            )
        for shard in self.shards(split):
            counts = np.bincount(shard.class_ids, minlength=len(self.manifest.classes))[self.class_ids(split)]
            if counts.min() < task.images_per_class:
                scarce = self.manifest.classes[self.class_ids(split)[int(counts.argmin())]]
                enough = scarce.images >= task.images_per_class
                raise ConfigError(
                    f"{section}.shot + {section}.queries = {task.images_per_class} but class '{scarce.name}' "
                    f"has {counts.min()} images in {shard.name}",
                    f"lower {section}.shot or {section}.queries"
                    + (f", or pack again with --images-per-class {task.images_per_class}" if enough else ""),
                )

    def fetch(self, info: ShardInfo) -> Shard:
        """Read one whole shard and check it. Raises DataError naming the shard if it is missing, cut short or changed."""
        path, content = self.path(info), self.read(info)
        if len(content) != info.bytes:
            raise DataError(f"shard {path} has {len(content)} bytes; the manifest says {info.bytes}", "copy it again or pack again")
        if hashlib.sha256(content).hexdigest() != info.sha256:
            raise DataError(f"shard {path} does not match its SHA-256 in the manifest", "copy it again or pack again")
        return Shard(info, content)

    def read(self, info: ShardInfo) -> bytes:
        """A shard's bytes, unchecked. Raises DataError naming the shard if they cannot be had."""
        try:
            with fsspec.open(self.path(info), "rb") as file:
                return file.read()
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise DataError(f"shard {self.path(info)} {reason}", "copy it again or pack the dataset again") from None

    def size(self, info: ShardInfo) -> int:
        """A shard's size in bytes, without reading it. Raises DataError naming the shard if it is not there."""
        try:
            filesystem, path = fsspec.core.url_to_fs(self.path(info))
            return int(filesystem.size(path))
        except OSError:
            raise DataError(f"shard {self.path(info)} is missing", "copy it again or pack the dataset again") from None

    def path(self, info: ShardInfo) -> str:
        return f"{self.location}/{info.name}"


def members_of_class(info: ShardInfo) -> dict[int, NDArray[np.int64]]:
    """class_id → positions in the shard."""
    class_ids = np.array(info.class_ids)
    order = np.argsort(class_ids, kind="stable")
    ids, starts = np.unique(class_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))
