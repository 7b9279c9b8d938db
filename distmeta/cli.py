"""The command line: one verb for each procedure, nothing else."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from distmeta.errors import ConfigError, DistmetaError

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here, if absent.")
]


def main() -> None:
    """Run the command line; an error becomes two lines and an exit code, never a traceback unless --debug."""
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


def _unexpected(error: Exception) -> DistmetaError:
    reason = " ".join(str(error).split())[:300]
    return DistmetaError(f"unexpected {type(error).__name__}: {reason}", "run it again with --debug to see where, and report it")


@app.callback()
def _about() -> None:
    """Few-shot meta-training at cluster scale."""


@app.command()
def pack(
    source: Annotated[Path | None, typer.Argument(help="Folder or archive of images; not for glyphs.", show_default=False)] = None,
    dataset: Annotated[Literal["glyphs", "omniglot", "tiered-imagenet"], typer.Option(help="What the source is.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="New folder for shards and manifest.")] = ...,  # type: ignore[assignment]
    splits: Annotated[
        Path | None, typer.Option(help="Folder of train.csv, val.csv, test.csv (wnid,category); for tiered-imagenet.")
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on without split classes that the archive lacks.")] = False,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Side in pixels: 28, or 84 for tiered-imagenet, if absent.")
    ] = None,
    images_per_class: Annotated[int, typer.Option(min=2, help="Images of each class in a shard, at least (K+Q or more).")] = 32,
    resize: Annotated[Literal["squash", "center-crop"], typer.Option(help="How other shapes become square.")] = "squash",
    seed: Annotated[int, typer.Option(min=0, help="Decides the order in shards, and splits that are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn images into episode-ready WebDataset shards.

    Example: distmeta pack --dataset omniglot downloads/omniglot --out data/omniglot
    """
    from distmeta.data.datasets import Request, open_source, pack_options
    from distmeta.data.pack import SPLITS
    from distmeta.data.pack import pack as write

    request = Request(dataset, source, splits, allow_missing, image_size, images_per_class, resize, seed)
    images = _counted(open_source(request, _say), "packing")
    manifest = write(images, out, pack_options(request))
    summary = {}
    for split in SPLITS:
        classes = [info for info in manifest.classes if info.split == split]
        shards = sum(info.split == split for info in manifest.shards)
        summary[split] = {"classes": len(classes), "images": sum(info.images for info in classes), "shards": shards}
        _say(f"{split}: {{classes}} classes, {{images}} images, {{shards}} shards".format(**summary[split]))
    _say(f"packed {manifest.dataset} into {out}")
    if as_json:
        print(json.dumps({"out": str(out), "splits": summary}))


@app.command()
def verify(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only.")] = False,
    as_json: Json = False,
) -> None:
    """Check every shard: size, SHA-256, labels, and that every image decodes. Exit code 1 if anything is wrong.

    Example: distmeta verify data/omniglot
    """
    from distmeta.data.shards import Dataset
    from distmeta.data.verify import verify as check

    dataset = Dataset(shards)
    bad = list(check(dataset, quick))
    for finding in bad:
        _say(f"{finding.shard} {finding.key}: {finding.reason}")
    _say(f"{len(dataset.manifest.shards)} shards, {len(bad)} findings")
    if as_json:
        print(json.dumps({"ok": not bad, "bad": [finding._asdict() for finding in bad]}))
    if bad:
        raise typer.Exit(1)


@app.command()
def inspect(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of --export.")] = "test",
    export: Annotated[
        Path | None, typer.Option(help="Write one episode as image folders: support/CLASS/*.png and query/CLASS/*.png.")
    ] = None,
    way: Annotated[int, typer.Option(min=2, help="Classes of that episode.")] = 5,
    shot: Annotated[int, typer.Option(min=1, help="Support images per class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Query images per class.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
) -> None:
    """Say what a packed dataset holds; with --export, write one of its episodes as image folders.

    Example: distmeta inspect data/omniglot --export episode
    """
    from distmeta.data.episodes import Task
    from distmeta.data.inspect import export_episode, overview
    from distmeta.data.shards import Dataset

    dataset = Dataset(shards)
    rows = overview(dataset)
    _table(["split", "classes", "categories", "images", "shards", "MB"], rows)
    if export is not None:
        export_episode(dataset, split, Task(way, shot, queries), seed, export)
        _say(f"wrote one episode to {export}/support and {export}/query")


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

    settings = load_config(config, sets)
    _say(f"training {config}")  # before Ray and MLflow are imported: that takes seconds
    from distmeta.scale.run import run

    result = run(settings, resume, address, allow_other_hardware)
    if as_json:
        print(json.dumps(result))
        return
    _show_test(result["test"])
    _say(f"best step {result['best_step']} of {result['steps']}; model {result['model']}")
    if settings.data.shards is not None:
        _next_commands(settings.data.shards, result["model"], settings.data.way, settings.data.shot, settings.tracking.uri)


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

    settings = load_config(config, sets)
    _say(f"sweeping {config}")
    from distmeta.scale.sweep import sweep as search
    from distmeta.scale.sweep_view import trial_table

    result = search(settings, resume, address, allow_other_hardware)
    if as_json:
        print(json.dumps(result))
        return
    assert settings.sweep is not None
    _print(trial_table(result["trials"], settings.sweep))
    best = result["best"]
    _say(f"best: trial {best['number']}; its config is {result['best_config']}, pictures are beside it")
    _show_advance(best["fresh"])
    if "model" in best:
        _show_test(best["test"])
        _say(f"model {best['model']}")


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

    arguments = list(context.args)
    config = None
    if verb in ("train", "sweep"):
        if not arguments or arguments[0].startswith("-"):
            raise ConfigError(f"submit {verb} needs a config", f"distmeta submit {verb} CONFIG --address {address}")
        config = load_config(Path(arguments.pop(0)), sets)
        arguments.insert(0, "config.yaml")
    elif sets:
        arguments += [part for override in sets for part in ("--set", override)]
    from distmeta.scale.submit import submit as start

    job_id = start(address, [verb, *arguments], config, include or [], name)
    _say(f"job {job_id}; distmeta jobs logs|stop {job_id} --address {address}")
    if not detach:
        _follow(address, job_id)


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
        print(json.dumps(rows)) if as_json else _table(["job", "status", "command"], [[r["id"], r["status"], r["command"]] for r in rows])
    elif action == "logs":
        print(there.logs(address, job_id), end="")
    elif action == "follow":
        _follow(address, job_id)
    else:
        there.stop(address, job_id)
        _say(f"job {job_id} is asked to stop")


@app.command()
def models(
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """List the registered models.

    Example: distmeta models
    """
    from distmeta.registry.models import list_models
    from distmeta.registry.tracking import tracking_uri as resolve

    rows = list_models(resolve(tracking_uri))
    if as_json:
        print(json.dumps(rows))
        return
    columns = ["model", "aliases", "dataset", "task", "learner", "accuracy", "inductive", "age"]
    table = [
        [
            row["uri"],
            " ".join(row["aliases"]),
            row["dataset"],
            f"{row['way']}-way {row['shot']}-shot",
            row["learner"],
            *_figures(row),
            f"{row['age_s'] // 3600} h {row['age_s'] // 60 % 60} min",
        ]
        for row in rows
    ]
    _table(columns, table)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    support: Annotated[Path, typer.Option(help="Folder with a folder of labelled images for each class.")],
    query: Annotated[Path, typer.Option(help="Folder of images to classify, or one image.")],
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered model to a few labelled images and classify others.

    Example: distmeta predict --model models:/omniglot-5way-1shot@champion --support episode/support --query episode/query
    """
    from distmeta.registry.models import load_model
    from distmeta.registry.predict import predict_folder
    from distmeta.registry.tracking import tracking_uri as resolve

    predictions = list(predict_folder(load_model(resolve(tracking_uri), model), support, query))
    if as_json:
        print(json.dumps(predictions))
        return
    _table(["file", "class", "probability"], [[p["file"], p["class"], f"{p['probability']:.3f}"] for p in predictions])


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


def _say(text: str) -> None:
    """A line for people: standard error, so that standard output holds results alone."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or pipe has no width to fit into
    console.print(table, markup=False)


def _show_test(test: dict[str, Any]) -> None:
    """The final test as a table."""
    if "mse_by_step" in test:
        columns = ["inner steps", "squared error, meta-trained", "not meta-trained (random initialisation, adapted)"]
        both = ("mse_by_step", "ci95_by_step"), ("random_init", "random_init_ci95")
        rows = [[step, *(f"{test[mse][step]:.3f} ± {test[ci95][step]:.3f}" for mse, ci95 in both)] for step in test["mse_by_step"]]
        _say(f"test, {test['shot'] * test['way']}-shot, {test['episodes']} tasks (seed {test['seed']}), norm {test['norm']}:")
    else:
        columns = ["network", "accuracy"]
        rows = [
            ["meta-trained, transductive", _percent(test["accuracy"], test["ci95"])],
            ["meta-trained, inductive", _percent(test["accuracy_inductive"], test["ci95_inductive"])],
            ["not meta-trained (random initialisation, adapted), transductive", _percent(test["random_init"], test["random_init_ci95"])],
        ]
        _say(
            f"test, {test['way']}-way {test['shot']}-shot, {test['queries']} queries, {test['episodes']} episodes (seed {test['seed']}), "
            f"{test['inner_steps']} inner steps, norm {test['norm']}:"
        )
    _table(columns, rows)


def _show_advance(fresh: dict[str, Any]) -> None:
    """The winner of a sweep on validation episodes that no trial saw, and how far it is ahead of trial 0 there."""
    if "accuracy_inductive" not in fresh:
        return
    line = f"on {fresh['episodes']} validation episodes that no trial saw: {_percent(fresh['accuracy_inductive'], fresh['ci95_inductive'])}"
    if "advance" in fresh:
        line += f", ahead of trial 0 (the config as it stands) by {_percent(fresh['advance'], fresh['advance_ci95'])}, paired"
    _say(f"{line} (inductive)")


def _figures(row: dict[str, Any]) -> tuple[str, str]:
    """A registered model's accuracy and inductive accuracy, or its squared error after the last inner step."""
    if "mse_by_step" in row:
        last = max(row["mse_by_step"], key=int)
        return f"error {row['mse_by_step'][last]:.3f} ± {row['ci95_by_step'][last]:.3f}", ""
    return _percent(row["accuracy"], row["ci95"]), _percent(row["accuracy_inductive"], row["ci95_inductive"])


def _percent(accuracy: float, ci95: float) -> str:
    return f"{100 * accuracy:.1f} ± {100 * ci95:.1f} %"


def _counted(images: Iterable[T], what: str) -> Iterator[T]:
    """Pass images through, with a count and rate on a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TaskProgressColumn(show_speed=True))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(images, description=what, total=None)


def _next_commands(shards: str, model: str, way: int, shot: int, tracking_uri: str | None) -> None:
    """The commands that show the model at work, as they must be typed here."""
    program = "distmeta" if shutil.which("distmeta") else os.path.relpath(sys.argv[0])
    uri = f" --tracking-uri {tracking_uri}" if tracking_uri else ""
    _say("next:")
    _say(f"  {program} inspect {shards} --way {way} --shot {shot} --export episode")
    _say(f"  {program} predict --model {model} --support episode/support --query episode/query{uri}")
    _say(f"  {program} models{uri}")
