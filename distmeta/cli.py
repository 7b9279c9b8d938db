"""The command line: one verb for each procedure, nothing else."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from distmeta import terminal
from distmeta.errors import ConfigError, DataError, DistmetaError
from distmeta.show import (
    counted,
    next_commands,
    prediction_notes,
    print_json,
    print_table,
    say,
    show_advance,
    show_schedule,
    show_table,
    show_test,
    summary,
    write_predictions,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
Network = Annotated[str | None, typer.Option(help="Import path of the model's network, if it is a class of your own.")]
ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="The values that are black and white in images that do not have 8 bits (default: 16-bit integers by their full range; "
        "signed, 32-bit and float images are refused).",
    ),
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Pixels that an image may have at most.")]
OwnLearner = Annotated[str | None, typer.Option("--learner", help="Import path of the model's learner, if it is a class of your own.")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here, if absent.")
]

_KEPT = {"train", "sweep", "pack", "publish", "promote", "sync", "submit"}  # verbs whose results are not only printed
_LISTED = 20  # skipped images named one by one; --json names all


def main() -> None:
    """Run the command line; an error becomes two lines and an exit code, never a traceback unless --debug."""
    terminal.prepare()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except Exception as error:
        if debug:
            raise
        known = error if isinstance(error, DistmetaError) else _unexpected(error)
        print(f"distmeta: {known.message}\n  {known.remedy}", file=sys.stderr)
        sys.exit(known.exit_code)
    finally:
        _report_lost()


def _report_lost() -> None:
    """Say that results could not be printed. Exit code 1 if they are kept nowhere else."""
    lost = terminal.lost_output()
    if lost is not None:
        print(f"distmeta: standard output could not be written: {lost.strerror}", file=sys.stderr)
        if not _KEPT.intersection(sys.argv[1:2]) or "--json" in sys.argv:
            sys.exit(1)


def _unexpected(error: Exception) -> DistmetaError:
    reason = " ".join(str(error).split())[:300]
    return DistmetaError(f"unexpected {type(error).__name__}: {reason}", "run it again with --debug to see where, and report it")


@app.callback()
def _about() -> None:
    """Few-shot meta-training at cluster scale."""


@app.command()
def pack(
    source: Annotated[Path | None, typer.Argument(help="Folder or archive of images; not for glyphs.", show_default=False)] = None,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What the source is: glyphs, omniglot, mini-imagenet, tiered-imagenet, folder, or the import path of a function "
            "of your own, my_package.my_source, that is called with the source and yields (split, class, category, image bytes).",
        ),
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="New folder for shards and manifest.")] = ...,  # type: ignore[assignment]
    splits: Annotated[
        Path | None,
        typer.Option(
            help="Folder of train.csv, val.csv, test.csv: wnid,category for tiered-imagenet, filename,label for mini-imagenet "
            "(the source itself, if absent)."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without what the split files name and the source lacks.")
    ] = False,
    omniglot_split: Annotated[
        Literal["alphabets", "random-characters"] | None,
        typer.Option(help="Omniglot's own alphabets (if absent), or 1100, 100 and 423 characters of any alphabet."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="For a folder without splits: fractions of its classes, such as 0.7/0.15/0.15.")] = None,
    split_by: Annotated[
        Literal["class", "category"] | None, typer.Option(help="What --split divides: classes (if absent) or whole categories.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side in pixels: 28 for glyphs and omniglot, else 84, if absent.")
    ] = None,
    resize: Annotated[Literal["squash", "center-crop"], typer.Option(help="How other shapes become square.")] = "squash",
    image_format: Annotated[
        Literal["jpg", "png"] | None, typer.Option("--format", help="png for glyphs and omniglot, else jpg, if absent.")
    ] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG's quality; 95 if absent.")] = None,
    images_per_class: Annotated[
        int | None, typer.Option(min=2, help="Images of each of its classes in a shard, at least; the larger of 32 and K+Q, if absent.")
    ] = None,
    classes_per_shard: Annotated[
        int | None, typer.Option(min=2, help="Classes in a training shard; all, or as many as keep it at 64 MB, if absent.")
    ] = None,
    way: Annotated[int | None, typer.Option(min=2, help="Classes of the episodes you will draw: refuse a dataset without them.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Their support images per class.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Their query images per class.")] = None,
    max_bad_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="How many of the images may be undecodable.")] = 0.01,
    value_range: ValueRange = None,
    max_pixels: MaxPixels = 100_000_000,
    allow_copies: Annotated[
        bool, typer.Option("--allow-copies", help="Pack a folder although its splits share pictures; they are counted.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes that encode (default: one for each CPU).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order in shards, and splits that are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn images into episode-ready WebDataset shards. Stopped or killed, the same command goes on where it was.

    Example: distmeta pack --dataset omniglot downloads/omniglot --out data/omniglot
    """
    from distmeta.data.datasets import Request, open_source, pack_options
    from distmeta.data.pack import pack as write
    from distmeta.data.pack import summary_of
    from distmeta.data.workers import usable_cpus

    sys.path.append(os.getcwd())  # for a source of the user's own, given by import path
    request = Request(
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
        seed=seed,
    )
    opened = open_source(request, say)
    manifest, skipped, several = write(opened.images, out, pack_options(request, opened), processes or usable_cpus(), opened.total, counted)
    summary = summary_of(manifest)
    for name, counts in summary.items():
        say(f"{name}: {counts['classes']} classes, {counts['images']} images, {counts['shards']} shards")
    for origin, reason in skipped[:_LISTED]:
        say(f"skipped {origin}: {reason}")
    if skipped:
        say(f"skipped {len(skipped)} images that do not decode")
    if several:
        say(f"{several} files are animated or have several pages; the first picture of each was packed")
    copies = manifest.copies.sentences([info.name for info in manifest.classes]) if manifest.copies else []
    for sentence in copies:
        say(sentence)
    say(f"packed {manifest.dataset} into {out}")
    if as_json:
        left_out = [{"origin": origin, "reason": reason} for origin, reason in skipped]
        counted_copies = manifest.copies and manifest.copies.model_dump()
        print_json({"out": str(out), "splits": summary, "skipped": left_out, "several": several, "copies": counted_copies})


@app.command()
def verify(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only.")] = False,
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
    found = copies.sentences([info.name for info in classes]) if copies else []
    for sentence in found:
        say(sentence)
    if as_json:
        answer = {"ok": not bad, "bad": [finding._asdict() for finding in bad]}
        print_json(answer | {"copies": copies.model_dump()} if copies and found else answer)
    if bad:
        raise typer.Exit(1)


@app.command()
def inspect(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of --export and --episode.")] = "test",
    export: Annotated[
        Path | None, typer.Option(help="Write one episode as image folders: support/CLASS/*.png and query/CLASS/*.png.")
    ] = None,
    episode: Annotated[Path | None, typer.Option(help="Draw that episode into a picture, such as episode.png.")] = None,
    way: Annotated[int, typer.Option(min=2, help="Classes of that episode.")] = 5,
    shot: Annotated[int, typer.Option(min=1, help="Support images per class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Query images per class.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
) -> None:
    """Say what a packed dataset holds; with --export or --episode, write or draw one of its episodes.

    Example: distmeta inspect data/omniglot --export episode --episode episode.png
    """
    from distmeta.data.episodes import Task
    from distmeta.data.inspect import draw_episode, export_episode, overview, pair_overview
    from distmeta.data.shards import Dataset

    dataset = Dataset(shards)
    show_table(["split", "classes", "categories", "images", "shards", "classes/shard", "images/class/shard", "MB"], overview(dataset))
    copies = dataset.manifest.copies
    names = [info.name for info in dataset.manifest.classes]
    for sentence in copies.sentences(names) if copies else ["copies were not counted when this was packed; distmeta verify counts them"]:
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


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; configs/ holds examples.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set outer.lr=0.002. May be repeated.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run folder's newest checkpoint, or begin if there is none.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS, else a local instance of our own, if absent.")] = None,
    allow_other_hardware: Annotated[bool, typer.Option("--allow-other-hardware", help="Resume on another kind of machine.")] = False,
    as_json: Json = False,
) -> None:
    """Meta-train, test on unseen classes, and register the best model.

    Example: distmeta train configs/omniglot_5way_1shot_maml.yaml --set train.workers=2
    """
    from distmeta.config import load_config

    sys.path.append(os.getcwd())  # for a network of the user's own, given by import path
    settings = load_config(config, sets)
    say(f"training {config}")  # before Ray and MLflow are imported: that takes seconds
    from distmeta.scale.run import run

    result = run(settings, resume, address, allow_other_hardware)
    if as_json:
        print_json(result)
        return
    show_test(result["test"])
    say(f"best step {result['best_step']} of {result['steps']}; model {result['model']}")
    if settings.data.shards is not None:
        next_commands(settings.data.shards, result["model"], settings.data.way, settings.data.shot, settings.tracking.uri)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file with a section `sweep`; configs/ holds an example.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set sweep.trials=8. May be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in the run folder; no ended trial is repeated.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS, else a local instance of our own, if absent.")] = None,
    allow_other_hardware: Annotated[bool, typer.Option("--allow-other-hardware", help="Resume on another kind of machine.")] = False,
    as_json: Json = False,
) -> None:
    """Search hyperparameters: each trial is a distributed run, poor ones stop early, the winner is tested and registered.

    Example: distmeta sweep configs/quickstart_sweep.yaml --set sweep.trials=8
    """
    from distmeta.config import load_config

    sys.path.append(os.getcwd())  # for a network of the user's own, given by import path
    settings = load_config(config, sets)
    say(f"sweeping {config}")
    from distmeta.sweep.driver import sweep as search
    from distmeta.sweep.view import trial_table

    result = search(settings, resume, address, allow_other_hardware)
    if as_json:
        print_json(result)
        return
    assert settings.sweep is not None
    print_table(trial_table(result["trials"], settings.sweep))
    best = result["best"]
    say(f"best: trial {best['number']}; its config is {result['best_config']}, pictures are beside it")
    if settings.sweep.baseline and best["number"] == 0:
        say("trial 0 is the config as it stands: no other did better")
    show_schedule(best.get("history", []))
    show_advance(best["fresh"])
    if "model" in best:
        if "retrained" in best:
            say(f"trained anew for {best['retrained_steps']} steps in {best['retrained']}")
        show_test(best["test"])
        say(f"model {best['model']}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    verb: Annotated[Literal["train", "sweep", "evaluate", "pack"], typer.Argument(help="What to run there.")],
    address: Annotated[str, typer.Option(help="The head's dashboard, http://HEAD:8265.", envvar="RAY_API_SERVER_ADDRESS")] = ...,  # type: ignore[assignment]
    include: Annotated[list[Path] | None, typer.Option(help="File or folder to ship; may be repeated. Never data.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override a key of the config. May be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="The job's id; Ray draws one if absent.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
) -> None:
    """Run a verb on a Ray cluster, with this distmeta and a config from here; what follows the verb goes to it.

    Example: distmeta submit train configs/quickstart.yaml --set run_folder=/shared/runs/1 --address http://head:8265 --resume
    """
    from distmeta.config import load_config
    from distmeta.scale.submit import CONFIG
    from distmeta.scale.submit import submit as start

    arguments = list(context.args)
    config = None
    if verb in ("train", "sweep"):
        if not arguments or arguments[0].startswith("-"):
            raise ConfigError(f"submit {verb} needs a config", f"distmeta submit {verb} CONFIG --address {address}")
        config = load_config(Path(arguments.pop(0)), sets)
        arguments.insert(0, CONFIG)
    elif sets:
        arguments += [part for override in sets for part in ("--set", override)]

    job_id = start(address, [verb, *arguments], config, include or [], name, _places(context, verb, arguments))
    say(f"job {job_id}; distmeta jobs logs|stop {job_id} --address {address}")
    if not detach:
        _follow(address, job_id)


def _places(context: typer.Context, verb: str, arguments: list[str]) -> dict[str, str]:
    """The paths and URLs among a verb's arguments, by option; the config apart. Arguments that the verb does not take are refused."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    parsed = command.make_context(verb, list(arguments), parent=context.parent)
    named = {parameter.name: max(parameter.opts, key=len) for parameter in command.params}
    return {
        named[name] if named[name].startswith("-") else name.upper(): str(value)
        for name, value in parsed.params.items()
        if name != "config" and (isinstance(value, Path) or (name in ("shards", "tracking_uri") and value is not None))
    }


@app.command()
def jobs(
    action: Annotated[Literal["list", "logs", "stop", "follow"], typer.Argument(help="What to do.")] = "list",
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The job; not for list.", show_default=False)] = None,
    address: Annotated[str, typer.Option(help="The head's dashboard, http://HEAD:8265.", envvar="RAY_API_SERVER_ADDRESS")] = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """List a cluster's jobs; print or follow the log of one, or stop it.

    Example: distmeta jobs logs raysubmit_8QzX --address http://head:8265
    """
    from distmeta.scale import submit as there

    if action != "list" and job_id is None:
        raise ConfigError(f"jobs {action} needs a job's id", f"distmeta jobs {action} ID; distmeta jobs list names them")
    if job_id is None or action == "list":
        rows = there.list_jobs(address)
        cells = [[row["id"], row["status"], row["command"]] for row in rows]
        print_json(rows) if as_json else show_table(["job", "status", "command"], cells)
    elif action == "logs":
        print(there.logs(address, job_id), end="")
    elif action == "follow":
        _follow(address, job_id)
    else:
        there.stop(address, job_id)
        say(f"job {job_id} is asked to stop")


def _follow(address: str, job_id: str) -> None:
    """Copy a job's log here; leave with its exit code."""
    from distmeta.scale.submit import follow

    def ask() -> bool:
        if not sys.stdin.isatty():
            return False
        return typer.confirm("Stop the job? (no: only stop watching it)", default=False, err=True)

    code = follow(address, job_id, sys.stdout, ask)
    if code:
        raise typer.Exit(code)


@app.command()
def models(
    name: Annotated[str | None, typer.Option(help="Only models of this name; * and ? stand for any characters.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only those with this alias.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those trained on this dataset.")] = None,
    learner: Annotated[str | None, typer.Option(help="Only those of this learner.")] = None,
    way: Annotated[int | None, typer.Option(min=1, help="Only those trained for so many classes.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Only those trained for so many support images per class.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """List the registered models.

    Example: distmeta models --alias champion --dataset omniglot
    """
    from distmeta.registry.listing import list_models, matching
    from distmeta.registry.tracking import tracking_uri as resolve

    rows = matching(list_models(resolve(tracking_uri)), name, alias, dataset=dataset, learner=learner, way=way, shot=shot)
    if as_json:
        print_json(rows)
        return
    columns = ["model", "aliases", "dataset", "task", "learner", "test", "age"]
    table = [
        [
            row["uri"],
            " ".join(row["aliases"]),
            row["dataset"] or "?",
            f"{row['way'] or '?'}-way {row['shot'] or '?'}-shot",
            row["learner"] or "?",
            summary(row),
            f"{row['age_s'] // 3600} h {row['age_s'] // 60 % 60} min",
        ]
        for row in rows
    ]
    show_table(columns, table)


@app.command()
def publish(
    run_folder: Annotated[str, typer.Argument(help="Folder of a finished run, or its URL.")],
    name: Annotated[str | None, typer.Option(help="Name in the registry; <dataset>-<way>way-<shot>shot if absent.")] = None,
    alias: Annotated[str | None, typer.Option(help="Name this version so, such as 'candidate'.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Register a run's best model as a new version.

    Example: distmeta publish runs/omniglot_5way_1shot_maml --name characters --alias candidate
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import publish as register
    from distmeta.training.run_folder import RunFolder

    published = register(resolve(tracking_uri), RunFolder(run_folder), name, alias)
    champion = f"; the champion is version {published.held_by}" if published.held_by else ""
    say(f"published models:/{published.name}/{published.version}" + (", the champion" if published.champion else champion))
    if as_json:
        print_json({"model": published.uri, "version": published.version, "champion": published.champion})


@app.command()
def sync(
    run_folder: Annotated[str, typer.Argument(help="Folder of a run, or its URL.")],
    tracking_uri: Annotated[str | None, typer.Option(help="Where MLflow is now; where the run found it, if absent.")] = None,
    as_json: Json = False,
) -> None:
    """Send to MLflow what it lacks of a run because it was away: metrics, the test's figures, the report, the model. Nothing is sent twice.

    Example: distmeta sync runs/omniglot_5way_1shot_maml
    """
    from distmeta.assembly.sync import sync as send
    from distmeta.training.run_folder import RunFolder

    sent = send(RunFolder(run_folder), tracking_uri)
    say(f"MLflow run {sent['run_id']} has all {sent['steps']} steps of {run_folder}")
    say(f"model {sent['model']}" if sent["model"] else "the run has not ended; distmeta train CONFIG --resume goes on with it")
    if as_json:
        print_json(sent)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/model.")],
    alias: Annotated[str, typer.Option(help="What it is to be called.")] = "champion",
    tracking_uri: TrackingUri = None,
) -> None:
    """Give a registered version an alias, which leaves the version that had it.

    Example: distmeta promote models:/omniglot-5way-1shot/3 --alias champion
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import promote as give

    say(f"{give(resolve(tracking_uri), model, alias)} is now {model}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    b: Annotated[str, typer.Argument(help="Another, tested on the same episodes.")],
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Is model B better than model A? The paired difference over the episodes both were tested on.

    Example: distmeta compare models:/omniglot-5way-1shot/1 models:/omniglot-5way-1shot/2
    """
    from distmeta.registry.compare import compare as paired
    from distmeta.registry.compare import verdict
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.training.measurement import quantity

    found = paired(resolve(tracking_uri), a, b)
    if as_json:
        print_json(found)
        return
    means = [quantity(found[side], None, found["scale"], found["digits"] + 1, found["unit"]) for side in ("a", "b")]
    show_table(["model", found["figure"]], [[a, means[0]], [b, means[1]]])
    print(verdict(found))


def own_classes(*paths: str | None) -> list[str]:
    """The import paths that were given, of classes that Python finds from the working folder."""
    sys.path.append(os.getcwd())
    return [path for path in paths if path is not None]


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    support: Annotated[Path, typer.Option(help="Folder with a folder of labelled images for each class.")],
    query: Annotated[Path, typer.Option(help="Folder of images to classify, or one image, or - for paths on standard input.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Inner steps; those the model was evaluated with, if absent.")] = None,
    form: Annotated[Literal["table", "csv", "jsonl"], typer.Option("--format", help="csv and jsonl are written as they come.")] = "table",
    explain: Annotated[Path | None, typer.Option(help="Draw support, queries and predictions into this PNG.")] = None,
    value_range: ValueRange = None,
    max_pixels: MaxPixels = 100_000_000,
    network: Network = None,
    learner: OwnLearner = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered model to a few labelled images and classify others.

    Queries in folders named like the classes are counted as right or wrong. Images that do not decode are named and left out (exit code 1).

    Example: distmeta predict --model models:/omniglot-5way-1shot@champion --support episode/support --query episode/query
    """
    from distmeta.data.decode import parse_value_range
    from distmeta.data.image_files import LeftOut
    from distmeta.inference.predict import FileReader, Score, adapt_to_folder, predict_files, query_files
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import load_model

    own = own_classes(network, learner)
    chosen = parse_value_range(value_range)
    loaded = load_model(resolve(tracking_uri), model, own)
    loaded = loaded.with_value_range(chosen) if chosen else loaded
    reader, passed_over = FileReader(loaded.preprocessing, max_pixels), LeftOut()
    adapted, shown = adapt_to_folder(loaded, support, steps, reader, passed_over)
    left_out: list[tuple[str, str]] = []

    def leave_out(error: DistmetaError) -> None:
        say(error.message)
        left_out.append((error.message, error.remedy))  # not the error: its traceback would keep the file's bytes

    score = Score()
    files = counted(query_files(query, sys.stdin, passed_over), "classifying")
    predictions = score.count(predict_files(adapted, files, shown, leave_out, reader))
    kept = write_predictions(predictions, "json" if as_json else form, keep=explain is not None)
    for note in prediction_notes(score, reader, shown, passed_over):
        say(note)
    if explain is not None:
        from distmeta.report.explain import draw

        draw(shown, kept, explain, reader)
        say(f"drew {explain}")
    if left_out:
        message, remedy = left_out[0]
        raise DataError(f"{len(left_out)} of {len(left_out) + score.asked} images were left out; the first: {message}", remedy)


@app.command()
def rollout(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    env: Annotated[
        str | None, typer.Option(help="Environment, as data.settings.environment names it (default: the one that it was trained in).")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of --env, such as horizon=50.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="X,Y,…", help="The task's components, such as a goal (default: drawn from --seed).")
    ] = None,
    adapt: Annotated[int | None, typer.Option(min=1, help="Inner steps (default: those it was evaluated with).")] = None,
    trajectories: Annotated[int, typer.Option(min=2, help="Trajectories before the first inner step and after each.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Decides the trajectories, and the task unless it is given.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG to draw paths into, or returns where there are none.")] = Path("rollout.png"),
    network: Network = None,
    learner: OwnLearner = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered policy to a task by acting in it, and draw what came of it.

    Example: distmeta rollout --model models:/navigation@champion --task 0.3,-0.2 --adapt 3
    """
    from distmeta.inference.policy import environment_of, task_of
    from distmeta.registry.policies import load_policy
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.report.paths import draw_adaptation

    sys.path.append(os.getcwd())
    environment = environment_of(env, option or [])
    policy = load_policy(resolve(tracking_uri), model, own_classes(network, learner), environment)
    adapted = policy.adapt(environment, task_of(task), adapt, trajectories, seed)
    draw_adaptation(adapted.environment, adapted.task, adapted.played, out)
    say(f"drew {out}")
    found = {"environment": adapted.environment.name, "task": adapted.task, "returns": adapted.returns, "picture": str(out)}
    if as_json:
        print_json(found)
        return
    show_table(["inner steps", "mean return"], [[str(step), f"{value:.2f}"] for step, value in enumerate(adapted.returns)])


@app.command()
def evaluate(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = ...,  # type: ignore[assignment]
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Whose classes.")] = "test",
    way: Annotated[int | None, typer.Option(min=2, help="Classes of an episode; as the model was trained, if absent.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Support images per class; as the model was trained, if absent.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Query images per class.")] = 15,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Which episodes.")] = 0,
    network: Network = None,
    learner: OwnLearner = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS, else a local instance of our own, if absent.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Evaluate a registered model on fixed episodes of a packed dataset, spread over all of a Ray cluster's CPUs, or its GPUs.

    Example: distmeta evaluate data/omniglot --model models:/omniglot-5way-1shot@champion --shot 5
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import load_model

    own = own_classes(network, learner)
    loaded = load_model(resolve(tracking_uri), model, own)
    say(f"evaluating {model}")  # before Ray is imported: that takes seconds
    from distmeta.scale.evaluate import PART, Asked
    from distmeta.scale.evaluate import evaluate as start

    parts = start(loaded, Asked(shards=shards, split=split, way=way, shot=shot, queries=queries, seed=seed), episodes, address, own)
    *_, test = counted(parts, f"parts of {PART} episodes", 1 + -(-episodes // PART))
    if as_json:
        print_json(test)
    else:
        show_test(test)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or the address (models:/…, runs:/…) of a model it published.")],
    shards: Annotated[str | None, typer.Option(help="Its packed dataset, for a close look at test episodes.")] = None,
    config: Annotated[Path | None, typer.Option(help="Your own config of the run: its dataset and your own classes are then used.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file with its figures, curves, episodes and config, into the run folder.

    For a model whose run folder is not on this machine, the report that MLflow keeps since the run ended comes into the working folder.

    Example: distmeta report runs/omniglot_5way_1shot_maml
    """
    from distmeta.assembly.report import report as write
    from distmeta.assembly.report import report_of_model
    from distmeta.config import load_config
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.training.run_folder import RunFolder

    sys.path.append(os.getcwd())
    own, anew = load_config(config) if config else None, True
    if run.startswith(("models:/", "runs:/")):
        written, anew = report_of_model(resolve(tracking_uri), run, shards, own)
    else:
        written = write(RunFolder(run), shards, own)
    say(f"wrote {written}" + ("" if anew else ", the report written when the run ended: its run folder is not on this machine"))
    if as_json:
        print_json({"report": str(written)})


@app.command()
def doctor(
    shards: Annotated[str | None, typer.Option(help="Also see whether this packed dataset can be read.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS, else a local instance of our own, if absent.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Say what is installed here and what answers, with a remedy for whatever does not. Exit code 1 if anything fails.

    Example: distmeta doctor --shards data/omniglot
    """
    say("looking; starting Ray takes some seconds")
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.scale.doctor import examine

    findings = list(examine(resolve(tracking_uri), address, shards))
    failing = [finding for finding in findings if finding.remedy]
    if as_json:
        print_json({"ok": not failing, "findings": [finding._asdict() for finding in findings]})
    else:
        show_table(["", "what", "found"], [["✗" if finding.remedy else "✓", finding.what, finding.found] for finding in findings])
        for finding in failing:
            say(f"{finding.what}: {finding.remedy}")
    if failing:
        raise typer.Exit(1)
