"""Images of a source → episode-ready WebDataset shards and their manifest, in one pass and constant memory."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from webdataset import TarWriter

from distmeta.data.images import Preprocessing, Resize, fit, open_image
from distmeta.data.shards import MANIFEST, ClassInfo, Manifest, ShardInfo, Split
from distmeta.data.sources import SourceImage
from distmeta.errors import DataError
from distmeta.seeds import generator

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class PackOptions(NamedTuple):
    """What a dataset is packed to. `images_per_class` is how many images of each class a shard should hold at least."""

    dataset: str
    image_size: int
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]
    resize: Resize
    images_per_class: int
    seed: int
    source: dict[str, str]


class _Spooled(NamedTuple):
    """Where an encoded image lies in the spool file."""

    offset: int
    size: int


def pack(images: Iterable[SourceImage], out: Path, options: PackOptions) -> Manifest:
    """Write shards and manifest for `images` into the new folder `out`, and return the manifest.

    Every class of a split is cut into the same number R of chunks, R = max(1, ⌊smallest class / images_per_class⌋), sizes differing by at
    most one, and each shard takes one chunk of every class: a shard is a miniature of its split, so any episode can be drawn from it.
    The folder appears only when it is whole. Raises DataError if `out` exists or an image does not decode.
    """
    if out.exists():
        raise DataError(f"{out} exists already; pack writes a new folder", "choose another --out, or remove that folder first")
    with _building(out) as folder:
        spool_path = folder / "spool"
        statistics = _PixelStatistics(options.channels)
        classes = _encode(images, spool_path, options, statistics)
        infos: list[ClassInfo] = []
        shards: list[ShardInfo] = []
        for split in SPLITS:
            members = {name: spooled for (of_split, name), (_, spooled) in sorted(classes.items()) if of_split == split}
            first_id = len(infos)
            infos += [ClassInfo(name=name, category=classes[split, name][0], split=split, images=len(m)) for name, m in members.items()]
            shards += _write_split(split, list(members.values()), first_id, spool_path, folder, options)
        spool_path.unlink()
        manifest = Manifest(
            dataset=options.dataset,
            seed=options.seed,
            source=options.source,
            image_format=options.image_format,
            preprocessing=Preprocessing(
                image_size=options.image_size, channels=options.channels, resize=options.resize, mean=statistics.mean, std=statistics.std
            ),
            classes=infos,
            shards=shards,
        )
        manifest = manifest.model_copy(update={"fingerprint": manifest.digest()})
        (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` if the block ends well, and goes away if it does not."""
    folder = out.parent / f".{out.name}.packing"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise DataError(f"{folder} exists: another pack into {out} runs or was killed", "wait for it, or remove that folder") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}", "choose a folder you may write to") from None
    try:
        yield folder
        folder.rename(out)
    except OSError as error:
        raise DataError(f"packing into {out} stopped: {error}", "free disk space or choose another --out") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _PixelStatistics:
    """Mean and standard deviation of the training images' pixels, for each channel."""

    def __init__(self, channels: int) -> None:
        self.histogram = np.zeros((channels, 256), dtype=np.int64)

    def add(self, picture: Image.Image) -> None:
        self.histogram += np.array(picture.histogram(), dtype=np.int64).reshape(self.histogram.shape)

    @property
    def mean(self) -> list[float]:
        return [round(float(np.average(np.arange(256) / 255, weights=counts)), 6) for counts in self.histogram]

    @property
    def std(self) -> list[float]:
        centred = [(np.arange(256) / 255 - mean) ** 2 for mean in self.mean]
        return [round(float(np.sqrt(np.average(c, weights=n))), 6) for c, n in zip(centred, self.histogram, strict=True)]


_Classes = dict[tuple[str, str], tuple[str, list[_Spooled]]]


def _encode(images: Iterable[SourceImage], spool: Path, options: PackOptions, statistics: _PixelStatistics) -> _Classes:
    """Decode, resize and encode every image once, into one spool file: (split, class) → (category, where its images lie)."""
    classes: _Classes = {}
    with spool.open("wb") as file:
        for image in images:
            picture = fit(open_image(image.image, options.channels, image.origin), options.image_size, options.resize)
            if image.split == "train":
                statistics.add(picture)
            encoded = io.BytesIO()
            if options.image_format == "jpg":
                picture.save(encoded, "JPEG", quality=95)
            else:
                picture.save(encoded, "PNG")
            _, spooled = classes.setdefault((image.split, image.class_name), (image.category, []))
            spooled.append(_Spooled(file.tell(), encoded.tell()))
            file.write(encoded.getbuffer())
    if not any(split == "train" for split, _ in classes):
        raise DataError("the source holds no training image", "check the source and its split")
    return classes


def _write_split(
    split: Split, classes: list[list[_Spooled]], first_id: int, spool: Path, folder: Path, options: PackOptions
) -> Iterator[ShardInfo]:
    if not classes:
        return
    count = max(1, min(map(len, classes)) // options.images_per_class)
    dealt: list[list[tuple[int, _Spooled]]] = [[] for _ in range(count)]
    for class_id, images in enumerate(classes, first_id):
        random = generator(options.seed, "pack class", class_id)
        chunks = np.array_split(random.permutation(len(images)), count)
        for shard, chunk in zip(random.permutation(count), chunks, strict=True):  # the larger chunks fall to different shards
            dealt[shard] += [(class_id, images[i]) for i in chunk]
    for number, samples in enumerate(dealt):
        order = generator(options.seed, f"pack {split} shard", number).permutation(len(samples))
        yield _write_shard(f"{split}-{number:06d}.tar", split, [samples[i] for i in order], spool, folder, options.image_format)


def _write_shard(name: str, split: Split, samples: list[tuple[int, _Spooled]], spool: Path, folder: Path, image_format: str) -> ShardInfo:
    """A plain WebDataset shard: `<key>.<format>` and `<key>.cls` (the class_id) for every image."""
    path = folder / name
    with spool.open("rb") as source, TarWriter(str(path), encoder=False, mtime=0) as writer:
        for key, (class_id, spooled) in enumerate(samples):
            source.seek(spooled.offset)
            writer.write({"__key__": f"{key:08d}", image_format: source.read(spooled.size), "cls": str(class_id).encode()})
    with tarfile.open(path) as archive:
        offsets = [member.offset_data for member in archive if member.name.endswith(f".{image_format}")]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardInfo(
        name=name,
        split=split,
        bytes=path.stat().st_size,
        sha256=digest,
        class_ids=np.array([class_id for class_id, _ in samples]),
        offsets=np.array(offsets),
        sizes=np.array([spooled.size for _, spooled in samples]),
    )
