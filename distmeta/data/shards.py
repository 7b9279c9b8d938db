"""A packed dataset: `manifest.json` and the shards it names, at any location fsspec can read."""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from distmeta.data.cache import ShardCache
from distmeta.data.class_names import shown
from distmeta.data.copies import Copies
from distmeta.data.episodes import Task
from distmeta.data.fetch import Content, Fetcher
from distmeta.data.images import Preprocessing
from distmeta.data.location import Location, Reading
from distmeta.data.splits import SPLITS, Split
from distmeta.errors import ConfigError, DataError
from distmeta.files import parse_json

FORMAT_VERSION = 2
_MANIFEST_LIMIT = 1 << 28  # bytes; ImageNet's 14 million images would take 230 MB
MANIFEST = "manifest.json"


def _integers(value: Any) -> NDArray[np.int64]:
    """Convert a list, an array or the manifest's base64 of little-endian 32-bit numbers. Raises ValueError for anything else."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<u4").astype(np.int64)
    try:
        return np.asarray(value, np.int64)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _base64(integers: NDArray[np.int64]) -> str:
    return base64.b64encode(np.asarray(integers).astype("<u4").tobytes()).decode()


# Base64 opens 780,000 images in a tenth of a second; lists of JSON numbers take a second and 100 MB.
Integers = Annotated[NDArray[np.int64], BeforeValidator(_integers), PlainSerializer(_base64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


Name = Annotated[str, Field(max_length=1000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ClassInfo(_Strict):
    """One class; its class_id is its position in the manifest's list. `name` comes from the source (a WordNet id, "Greek/character07")."""

    name: Annotated[Name, Field(min_length=1)]
    category: Name
    split: Split
    images: Annotated[int, Field(ge=1)]


class ShardInfo(_Strict):
    """One shard. `name` is a bare file name; image i of the shard is `sizes[i]` bytes from `offsets[i]` and belongs to `class_ids[i]`.

    The three are arrays, made from any sequence of integers.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    split: Split
    bytes: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Sha256
    class_ids: Integers
    offsets: Integers
    sizes: Integers

    @model_validator(mode="after")
    def _places_inside(self) -> Self:
        """Check that the three lists have one length and every image is inside the shard."""
        if self.class_ids.ndim != 1 or not (self.class_ids.shape == self.offsets.shape == self.sizes.shape) or not len(self.class_ids):
            raise ValueError("class_ids, offsets and sizes are not lists of one length, of 1 or more")
        if min(self.class_ids.min(), self.offsets.min(), self.sizes.min()) < 0 or int((self.offsets + self.sizes).max()) > self.bytes:
            raise ValueError(f"an image does not lie within the {self.bytes} bytes")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardInfo) and self.model_dump() == other.model_dump()

    def key(self, member: int) -> str:
        """An image as messages name it: the shard and the member's key."""
        return f"{self.name}/{member:08d}"


class Manifest(_Strict):
    """Everything about a packed dataset except its pixels. `integers` tells other readers the encoding of the shards' three arrays.
    `names` are the user's names of classes, for people. `copies` is None in datasets packed before copies were counted.
    """

    format_version: int = FORMAT_VERSION
    integers: Literal["base64 of little-endian uint32"] = "base64 of little-endian uint32"
    dataset: Annotated[Name, Field(min_length=1)]
    fingerprint: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    seed: Annotated[int, Field(ge=0)]
    source: dict[Name, Name]
    image_format: Literal["png", "jpg"]
    preprocessing: Preprocessing
    classes: list[ClassInfo]
    shards: list[ShardInfo]
    names: dict[Name, Name] = {}
    copies: Copies | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """Check that classes and shards agree, that each class is in its own split only, and that no split is empty."""
        for split in SPLITS:
            if not any(info.split == split for info in self.classes) or not any(info.split == split for info in self.shards):
                raise ValueError(f"split {split!r} has no class or no shard")
        for what, names in (("shard", [info.name for info in self.shards]), ("class", [(c.split, c.name) for c in self.classes])):
            twice = next((name for name, count in Counter(names).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{what} {twice!r} appears twice")
        split_of = np.array([info.split for info in self.classes])
        images = np.zeros(len(self.classes), np.int64)
        for shard in self.shards:
            if shard.class_ids.max() >= len(self.classes) or (split_of[np.unique(shard.class_ids)] != shard.split).any():
                raise ValueError(f"shard {shard.name!r} holds a class that is not one of its split")
            images += np.bincount(shard.class_ids, minlength=len(self.classes))
        for info, count in zip(self.classes, images.tolist(), strict=True):
            if info.images != count:
                raise ValueError(f"class {info.name!r} has {info.images} images; the shards hold {count}")
        return self

    def digest(self) -> str:
        """SHA-256 over all fields that define the dataset, including the shards' SHA-256, but not the counts of copies."""
        identity = self.model_dump(exclude={"fingerprint", "copies", "names"})
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Shard(NamedTuple):
    """A fetched shard: its entry in the manifest, and the whole tar file."""

    info: ShardInfo
    content: Content

    def image(self, member: int) -> bytes:
        offset = int(self.info.offsets[member])
        return self.content[offset : offset + int(self.info.sizes[member])]


class Dataset:
    """An open packed dataset. `location` is as in `Location`; `cache` keeps shards that are not on this machine's file systems."""

    def __init__(self, location: str, reading: Reading | None = None, cache: ShardCache | None = None) -> None:
        """Raises DataError if there is no valid manifest of this version at `location`."""
        self._location = Location(location, reading or Reading())
        self._fetcher = Fetcher(self._location, cache)
        self.location = self._location.url
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        path = self._location.path(MANIFEST)
        try:
            content = parse_json(self._location.read(MANIFEST, _MANIFEST_LIMIT, 2 * self._location.reading.timeout_s))
        except FileNotFoundError:
            raise DataError(
                f"{self.location} is not a packed dataset: it has no {MANIFEST}", "pack it first: distmeta pack --help"
            ) from None
        except ValueError as error:
            raise DataError(f"{path} cannot be read: {error}", "check the location, or pack the dataset again") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise DataError(
                f"{path} has format version {version}; this distmeta reads {FORMAT_VERSION}",
                "update distmeta" if newer else "pack the dataset again",
            )
        try:
            manifest = Manifest.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")]))
            raise DataError(f"{path} is damaged: {reason}", "pack the dataset again") from None
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
        """The class_ids of the split's classes. Classes of different splits are disjoint."""
        return self._class_ids[split]

    def shown(self, class_id: int) -> str:
        """A class's name for people."""
        return shown(self.manifest.classes[class_id].name, self.manifest.names)

    def preprocessing(self, image_size: int | None = None) -> Preprocessing:
        """How its images become network input. `image_size` replaces the packed size."""
        packed = self.manifest.preprocessing
        return packed.model_copy(update={"image_size": image_size or packed.image_size})

    def shards(self, split: Split) -> list[ShardInfo]:
        """The split's shards, in the order of the manifest."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def window_width(self, split: Split) -> int:
        """Number of shards that an episode is drawn from: one if every shard holds every class of the split, else two."""
        shards, classes = self.shards(split), len(self.class_ids(split))
        return 1 if len(shards) < 2 or all(len(np.unique(info.class_ids)) == classes for info in shards) else 2

    def check_task(self, split: Split, task: Task, section: str = "data") -> None:
        """Raises ConfigError unless every window of `split` can serve `task`; `section` names its config keys in the message."""
        turns = 4 if task.class_rotations else 1
        class_ids = self.class_ids(split)
        if task.way > len(class_ids) * turns:
            raise ConfigError(
                f"{section}.way={task.way} but split '{split}' of {self.location} has {len(class_ids) * turns} classes",
                f"lower {section}.way or pack more classes",
            )
        shards = self.shards(split)
        counts = np.stack([np.bincount(info.class_ids, minlength=len(self.manifest.classes))[class_ids] for info in shards])
        self._check_images(split, shards, counts, task, section)
        names, classes = _poorest_window(counts, self.window_width(split))
        if task.way > classes * turns:
            raise ConfigError(
                f"{section}.way={task.way} but {' and '.join(shards[i].name for i in names)} hold {classes * turns} classes",
                f"lower {section}.way, or pack again with more classes in a shard",
            )

    def _check_images(self, split: Split, shards: list[ShardInfo], counts: NDArray[np.int64], task: Task, section: str) -> None:
        """Every class of a shard must have K+Q images there, because no class may be left out silently."""
        where_held = np.where(counts > 0, counts, np.iinfo(np.int64).max)
        if self.window_width(split) == 1:
            where_held = counts
        shard, position = np.unravel_index(where_held.argmin(), counts.shape)
        fewest = int(counts[shard, position])
        if fewest < task.images_per_class:
            scarce = self.manifest.classes[self.class_ids(split)[int(position)]]
            enough = scarce.images >= task.images_per_class
            raise ConfigError(
                f"{section}.shot + {section}.queries = {task.images_per_class} but class '{scarce.name}' "
                f"has {fewest} images in {shards[int(shard)].name}",
                f"lower {section}.shot or {section}.queries"
                + (f", or pack again with --images-per-class {task.images_per_class}" if enough else ""),
            )

    def fetch(self, info: ShardInfo) -> Shard:
        """A complete, checked shard, not in memory. Raises DataError naming the shard if it is missing, truncated or changed."""
        try:
            return Shard(info, self._fetcher.fetch(info.name, info.bytes, info.sha256))
        except FileNotFoundError:
            raise self._missing(info) from None

    def read(self, info: ShardInfo) -> bytes:
        """A shard's bytes, unchecked. Raises DataError naming the shard if they cannot be read."""
        try:
            return self._location.read(info.name, info.bytes)
        except FileNotFoundError:
            raise self._missing(info) from None

    def size(self, info: ShardInfo) -> int:
        """A shard's size in bytes, without reading it. Raises DataError naming the shard if it is missing."""
        try:
            return self._location.size(info.name)
        except FileNotFoundError:
            raise self._missing(info) from None

    def _missing(self, info: ShardInfo) -> DataError:
        return DataError(f"shard {self.path(info)} is missing", "copy it again or pack the dataset again")

    def path(self, info: ShardInfo) -> str:
        """The path or URL of a shard."""
        return self._location.path(info.name)


def _poorest_window(counts: NDArray[np.int64], width: int) -> tuple[list[int], int]:
    """The window of `width` different shards with the fewest classes, and their number; `counts` (shards, classes) of images."""
    held = (counts > 0).astype(np.float32)  # floats, because BLAS multiplies them; exact below 2²⁴
    own = held.sum(1)
    if width == 1:
        return [int(own.argmin())], int(own.min())
    union = own[:, None] + own[None, :] - held @ held.T
    np.fill_diagonal(union, np.inf)
    first, second = np.unravel_index(union.argmin(), union.shape)
    return [int(first), int(second)], int(union.min())


def members_of_class(*infos: ShardInfo) -> dict[int, NDArray[np.int64]]:
    """class_id → positions in the shard, or in the concatenation of several shards."""
    class_ids = np.concatenate([info.class_ids for info in infos])
    order = np.argsort(class_ids, kind="stable")
    ids, starts = np.unique(class_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))
