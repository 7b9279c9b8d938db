"""Options that several verbs take."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distmeta.errors import ConfigError


def parse_seeds(text: str) -> list[int]:
    """The seeds in "0,1,2". Raises ConfigError unless there are at least two and all differ."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise ConfigError(f"--seeds {text}: whole numbers with commas between them are needed", "write --seeds 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < max(len(seeds), 2):
        remedy = f"give --set seed={seeds[0]} instead" if len(seeds) == 1 else "name each seed once"
        raise ConfigError(f"--seeds {text}: two or more different seeds are needed", remedy)
    return seeds


def on_this_machine(path: Path | None) -> Path | None:
    """Where a verb writes to. Raises ConfigError for a URL, which would become a folder of its name here."""
    if path is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ConfigError(f"{path} is a URL; this verb writes to a path on this machine", f"give a path, such as {path.name}, and copy it")
    return path


Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key, such as outer.lr=0.002. Can be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster, HOST:PORT (default: RAY_ADDRESS, else a local instance that distmeta starts).")
]
OtherHardware = Annotated[
    bool, typer.Option("--allow-other-hardware", help="Resume on another kind of machine. Results are then not equal bit for bit.")
]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db).")]
Seeds = Annotated[
    Any,  # declared as text: typer would treat a list as an option that can be repeated
    typer.Option(
        parser=parse_seeds,
        metavar="S,S,…",
        help="Train the config once for each of these seeds, and report their mean with its interval over seeds (default: its own seed).",
    ),
]
Network = Annotated[str | None, typer.Option(help="Import path of the model's network, if it is your own class.")]
OwnLearner = Annotated[str | None, typer.Option("--learner", help="Import path of the model's learner, if it is your own class.")]
ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Values of black and white in images that do not have 8 bits (default: the full range of 16-bit integers; "
        "signed, 32-bit and float images are refused).",
    ),
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Maximum pixels of an image.")]


def import_from_here() -> None:
    """Let import paths name modules of the working folder, as `python -m` does."""
    sys.path.append(os.getcwd())


def own_classes(*paths: str | None) -> list[str]:
    """The import paths given for the user's classes, which Python may find in the working folder."""
    import_from_here()
    return [path for path in paths if path is not None]


def imported_of(network: str, learner: str) -> dict[str, str]:
    """The flags that name a run's user-defined network and learner: flag → import path."""
    from distmeta.learners import LEARNERS
    from distmeta.models import MODELS

    return ({"--network": network} if network not in MODELS else {}) | ({"--learner": learner} if learner not in LEARNERS else {})
