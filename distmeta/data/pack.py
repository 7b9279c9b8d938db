"""Images of a source → episode-ready WebDataset shards and their manifest: in constant memory, resumable, with reproducible bytes."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from distmeta.data.copies import Copies, find_copies
from distmeta.data.deal import deal
from distmeta.data.decode import MAX_PIXELS, OTHER_RANGE, ValueRange, check_bright, check_value_range
from distmeta.data.encode import Encoding, batches, encode
from distmeta.data.episodes import Task
from distmeta.data.images import Preprocessing, Resize
from distmeta.data.shards import MANIFEST, ClassInfo, Manifest, ShardInfo
from distmeta.data.sources import SourceImage
from distmeta.data.splits import SPLITS, Split
from distmeta.data.spool import Spool, SpooledClass
from distmeta.data.workers import Workers
from distmeta.data.write import ShardPlan, write_shard
from distmeta.errors import ConfigError, DataError

SHARD_BYTES = 64_000_000  # bytes; a shard holds all classes of its split unless it would be larger

_AGAIN = "the same command continues where it stopped"

_FEWER = "run the same command again with fewer --processes; it continues where it stopped"


class PackOptions(NamedTuple):
    """How a dataset is packed. `images_per_class`: minimum images of each class in a shard. `quality`: JPEG quality (1 to 100).
    `classes_per_shard`: classes in a training shard (None: as many as keep it at SHARD_BYTES). `task`: the task that every shard must
    serve. `max_bad_fraction`: share of images that may fail to decode. `value_range`: values of black and white in files without 8 bits.
    `max_pixels`: maximum pixels of an image. `allow_copies`: whether splits may share a picture. `names`: class → the name that people see.
    `source`: the description of the images in the manifest.
    """

    dataset: str
    image_size: int
    channels: Literal[1, 3]
    image_format: Literal["png", "jpg"]
    resize: Resize
    images_per_class: int
    seed: int
    source: dict[str, str]
    quality: int = 95
    classes_per_shard: int | None = None
    task: Task | None = None
    max_bad_fraction: float = 0.01
    value_range: ValueRange | None = None
    max_pixels: int = MAX_PIXELS
    allow_copies: bool = True
    names: Mapping[str, str] = {}

    @property
    def encoding(self) -> Encoding:
        return Encoding(
            image_size=self.image_size,
            channels=self.channels,
            image_format=self.image_format,
            resize=self.resize,
            quality=self.quality,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )


class Packed(NamedTuple):
    """The new dataset's manifest, and (origin, reason) of every image that was skipped because it does not decode. `several` counts files
    that are animated or have several pages; the first picture of each was packed.
    """

    manifest: Manifest
    skipped: list[tuple[str, str]]
    several: int


def _untracked(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    return items


def pack(
    images: Iterable[SourceImage],
    out: Path,
    options: PackOptions,
    processes: int = 1,
    total: int | None = None,
    track: Callable[[Iterable[Any], str, int | None], Iterable[Any]] = _untracked,
) -> Packed:
    """Write shards and manifest for `images` into the new folder `out`. `distmeta.data.deal` assigns images to shards.

    The bytes depend on images and options alone. `out` appears only when it is complete. A stopped or killed pack leaves its work in a
    hidden folder beside `out`, from which the same call continues. `track(items, what, total)` passes items and can show progress; `total`
    is the approximate number of images, if known. Raises DataError if `out` exists, another pack writes it, the source has no training
    image or too many that do not decode, or the disk is full; ConfigError if a split cannot serve `options.task`.
    """
    with _work_folder(out) as work, Workers(processes, _FEWER) as workers:
        encoding = options.encoding._asdict() | {"value_range": options.value_range and list(options.value_range)}
        header = {"journal": 2, "encoding": encoding, "dataset": options.dataset, "source": options.source, "seed": options.seed}
        with closing(Spool(work, header)) as spool:
            _fill(spool, track(images, "packing", total), options.encoding, workers)
        _check_images(spool, options.max_bad_fraction)
        folder = work / "whole"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        infos = _class_infos(spool)
        lacking = [split for split in SPLITS if not any(info.split == split for info in infos)]
        if lacking:
            raise DataError(f"the source has no image of split {lacking[0]!r}", "add a class to it")
        copies = _copies(spool, infos, options.allow_copies)
        preprocessing = _preprocessing(spool, options)
        plans = [plan for split in SPLITS for plan in _plans(split, infos, spool, folder, options)]
        shards = list(track(workers.map(write_shard, plans), "writing shards", len(plans)))
        manifest = _manifest(infos, shards, copies, preprocessing, options)
        (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Packed(manifest, spool.skipped, spool.several)


def summary_of(manifest: Manifest) -> dict[Split, dict[str, int]]:
    """Numbers of classes, images and shards of each split."""
    summary: dict[Split, dict[str, int]] = {}
    for split in SPLITS:
        classes = [info for info in manifest.classes if info.split == split]
        shards = sum(info.split == split for info in manifest.shards)
        summary[split] = {"classes": len(classes), "images": sum(info.images for info in classes), "shards": shards}
    return summary


_OWN = {"lock", "spool", "journal", "whole"}  # contents of a work folder


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, locked against other packs. If the block succeeds, its folder `whole` becomes `out`. Otherwise the
    hidden folder stays for the next pack, unless it has no image yet.
    """
    folder = out.parent / f".{out.name}.packing"
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted({path.name for path in folder.iterdir()} - _OWN)
        if foreign:  # the folder is removed at the end
            raise DataError(f"{folder}, where pack works, holds {foreign[0]}, which is not pack's", "move it away, or choose another --out")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{folder} is locked: another pack into {out} runs", "wait for it, or choose another --out") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}", "choose a folder that you can write to") from None
    try:
        if os.path.lexists(out):  # also a link that leads nowhere
            raise DataError(f"{out} exists already; pack writes a new folder", "choose another --out, or remove that folder first")
        yield folder
        (folder / "whole").rename(out)
    except OSError as error:
        raise DataError(f"packing into {out} stopped: {error}", f"free disk space; {_AGAIN}") from None
    finally:
        if out.exists() or not Spool.begun(folder):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _fill(spool: Spool, images: Iterable[SourceImage], encoding: Encoding, workers: Workers) -> None:
    """Encode the images that the spool does not hold yet. Batches in the spool are compared with the source, and discarded from the first
    that differs.

    Memory: a few batches of images, and 16 bytes per spooled image.
    """
    stream = batches(images)
    for number in range(spool.batches):
        batch = next(stream, [])
        if not spool.holds(number, batch):
            spool.cut(number)
            stream = chain([batch] if batch else [], stream)
            break
    for encoded in workers.map(partial(encode, encoding), stream):
        spool.append(encoded)


def _check_images(spool: Spool, max_bad_fraction: float) -> None:
    if not any(split == "train" for split, _ in spool.classes):
        raise DataError("the source holds no training image", "check the source and its split")
    if spool.brightest:
        check_bright(*spool.brightest)
    example = f"such as {spool.skipped[0][0]}: {spool.skipped[0][1]}" if spool.skipped else ""
    empty = [name for (_, name), spooled in spool.classes.items() if not spooled.sizes]
    if empty:
        raise DataError(f"no image of class '{empty[0]}' can be used, {example}", "fix the source")
    if len(spool.skipped) > max_bad_fraction * spool.images:
        raise DataError(
            f"{len(spool.skipped)} of {spool.images} images do not decode, more than the fraction {max_bad_fraction} allowed, {example}",
            f"allow more with --max-bad-fraction, or fix the source; {_AGAIN}",
        )


def _class_infos(spool: Spool) -> list[ClassInfo]:
    """The classes sorted by class_id: by split, then by name."""
    in_order = sorted(spool.classes.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1]))
    return [ClassInfo(name=name, category=one.category, split=split, images=len(one.sizes)) for (split, name), one in in_order]  # type: ignore[arg-type]


def _copies(spool: Spool, infos: list[ClassInfo], allow: bool) -> Copies:
    """Raises DataError if splits share a picture without `allow_copies`."""
    classes = [(info.split, info.name) for info in infos]
    spooled = [spool.classes[place] for place in classes]
    digests = np.concatenate([np.asarray(one.digests, dtype=np.uint64) for one in spooled])
    class_ids = np.repeat(np.arange(len(infos)), [len(one.digests) for one in spooled])
    copies, across = find_copies(digests, class_ids, [info.split for info in infos])
    if across and not allow:
        first = np.searchsorted(class_ids, class_ids[list(across)])
        images = [(*classes[class_ids[i]], int(i - start)) for i, start in zip(across, first, strict=True)]
        origins = spool.origins(set(images))
        raise DataError(
            f"{copies.across_splits} pictures are in more than one split, such as {' and '.join(origins[image] for image in images)}",
            f"accept them with --allow-copies, or remove the copies; {_AGAIN}",
        )
    return copies


def _manifest(
    infos: list[ClassInfo], shards: list[ShardInfo], copies: Copies, preprocessing: Preprocessing, options: PackOptions
) -> Manifest:
    manifest = Manifest(
        dataset=options.dataset,
        seed=options.seed,
        source=options.source,
        image_format=options.image_format,
        preprocessing=preprocessing,
        classes=infos,
        shards=shards,
        names=dict(options.names),
        copies=copies,
    )
    return manifest.model_copy(update={"fingerprint": manifest.digest()})


def _preprocessing(spool: Spool, options: PackOptions) -> Preprocessing:
    """Add mean and standard deviation of the training images' pixels (0..1) for each channel. Raises DataError if the pixels do not
    vary.
    """
    count = options.image_size**2 * sum(len(spooled.sizes) for (split, _), spooled in spool.classes.items() if split == "train")
    mean = [total / count for total in spool.sums]
    variance = [total / count - m * m for total, m in zip(spool.squares, mean, strict=True)]
    std = [round(math.sqrt(max(0.0, v)) / 255, 6) for v in variance]
    if min(std) == 0:
        raise DataError(
            f"all training images are one flat colour ({', '.join(f'{m:g}' for m in mean)} of 255): standard deviation 0 in a channel",
            "look at the source's images" if options.value_range is None else OTHER_RANGE,
        )
    if options.value_range is not None:
        check_value_range(sum(mean) / len(mean), options.value_range)
    return Preprocessing(
        image_size=options.image_size,
        channels=options.channels,
        resize=options.resize,
        mean=[round(m / 255, 6) for m in mean],
        std=std,
        value_range=options.value_range,
    )


def _plans(split: Split, infos: list[ClassInfo], spool: Spool, folder: Path, options: PackOptions) -> Iterator[ShardPlan]:
    ids = [class_id for class_id, info in enumerate(infos) if info.split == split]
    if not ids:
        return
    classes = [spool.classes[split, infos[class_id].name] for class_id in ids]
    chunks, groups = _layout(split, [infos[class_id] for class_id in ids], _tar_bytes(classes), options)
    dealt = deal([len(spooled.sizes) for spooled in classes], chunks, groups, options.seed, split, ids[0])
    first = np.cumsum([0, *(len(spooled.sizes) for spooled in classes)])
    offsets = np.concatenate([np.asarray(spooled.offsets, dtype=np.int64) for spooled in classes])
    sizes = np.concatenate([np.asarray(spooled.sizes, dtype=np.int64) for spooled in classes])
    for number, shard in enumerate(dealt):
        path = folder / f"{split}-{number:06d}.tar"
        samples = first[shard.classes] + shard.images
        yield ShardPlan(
            path=path,
            split=split,
            image_format=options.image_format,
            spool=spool.path,
            class_ids=ids[0] + shard.classes,
            offsets=offsets[samples],
            sizes=sizes[samples],
        )


def _layout(split: Split, infos: list[ClassInfo], tar_bytes: int, options: PackOptions) -> tuple[int, int]:
    """The number of chunks per class, and of groups of classes. Raises ConfigError if they cannot serve the task."""
    task, smallest = options.task, min(infos, key=lambda info: info.images)
    if task and task.way > len(infos):
        raise ConfigError(f"way={task.way} but split '{split}' has {len(infos)} classes", "lower --way, or give a source with more classes")
    if task and task.images_per_class > smallest.images:
        raise ConfigError(
            f"shot + queries = {task.images_per_class} but class '{smallest.name}' of split '{split}' has {smallest.images} images",
            "lower --shot or --queries, or remove that class from the source",
        )
    chunks = max(1, smallest.images // max(options.images_per_class, task.images_per_class if task else 1))
    if split == "train" and options.classes_per_shard:
        groups = math.ceil(len(infos) / options.classes_per_shard)
        if task and len(infos) // groups < task.way:
            raise ConfigError(
                f"way={task.way} but with --classes-per-shard {options.classes_per_shard} a shard has {len(infos) // groups} classes",
                f"give --classes-per-shard {task.way} or more",
            )
        return chunks, groups
    most = len(infos) // task.way if task else len(infos)
    return chunks, min(most, math.ceil(tar_bytes / chunks / SHARD_BYTES))


def _tar_bytes(classes: list[SpooledClass]) -> int:
    """Bytes of the images in tar files. Each has a header of 512 bytes and is padded to a multiple of 512; its label takes 1024."""
    sizes = np.concatenate([np.asarray(spooled.sizes, dtype=np.int64) for spooled in classes])
    return int((512 + -(-sizes // 512) * 512 + 1024).sum())
