"""The command line: one verb for each procedure, nothing else. A verb is a function of the module whose subject it has."""

import sys
from collections.abc import Callable

import typer

from distmeta import terminal
from distmeta.cli import cluster, data, inference, registry, results, runs
from distmeta.errors import DistmetaError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

VERBS: tuple[Callable[..., None], ...] = (
    runs.init,
    data.pack,
    data.verify,
    data.inspect,
    runs.config,
    runs.train,
    runs.sweep,
    cluster.submit,
    cluster.jobs,
    registry.models,
    registry.publish,
    registry.sync,
    registry.promote,
    registry.compare,
    inference.predict,
    inference.rollout,
    inference.evaluate,
    results.table,
    runs.report,
    cluster.doctor,
)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # what follows submit's verb is that verb's

for verb in VERBS:
    app.command(context_settings=_PASSED_ON if verb is cluster.submit else None)(verb)

_KEPT = {"init", "train", "sweep", "pack", "publish", "promote", "sync", "submit"}  # verbs whose results are not only printed


@app.callback()
def _about() -> None:
    """Few-shot meta-training at cluster scale."""


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
