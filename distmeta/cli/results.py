"""Verbs that show the state and results of runs: status, table."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distmeta.cli.options import Json, TrackingUri
from distmeta.errors import RunError
from distmeta.masking import printable, printable_lines
from distmeta.show import print_json

if TYPE_CHECKING:
    from distmeta.training.run_folder import RunFolder


def status(
    run: Annotated[
        str, typer.Argument(help="Folder of a run, of several seeds or of a sweep, or its URL. With --address, the id of a submitted job.")
    ],
    address: Annotated[
        str | None, typer.Option(help="Address of the head's dashboard (http://HEAD:8265), for the state of a submitted job.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Print it again whenever it changes, until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print the state of a run from anywhere: step, speed, time left, workers by node, last validation, and what happened to it.

    Example: distmeta status runs/omniglot_5way_1shot_maml --watch
    """
    from distmeta.report.status import lines, watched
    from distmeta.report.status import status as look
    from distmeta.training.run_folder import RunFolder

    folder = RunFolder(run) if address is None else _folder_of_job(address, run)
    for answer in watched(folder) if watch else [look(folder)]:
        if as_json:
            print_json(answer)
        else:
            print("\n".join(map(printable, lines(answer))), flush=True)


def _folder_of_job(address: str, job_id: str) -> "RunFolder":
    """Raises ClusterError, or RunError if the job's run has not begun or cannot be read here."""
    from distmeta.scale.submit import run_folder_of
    from distmeta.training.run_folder import RunFolder

    folder = RunFolder(run_folder_of(address, job_id))
    with suppress(OSError):
        if folder.holds_run:
            return folder
    raise RunError(
        f"job {job_id} writes {folder}, where this machine finds no run",
        f"wait until the run has begun, or read the job's log: distmeta jobs logs {job_id} --address {address}",
    )


def table(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of runs, of several seeds or of sweeps, and registered models (models:/NAME for all its versions)."),
    ],
    by: Annotated[
        str, typer.Option(metavar="FACT,…", help="What the rows are: learner, network, dataset, run, learner.inner_lr, …")
    ] = "learner",
    columns: Annotated[str, typer.Option(metavar="FACT,…", help="What the columns are: shot, way, dataset, …")] = "shot",
    figure: Annotated[str | None, typer.Option(help="Score to tabulate, such as inductive (default: the one that papers quote).")] = None,
    form: Annotated[Literal["text", "csv", "latex", "markdown"], typer.Option("--format", help="How the table is written.")] = "text",
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Tabulate the tests of runs, with intervals. Cells that a paired test cannot separate from a column's best are bold.

    Example: distmeta table runs/maml runs/protonet runs/anil --by learner --columns shot --format latex
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.report.outcomes import outcomes
    from distmeta.report.table import tabulate
    from distmeta.report.table_text import as_dict, written

    uri = resolve(tracking_uri)
    tested = [outcome for run in runs for outcome in outcomes(run, uri)]
    made = tabulate(tested, _listed(by), _listed(columns), figure)
    print_json(as_dict(made)) if as_json else print(printable_lines(written(made, form)))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
