"""Shows a packed dataset: counts, how often classes share a shard, and one episode as image folders or as a picture."""

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from distmeta.data.episodes import Episode, Task, compose
from distmeta.data.fonts import Drawable, drawable, opened
from distmeta.data.images import Preprocessing, decode_packed
from distmeta.data.shards import Dataset, Shard, members_of_class
from distmeta.data.splits import SPLITS, Split
from distmeta.errors import DataError


def overview(dataset: Dataset) -> list[list[str]]:
    """A row for each split: name, classes, categories, images, shards, classes in a shard, images of a class in a shard, megabytes."""
    rows = []
    for split in SPLITS:
        classes = [info for info in dataset.manifest.classes if info.split == split]
        shards = dataset.shards(split)
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        counts = [len(classes), len({info.category for info in classes}), sum(info.images for info in classes), len(shards)]
        held = [np.unique(shard.class_ids, return_counts=True)[1] for shard in shards]
        spans = [_span([len(c) for c in held]), _span([int(n) for c in held for n in (c.min(), c.max())])]
        rows.append([split, *map(str, counts), *spans, f"{megabytes:.1f}"])
    return rows


def _span(numbers: list[int]) -> str:
    if not numbers:
        return "-"
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


class Pairs(NamedTuple):
    """How many shards two classes of a split share, over all pairs. The class_ids `rarest` share the `fewest`."""

    total: int
    mean: float
    variation: float
    never: int
    fewest: int
    rarest: tuple[int, int]


def pairs(dataset: Dataset, split: Split) -> Pairs:
    """`variation` is the standard deviation of the number of shared shards divided by its mean (0 if all pairs share equally many)."""
    ids = np.array(dataset.class_ids(split))
    # products of floats are fast, and these are exact integers
    present = np.zeros((len(dataset.shards(split)), len(ids)), dtype=np.float32)
    for row, shard in zip(present, dataset.shards(split), strict=True):
        row[np.searchsorted(ids, np.unique(shard.class_ids))] = 1
    first, second = np.triu_indices(len(ids), 1)
    meetings = (present.T @ present)[first, second]
    rarest = int(meetings.argmin())
    return Pairs(
        total=len(meetings),
        mean=float(meetings.mean()),
        variation=float(meetings.std() / max(meetings.mean(), 1e-12)),
        never=int((meetings == 0).sum()),
        fewest=int(meetings[rarest]),
        rarest=(int(ids[first[rarest]]), int(ids[second[rarest]])),
    )


def pair_overview(dataset: Dataset) -> list[list[str]]:
    """A row for each split with a shard that lacks a class: split, pairs, shards per pair, variation, pairs that never share a shard,
    rarest.
    """
    rows = []
    for split in SPLITS:
        classes = len(dataset.class_ids(split))
        if all(len(set(shard.class_ids.tolist())) == classes for shard in dataset.shards(split)):
            continue
        meetings = pairs(dataset, split)
        names = " and ".join(dataset.shown(class_id) for class_id in meetings.rarest)
        numbers = [str(meetings.total), f"{meetings.mean:.1f}", f"{meetings.variation:.3f}", str(meetings.never)]
        rows.append([split, *numbers, f"{names}: {meetings.fewest} shards"])
    return rows


def export_episode(dataset: Dataset, split: Split, task: Task, seed: int, out: Path) -> None:
    """Write one episode of `split` as out/support/CLASS/*.png (or jpg) and out/query/CLASS/*, as `distmeta predict` reads them.

    `out` appears only when it is complete. Raises DataError if `out` exists or cannot be written, ConfigError if the split cannot serve
    `task`.
    """
    shard, episode = _episode(dataset, split, task, seed)
    if out.exists():
        raise DataError(f"{out} exists already", "choose another --export, or remove that folder first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            whole, folders = Path(scratch) / "episode", _folder_names(dataset, episode.class_ids.tolist())
            for class_id, members in zip(episode.class_ids.tolist(), episode.members.tolist(), strict=True):
                for position, member in enumerate(members):
                    folder = whole / ("support" if position < task.shot else "query") / folders[class_id]
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{member:06d}.{dataset.manifest.image_format}").write_bytes(shard.image(member))
            whole.rename(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}", "choose a folder that you can write to") from None


def _folder_names(dataset: Dataset, class_ids: list[int]) -> dict[int, str]:
    """Folders named like the classes, with harmless characters only; a class_id is added where two would have one name."""
    names = {
        class_id: "".join(letter if letter.isalnum() or letter in " -_()" else "-" for letter in dataset.shown(class_id))[:80].strip(" -")
        for class_id in class_ids
    }
    counts = Counter(name.lower() for name in names.values())
    return {
        class_id: name if name and counts[name.lower()] == 1 else f"{name or 'class'}-{class_id:04d}" for class_id, name in names.items()
    }


_TILE = 84  # side of a drawn image (pixels)
_GAP = 6  # between images
_BETWEEN = 36  # between support and queries
_MARGIN = 24
_HEAD = 30  # above the first row
_TEXT = 260  # maximum width of a class's name


def draw_episode(dataset: Dataset, split: Split, task: Task, seed: int, out: Path) -> None:
    """Draw one episode of `split`, the one that `export_episode` writes: a row for each label, support images left, queries right.

    Raises DataError if `out` cannot be written as a picture, ConfigError if the split cannot serve `task`.
    """
    shard, episode = _episode(dataset, split, task, seed)
    names = [_shortened(drawable(dataset.shown(class_id))) for class_id in episode.class_ids.tolist()]
    step = _TILE + _GAP
    left = 2 * _MARGIN + math.ceil(max(opened(name.font, 14).getlength(name.text) for name in names))
    query_left = left + task.shot * step - _GAP + _BETWEEN
    size = (query_left + task.queries * step - _GAP + _MARGIN, 2 * _MARGIN + _HEAD + task.way * step - _GAP)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    pen.text((left, _MARGIN), "support", fill="#444444", font=opened(None, 15, bold=True))
    pen.text((query_left, _MARGIN), "queries", fill="#444444", font=opened(None, 15, bold=True))
    pen.line([(query_left - _BETWEEN // 2, _MARGIN), (query_left - _BETWEEN // 2, page.height - _MARGIN)], fill="#bbbbbb", width=1)
    for label, (name, members) in enumerate(zip(names, episode.members.tolist(), strict=True)):
        top = _MARGIN + _HEAD + label * step
        pen.text((_MARGIN, top + _TILE // 2 - 20), f"label {label}", fill="#888888", font=opened(None, 12))
        pen.text((_MARGIN, top + _TILE // 2 - 3), name.text, fill="black", font=opened(name.font, 14))
        for position, member in enumerate(members):
            x = left + position * step if position < task.shot else query_left + (position - task.shot) * step
            page.paste(_tile(shard.image(member), dataset.manifest.preprocessing), (x, top))
    try:
        page.save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be written: {error}", "choose a file such as episode.png in a folder you may write to") from None


def _episode(dataset: Dataset, split: Split, task: Task, seed: int) -> tuple[Shard, Episode]:
    dataset.check_task(split, task, section="episode")
    shard = dataset.fetch(dataset.shards(split)[0])
    return shard, compose(task, members_of_class(shard.info), seed, f"{split} exported episode")


def _tile(image: bytes, preprocessing: Preprocessing) -> Image.Image:
    pixels = decode_packed(image, preprocessing, "the image").transpose(1, 2, 0)
    picture = Image.fromarray(pixels.squeeze(2) if preprocessing.channels == 1 else pixels).convert("RGB")
    picture = picture.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
    ImageDraw.Draw(picture).rectangle((0, 0, _TILE - 1, _TILE - 1), outline="#dddddd")
    return picture


def _shortened(name: Drawable) -> Drawable:
    """A class's name, shortened to fit beside its row."""
    font = opened(name.font, 14)
    if font.getlength(name.text) <= _TEXT:
        return name
    text = name.text
    while font.getlength(text + "…") > _TEXT:
        text = text[:-1]
    return name._replace(text=text + "…")
