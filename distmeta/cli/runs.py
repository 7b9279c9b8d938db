"""Verbs about runs: init, config, train, sweep, report."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from distmeta.cli.options import Address, Json, OtherHardware, Seeds, Sets, TrackingUri, import_from_here, imported_of
from distmeta.masking import printable
from distmeta.show import (
    next_commands,
    print_json,
    say,
    show_advance,
    show_advance_over_seeds,
    show_schedule,
    show_seeds,
    show_table,
    show_test,
)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write into. It is created if needed.")],
    template: Annotated[
        Literal["photos", "omniglot", "regression", "navigation", "own-learner"], typer.Option(help="Kind of work to start with.")
    ] = "photos",
) -> None:
    """Write a commented config, and a network or learner to edit, into a folder, and print the next commands.

    Example: distmeta init mine --template own-learner
    """
    from distmeta.templates import TEMPLATES, write

    for path in write(template, folder):
        say(f"wrote {path}")
    say("next:")
    print("\n".join((f"cd {printable(shlex.quote(str(folder)))}", *TEMPLATES[template])))


def config(
    config: Annotated[Path, typer.Argument(help="YAML file. See configs/ for examples.")],
    sets: Sets = None,
    show: Annotated[bool, typer.Option("--show", help="Print every key with its value and where the value comes from.")] = False,
    as_json: Json = False,
) -> None:
    """Check a config without starting anything. With --show or --json, print every key, its value and where the value comes from:
    the file, --set or the default.

    Example: distmeta config configs/quickstart.yaml --set outer.lr=0.002 --show
    """
    from distmeta.config import flat, load_config, origins

    settings = load_config(config, sets)
    if not (show or as_json):
        print(printable(f"{config} is valid; --show prints its keys"))
        return
    values, sources = flat(settings.shown()), origins(settings, config, sets)
    if as_json:
        print_json({key: {"value": value, "from": sources[key]} for key, value in values.items()})
        return
    show_table(["key", "value", "from"], [[key, json.dumps(value, ensure_ascii=False), sources[key]] for key, value in values.items()])


def train(
    config: Annotated[Path, typer.Argument(help="YAML file. See configs/ for examples.")],
    sets: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the run folder, or start if there is none.")
    ] = False,
    seeds: Seeds = None,
    address: Address = None,
    allow_other_hardware: OtherHardware = False,
    as_json: Json = False,
) -> None:
    """Meta-train, test on unseen classes, and register the best model.

    Example: distmeta train configs/omniglot_5way_1shot_maml.yaml --set train.workers=2
    """
    from distmeta.config import load_config

    import_from_here()  # because a network may be given by import path
    settings = load_config(config, sets)
    data = settings.data.shards
    say(f"training {config}" + (f"; reading {data}" if data else ""))  # before Ray and MLflow are imported: that takes seconds
    if seeds is not None:
        from distmeta.scale.train_seeds import train_seeds

        answer = train_seeds(settings, seeds, resume, address, allow_other_hardware, say)
        print_json(answer) if as_json else show_seeds(answer)
        return
    from distmeta.scale.run import run

    result = run(settings, resume, address, allow_other_hardware)
    if as_json:
        print_json(result)
        return
    show_test(result["test"])
    say(f"best step {result['best_step']} of {result['steps']}; model {result['model']}")
    if settings.data.shards is not None:
        own = imported_of(settings.model.name, settings.learner.name)
        next_commands(settings.data.shards, result["model"], settings.data.way, settings.data.shot, settings.tracking.uri, own)


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file with a section `sweep`. See configs/quickstart_sweep.yaml.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override a key, such as sweep.trials=8. Can be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep in the run folder. Finished trials are skipped.")] = False,
    address: Address = None,
    allow_other_hardware: OtherHardware = False,
    as_json: Json = False,
) -> None:
    """Search hyperparameters. Each trial is a distributed run; poor trials stop early; the winner is tested and registered.

    Example: distmeta sweep configs/quickstart_sweep.yaml --set sweep.trials=8
    """
    from distmeta.config import load_config

    import_from_here()  # because a network may be given by import path
    settings = load_config(config, sets)
    say(f"sweeping {config}")
    from distmeta.sweep.driver import sweep as search
    from distmeta.sweep.view import trial_cells

    result = search(settings, resume, address, allow_other_hardware)
    if as_json:
        print_json(result)
        return
    assert settings.sweep is not None
    show_table(*trial_cells(result["trials"], settings.sweep))
    best = result["best"]
    say(f"best: trial {best['number']}; its config is {result['best_config']}, pictures are beside it")
    if settings.sweep.baseline and best["number"] == 0:
        say("trial 0, the config without changes, did best")
    show_schedule(best.get("history", []))
    show_advance(best["fresh"])
    if "seeds" in best:
        show_advance_over_seeds(best["seeds"], best["fresh"])
    if "model" in best:
        if "retrained" in best:
            say(f"retrained for {best['retrained_steps']} steps in {best['retrained']}")
        show_test(best["test"])
        say(f"model {best['model']}")


def report(
    run: Annotated[str, typer.Argument(help="Folder of a run, or the address (models:/…, runs:/…) of a model that a run published.")],
    shards: Annotated[str | None, typer.Option(help="Packed dataset of the run. Adds pictures of test episodes to the report.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Your own config of the run. Its dataset and classes are opened for the report.")
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file with its figures, curves, episodes and config, into the run folder.

    The report of an unfinished run shows its progress and what happened to it.

    If the run folder is not on this machine, the copy stored in MLflow is downloaded to the working folder.

    Example: distmeta report runs/omniglot_5way_1shot_maml
    """
    from distmeta.assembly.report import report as write
    from distmeta.assembly.report import report_of_model
    from distmeta.config import load_config
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.training.run_folder import RunFolder

    import_from_here()
    own, anew = load_config(config) if config else None, True
    if run.startswith(("models:/", "runs:/")):
        written, anew = report_of_model(resolve(tracking_uri), run, shards, own)
    else:
        written = write(RunFolder(run), shards, own)
    say(f"wrote {written}" + ("" if anew else ", the report written when the run ended: its run folder is not on this machine"))
    if as_json:
        print_json({"report": str(written)})
