"""The datasets that `pack` accepts, by name or import path, with the source of their images and their packing defaults."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from distmeta.data.class_names import read_names
from distmeta.data.decode import MAX_PIXELS, parse_value_range
from distmeta.data.episodes import Task
from distmeta.data.pack import PackOptions
from distmeta.data.sources import Source, folder, glyphs, imagenet, imported, mini_imagenet, omniglot, tiered_files
from distmeta.errors import ConfigError

IMAGES_PER_CLASS = 32  # default number of images per class in a shard
QUALITY = 95


class PackRequest(NamedTuple):
    """A user's request to pack. A field is None if the dataset's default applies, or if the dataset does not have it.

    `dataset` is a name in DATASETS or the import path of a function that yields images; it is imported, so it must come from the user.
    `source` is the folder or archive, `splits` the folder of split files, `split` the fractions into which a folder's classes are cut,
    `value_range` is "LOW,HIGH".
    """

    dataset: str
    source: Path | None = None
    splits: Path | None = None
    allow_missing: bool = False
    omniglot_split: Literal["alphabets", "random-characters"] | None = None
    split: str | None = None
    split_by: Literal["class", "category"] | None = None
    image_size: int | None = None
    image_format: Literal["png", "jpg"] | None = None
    quality: int | None = None
    images_per_class: int | None = None
    classes_per_shard: int | None = None
    way: int | None = None
    shot: int | None = None
    queries: int | None = None
    resize: Literal["squash", "center-crop"] = "squash"
    max_bad_fraction: float = 0.01
    value_range: str | None = None
    max_pixels: int = MAX_PIXELS
    allow_copies: bool = False
    names: Path | None = None
    seed: int = 0


class DatasetKind(NamedTuple):
    """A dataset's defaults, the function that opens it (and reports what it leaves out), and the special fields that it accepts."""

    image_size: int
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]
    open: Callable[[PackRequest, Path, Callable[[str], None]], Source]
    fields: tuple[str, ...] = ()


def _glyphs(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    images = glyphs.read(request.seed, image_size=request.image_size or DATASETS["glyphs"].image_size)
    return Source(images, glyphs.classes() * glyphs.IMAGES_PER_CLASS)


def _omniglot(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    split = request.omniglot_split or "alphabets"
    read = omniglot.read if split == "alphabets" else omniglot.read_random_characters
    return Source(read(source, request.seed), omniglot.IMAGES, {"omniglot_split": split})


def _mini_imagenet(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    return mini_imagenet.read(source, request.splits or source, request.allow_missing, report)


def _tiered_imagenet(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    if tiered_files.holds(source):
        return tiered_files.read(source)
    if request.splits is None:
        raise ConfigError(
            f"{request.dataset} needs its split files", "give --splits FOLDER with train.csv, val.csv and test.csv (wnid,category)"
        )
    return Source(imagenet.read(source, request.splits, request.allow_missing, report), imagenet.estimate(source, request.splits))


def _folder(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    if request.split is None and request.split_by is not None:
        raise ConfigError("--split-by needs --split", "add --split 0.7/0.15/0.15")
    by = request.split_by or "class"
    opened = folder.read(source, folder.fractions(request.split) if request.split else None, by, request.seed, report, request.max_pixels)
    return opened._replace(facts={"split": request.split, "split_by": by}) if request.split else opened


def _imported(request: PackRequest, source: Path, report: Callable[[str], None]) -> Source:
    return Source(imported.read(request.dataset, request.source))


DATASETS = {
    "glyphs": DatasetKind(28, 1, "png", _glyphs),
    "omniglot": DatasetKind(image_size=28, channels=1, image_format="png", open=_omniglot, fields=("omniglot_split",)),
    "mini-imagenet": DatasetKind(image_size=84, channels=3, image_format="jpg", open=_mini_imagenet, fields=("splits", "allow_missing")),
    "tiered-imagenet": DatasetKind(
        image_size=84, channels=3, image_format="jpg", open=_tiered_imagenet, fields=("splits", "allow_missing")
    ),
    "folder": DatasetKind(image_size=84, channels=3, image_format="jpg", open=_folder, fields=("split", "split_by", "allow_copies")),
}
_BY_IMPORT_PATH = DatasetKind(84, 3, "jpg", _imported)
_OWN_FIELDS = ("splits", "allow_missing", "omniglot_split", "split", "split_by", "allow_copies")


def _kind_of(dataset: str) -> DatasetKind:
    if dataset in DATASETS:
        return DATASETS[dataset]
    if "." in dataset:
        return _BY_IMPORT_PATH
    choices = ", ".join(DATASETS)
    raise ConfigError(f"--dataset {dataset} is not one of {choices}", "choose one, or give your own function: my_package.my_source")


def open_source(request: PackRequest, report: Callable[[str], None]) -> Source:
    """The images that `request` asks for. Raises ConfigError if it does not fit its dataset. `report` is called with what is left out."""
    kind = _kind_of(request.dataset)
    for field in _OWN_FIELDS:
        if getattr(request, field) and field not in kind.fields:
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} has no meaning for {request.dataset}", f"leave {flag} out")
    if request.dataset == "glyphs":
        if request.source is not None:
            raise ConfigError(f"glyphs are drawn from fonts, not read from {request.source}", "leave the path out")
    elif request.source is None and kind is not _BY_IMPORT_PATH:
        raise ConfigError(f"{request.dataset} needs the path of its images", f"distmeta pack --dataset {request.dataset} PATH --out FOLDER")
    return kind.open(request, request.source or Path(), report)


def pack_options(request: PackRequest, source: Source) -> PackOptions:
    """How the images of `request` are packed. The manifest's description of their source contains no path."""
    kind = _kind_of(request.dataset)
    image_format = request.image_format or kind.image_format
    if request.quality is not None and image_format == "png":
        raise ConfigError("--quality is JPEG's, but the images become PNG", "leave --quality out, or give --format jpg")
    quality = request.quality or QUALITY
    task = _task(request)
    return PackOptions(
        dataset=_name(request),
        image_size=request.image_size or kind.image_size,
        channels=kind.channels,
        image_format=image_format,
        resize=request.resize,
        images_per_class=request.images_per_class or IMAGES_PER_CLASS,
        names=read_names(request.names) if request.names else {},
        seed=request.seed,
        source={
            **source.facts,
            **({"allow_missing": str(request.allow_missing).lower()} if request.splits else {}),
            **({"quality": str(quality)} if image_format == "jpg" else {}),
        },
        quality=quality,
        classes_per_shard=request.classes_per_shard,
        task=task,
        max_bad_fraction=request.max_bad_fraction,
        value_range=parse_value_range(request.value_range),
        max_pixels=request.max_pixels,
        allow_copies=request.allow_copies or request.dataset != "folder",  # an official dataset stays as published
    )


def _name(request: PackRequest) -> str:
    """The dataset's name. A folder of images is named after the folder, so that models of two folders get different names."""
    if request.dataset != "folder" or request.source is None:
        return request.dataset
    return re.sub(r"[^A-Za-z0-9_-]+", "-", request.source.absolute().name).strip("-") or request.dataset


def _task(request: PackRequest) -> Task | None:
    sizes = [request.way, request.shot, request.queries]
    if all(size is None for size in sizes):
        return None
    if request.way is None or request.shot is None or request.queries is None:
        raise ConfigError("--way, --shot and --queries describe one task together", "give all three, or none")
    return Task(request.way, request.shot, request.queries)
