"""Options that several verbs take."""

import os
import sys
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster; RAY_ADDRESS, else a local instance of our own, if absent.")]
OtherHardware = Annotated[bool, typer.Option("--allow-other-hardware", help="Resume on another kind of machine.")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow tracking URI; MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here, if absent.")
]
Network = Annotated[str | None, typer.Option(help="Import path of the model's network, if it is a class of your own.")]
OwnLearner = Annotated[str | None, typer.Option("--learner", help="Import path of the model's learner, if it is a class of your own.")]
ValueRange = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="The values that are black and white in images that do not have 8 bits (default: 16-bit integers by their full range; "
        "signed, 32-bit and float images are refused).",
    ),
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Pixels that an image may have at most.")]


def import_from_here() -> None:
    """Let import paths name modules of the working folder, as `python -m` does."""
    sys.path.append(os.getcwd())


def own_classes(*paths: str | None) -> list[str]:
    """The import paths that were given, of classes that Python finds from the working folder."""
    import_from_here()
    return [path for path in paths if path is not None]
