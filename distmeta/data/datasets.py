"""The datasets that `pack` knows by name: where their images come from and to what they are packed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from distmeta.data.pack import PackOptions
from distmeta.data.sources import SourceImage, glyphs, imagenet, omniglot
from distmeta.errors import ConfigError


class Defaults(NamedTuple):
    image_size: int
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]


DATASETS = {
    "glyphs": Defaults(28, 1, "png"),
    "omniglot": Defaults(28, 1, "png"),
    "tiered-imagenet": Defaults(84, 3, "jpg"),
}


class Request(NamedTuple):
    """What a user asked to pack. `source` is the folder or archive, `splits` the folder of split files; None where a dataset has none."""

    dataset: str
    source: Path | None
    splits: Path | None
    allow_missing: bool
    image_size: int | None
    images_per_class: int
    resize: Literal["squash", "center-crop"]
    seed: int


def open_source(request: Request, report: Callable[[str], None]) -> Iterable[SourceImage]:
    """The images that `request` asks for. Raises ConfigError where it does not fit its dataset; `report` hears of missing classes."""
    dataset, source, splits = request.dataset, request.source, request.splits
    if dataset == "glyphs":
        if source is not None:
            raise ConfigError(f"glyphs are drawn from fonts, not read from {source}", "leave the path out")
        return glyphs.read(request.seed, image_size=request.image_size or DATASETS[dataset].image_size)
    if source is None:
        raise ConfigError(f"{dataset} needs the path of its images", f"distmeta pack --dataset {dataset} PATH --out FOLDER")
    if dataset == "omniglot":
        return omniglot.read(source, request.seed)
    if splits is None:
        raise ConfigError(f"{dataset} needs its split files", "give --splits FOLDER with train.csv, val.csv and test.csv (wnid,category)")
    return imagenet.read(source, splits, request.allow_missing, report)


def pack_options(request: Request) -> PackOptions:
    """How the images of `request` are packed; what the manifest says of their source names no path."""
    defaults = DATASETS[request.dataset]
    return PackOptions(
        dataset=request.dataset,
        image_size=request.image_size or defaults.image_size,
        channels=defaults.channels,
        image_format=defaults.image_format,
        resize=request.resize,
        images_per_class=request.images_per_class,
        seed=request.seed,
        source={"allow_missing": str(request.allow_missing).lower()} if request.splits else {},
    )
