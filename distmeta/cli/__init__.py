"""The command line: one verb for each procedure, nothing else. Each verb is a function in the module of its subject."""

import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from distmeta import terminal
from distmeta.cli import cluster, data, inference, registry, results, runs
from distmeta.errors import ConfigError, DistmetaError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

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
    registry.publish_adapted,
    registry.sync,
    registry.promote,
    registry.compare,
    inference.predict,
    inference.rollout,
    inference.evaluate,
    results.status,
    results.table,
    runs.report,
    cluster.doctor,
)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # arguments after submit's verb belong to that verb

for verb in VERBS:
    app.command(verb.__name__.replace("_", "-"), context_settings=_PASSED_ON if verb is cluster.submit else None)(verb)

_KEPT = {
    "init",
    "train",
    "sweep",
    "pack",
    "publish",
    "publish-adapted",
    "promote",
    "sync",
    "submit",
}  # verbs whose results are not only printed


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distmeta {version('distmeta')}")
        raise typer.Exit


@app.callback()
def _about(
    _: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")] = False,
) -> None:
    """Few-shot meta-training at cluster scale."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("the working folder is gone: it was removed or renamed", "change to a folder that exists (cd)") from None


def main() -> None:
    """Run the command line; an error becomes two lines and an exit code. A traceback is shown only with --debug."""
    if "_DISTMETA_COMPLETE" in os.environ:  # a shell asks how to complete a line
        app(prog_name="distmeta")
    terminal.prepare()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        code = _called(sys.argv[1:])
    except Exception as error:
        if debug:
            raise
        known = error if isinstance(error, DistmetaError) else _usage(error) or _unexpected(error)
        print(f"distmeta: {known.message}\n  {known.remedy}", file=sys.stderr)
        code = known.exit_code
    finally:
        _report_lost()
    sys.exit(code)


def _called(arguments: list[str]) -> int:
    """The verb's exit code. Typer's own main would print the arguments, secrets included, and exit silently at any broken pipe."""
    command = typer.main.get_command(app)
    try:
        if not arguments:
            print(command.get_help(command.make_context("distmeta", ["--help"], resilient_parsing=True)), file=sys.stderr)
            return 2
        with command.make_context("distmeta", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        for number in (signal.SIGINT, signal.SIGTERM):  # `timeout` sends two
            signal.signal(number, signal.SIG_IGN)
        print("distmeta: interrupted\n  give the same command again", file=sys.stderr)
        return 130
    return 0


def _report_lost() -> None:
    """Say that results could not be printed. Exit code 1 if the results are not stored anywhere else."""
    lost = terminal.lost_output()
    if lost is not None:
        print(
            f"distmeta: standard output could not be written: {lost.strerror}\n  give the same command again where there is room",
            file=sys.stderr,
        )
        if not _KEPT.intersection(sys.argv[1:2]) or "--json" in sys.argv:
            sys.exit(1)


def _usage(error: Exception) -> DistmetaError | None:
    """The argument that no verb accepts, or None if that is not the error."""
    said, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if said is None:
        return None
    command = context.command_path if context is not None else "distmeta"
    return ConfigError(" ".join(said().split()).rstrip("."), f"{command} --help lists what it takes")


def _unexpected(error: Exception) -> DistmetaError:
    reason = " ".join(str(error).split())[:300]
    return DistmetaError(f"unexpected {type(error).__name__}: {reason}", "run it again with --debug to see where, and report it")
