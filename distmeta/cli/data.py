"""Verbs about packed datasets: pack, verify, inspect."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from distmeta.cli.options import Json, MaxPixels, ValueRange, import_from_here, on_this_machine
from distmeta.show import counted, print_json, say, show_table

_LISTED = 20  # skipped images named one by one; --json names all


def pack(
    source: Annotated[Path | None, typer.Argument(help="Folder or archive of images. Leave it out for glyphs.", show_default=False)] = None,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Kind of source: glyphs, omniglot, mini-imagenet, tiered-imagenet, folder, or the import path of your own "
            "function, my_package.my_source, which is called with SOURCE and yields (split, class, category, image bytes).",
        ),
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(callback=on_this_machine, help="New folder for shards and manifest.")] = ...,  # type: ignore[assignment]
    splits: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train.csv, val.csv and test.csv: wnid,category for tiered-imagenet, filename,label for mini-imagenet "
            "(default: SOURCE)."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Pack although SOURCE lacks images or classes that the split files name.")
    ] = False,
    omniglot_split: Annotated[
        Literal["alphabets", "random-characters"] | None,
        typer.Option(
            help="alphabets: Omniglot's published split (default). random-characters: 1,100, 100 and 423 characters of any alphabet."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Fractions of the classes for train/val/test, such as 0.7/0.15/0.15, if the folder has no splits.")
    ] = None,
    split_by: Annotated[
        Literal["class", "category"] | None, typer.Option(help="What --split divides: classes (default) or whole categories.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side (pixels; default: 28 for glyphs and omniglot, else 84).")
    ] = None,
    resize: Annotated[Literal["squash", "center-crop"], typer.Option(help="How images that are not square become square.")] = "squash",
    image_format: Annotated[
        Literal["jpg", "png"] | None,
        typer.Option("--format", help="Image format in the shards (default: png for glyphs and omniglot, else jpg)."),
    ] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG quality (default: 95).")] = None,
    images_per_class: Annotated[
        int | None, typer.Option(min=2, help="Minimum images per class in each shard (default: max(32, shot + queries)).")
    ] = None,
    classes_per_shard: Annotated[
        int | None, typer.Option(min=2, help="Classes per training shard (default: all, or as many as keep the shard at 64 MB).")
    ] = None,
    way: Annotated[
        int | None, typer.Option(min=2, help="Classes per episode that you will train with; a dataset that cannot serve them is refused.")
    ] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Support images per class that you will train with.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Query images per class that you will train with.")] = None,
    max_bad_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of images that may fail to decode.")] = 0.01,
    value_range: ValueRange = None,
    max_pixels: MaxPixels = 100_000_000,
    allow_copies: Annotated[
        bool, typer.Option("--allow-copies", help="Pack although the same picture is in several splits. Copies are counted.")
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="CSV file with rows class,name: names that people see instead of the classes' own.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes that encode (default: one per CPU).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in shards and of splits drawn at random.")] = 0,
    as_json: Json = False,
) -> None:
    """Pack images into WebDataset shards. If packing was stopped or killed, run the same command again to continue.

    Example: distmeta pack --dataset omniglot downloads/omniglot --out data/omniglot
    """
    from distmeta.data.class_names import shown
    from distmeta.data.datasets import PackRequest, open_source, pack_options
    from distmeta.data.pack import pack as write
    from distmeta.data.pack import summary_of
    from distmeta.data.workers import usable_cpus

    import_from_here()  # because --dataset may be the import path of a user's source
    request = PackRequest(
        dataset=dataset,
        source=source,
        splits=splits,
        allow_missing=allow_missing,
        omniglot_split=omniglot_split,
        split=split,
        split_by=split_by,
        image_size=image_size,
        image_format=image_format,
        quality=quality,
        images_per_class=images_per_class,
        classes_per_shard=classes_per_shard,
        way=way,
        shot=shot,
        queries=queries,
        resize=resize,
        max_bad_fraction=max_bad_fraction,
        value_range=value_range,
        max_pixels=max_pixels,
        allow_copies=allow_copies,
        names=names,
        seed=seed,
    )
    opened = open_source(request, say)
    manifest, skipped, several = write(opened.images, out, pack_options(request, opened), processes or usable_cpus(), opened.total, counted)
    summary = summary_of(manifest)
    for name, counts in summary.items():
        say(f"{name}: {counts['classes']} classes, {counts['images']} images, {counts['shards']} shards")
    _say_skipped(skipped, several)
    if names is not None:
        say(f"{names} names {sum(info.name in manifest.names for info in manifest.classes)} of {len(manifest.classes)} classes")
    copies = manifest.copies.sentences([shown(info.name, manifest.names) for info in manifest.classes]) if manifest.copies else []
    for sentence in copies:
        say(sentence)
    say(f"packed {manifest.dataset} into {out}")
    if as_json:
        left_out = [{"origin": origin, "reason": reason} for origin, reason in skipped]
        counted_copies = manifest.copies and manifest.copies.model_dump()
        print_json({"out": str(out), "splits": summary, "skipped": left_out, "several": several, "copies": counted_copies})


def _say_skipped(skipped: list[tuple[str, str]], several: int) -> None:
    for origin, reason in skipped[:_LISTED]:
        say(f"skipped {origin}: {reason}")
    if skipped:
        say(f"skipped {len(skipped)} images that do not decode")
    if several:
        say(f"{several} files are animated or have several pages; the first picture of each was packed")


def verify(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    quick: Annotated[bool, typer.Option("--quick", help="Only compare sizes.")] = False,
    as_json: Json = False,
) -> None:
    """Check every shard: size, SHA-256, members, labels, and that every image decodes. Exit code 1 if anything is wrong.

    Example: distmeta verify data/omniglot
    """
    from distmeta.data.copies import SeenPictures
    from distmeta.data.shards import Dataset
    from distmeta.data.verify import verify as check

    dataset, seen = Dataset(shards), SeenPictures()
    bad = []
    for findings in counted(check(dataset, quick, seen), "verifying shards", len(dataset.manifest.shards)):
        bad += findings
        for finding in findings:
            say(f"{finding.shard} {finding.key}: {finding.reason}")
    say(f"{len(dataset.manifest.shards)} shards, {len(bad)} findings")
    classes = dataset.manifest.classes
    copies = None if quick else seen.copies([info.split for info in classes]).copies
    sentences = copies.sentences([dataset.shown(class_id) for class_id in range(len(classes))]) if copies else []
    for sentence in sentences:
        say(sentence)
    if as_json:
        answer = {"ok": not bad, "bad": [finding._asdict() for finding in bad]}
        print_json(answer | {"copies": copies.model_dump()} if copies and sentences else answer)
    if bad:
        raise typer.Exit(1)


def inspect(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split that --export and --episode draw from.")] = "test",
    export: Annotated[
        Path | None,
        typer.Option(callback=on_this_machine, help="Write one episode as image folders: support/CLASS/*.png and query/CLASS/*.png."),
    ] = None,
    episode: Annotated[
        Path | None, typer.Option(callback=on_this_machine, help="Draw the same episode as a picture, such as episode.png.")
    ] = None,
    way: Annotated[int, typer.Option(min=2, help="Classes in the episode.")] = 5,
    shot: Annotated[int, typer.Option(min=1, help="Support images per class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Query images per class.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episode.")] = 0,
) -> None:
    """Show what a packed dataset contains. With --export or --episode, write or draw one episode.

    Example: distmeta inspect data/omniglot --export episode --episode episode.png
    """
    from distmeta.data.episodes import Task
    from distmeta.data.inspect import draw_episode, export_episode, overview, pair_overview
    from distmeta.data.shards import Dataset

    dataset = Dataset(shards)
    show_table(["split", "classes", "categories", "images", "shards", "classes/shard", "images/class/shard", "MB"], overview(dataset))
    copies = dataset.manifest.copies
    names = [info.name for info in dataset.manifest.classes]
    for sentence in (
        copies.sentences(names) if copies else ["copies were not counted when the dataset was packed; distmeta verify counts them"]
    ):
        say(sentence)
    pairs = pair_overview(dataset)
    if pairs:
        say("shards with some of their split's classes; how often two classes share one:")
        show_table(["split", "pairs", "shards/pair", "coefficient of variation", "never", "rarest pair"], pairs)
    if export is not None:
        export_episode(dataset, split, Task(way, shot, queries), seed, export)
        say(f"wrote one episode to {export}/support and {export}/query")
    if episode is not None:
        draw_episode(dataset, split, Task(way, shot, queries), seed, episode)
        say(f"drew one episode into {episode}")
