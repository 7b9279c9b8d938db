"""Looking into a packed dataset: counts, and one episode written out as image folders."""

from pathlib import Path

from distmeta.data.episodes import Task, compose
from distmeta.data.pack import SPLITS
from distmeta.data.shards import Dataset, Split, members_of_class
from distmeta.errors import DataError


def overview(dataset: Dataset) -> list[list[str]]:
    """A row for each split: name, classes, categories, images, shards, megabytes."""
    rows = []
    for split in SPLITS:
        classes = [info for info in dataset.manifest.classes if info.split == split]
        shards = dataset.shards(split)
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        counts = [len(classes), len({info.category for info in classes}), sum(info.images for info in classes), len(shards)]
        rows.append([split, *map(str, counts), f"{megabytes:.1f}"])
    return rows


def export_episode(dataset: Dataset, split: Split, task: Task, seed: int, out: Path) -> None:
    """Write one episode of `split` as out/support/CLASS/*.png (or jpg) and out/query/CLASS/*, as `distmeta predict` reads them.

    Raises DataError if `out` exists, ConfigError if the split cannot serve `task`.
    """
    dataset.check_task(split, task, section="episode")
    if out.exists():
        raise DataError(f"{out} exists already", "choose another --export, or remove that folder first")
    shard = dataset.fetch(dataset.shards(split)[0])
    episode = compose(task, members_of_class(shard.info), seed, f"{split} exported episode")
    for class_id, members in zip(episode.class_ids.tolist(), episode.members.tolist(), strict=True):
        for position, member in enumerate(members):
            folder = out / ("support" if position < task.shot else "query") / f"class-{class_id:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{member:06d}.{dataset.manifest.image_format}").write_bytes(shard.image(member))
