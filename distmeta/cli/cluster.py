"""Verbs about a Ray cluster: submit, jobs, doctor."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distmeta.cli.options import Address, Json, TrackingUri
from distmeta.errors import ConfigError
from distmeta.show import print_json, say, show_table

Head = Annotated[str, typer.Option("--address", help="The head's dashboard, http://HEAD:8265.", envvar="RAY_API_SERVER_ADDRESS")]


def submit(
    context: typer.Context,
    verb: Annotated[Literal["train", "sweep", "evaluate", "pack"], typer.Argument(help="Verb to run on the cluster.")],
    address: Head = ...,  # type: ignore[assignment]
    include: Annotated[list[Path] | None, typer.Option(help="File or folder to send along, never data. Can be repeated.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Override a key of the config. Can be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Id of the job (default: chosen by Ray).")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
) -> None:
    """Run a verb on a Ray cluster with this distmeta and your config. Arguments after the verb are passed to it.

    Example: distmeta submit train configs/quickstart.yaml --set run_folder=/shared/runs/1 --address http://head:8265 --resume
    """
    from distmeta.config import load_config
    from distmeta.scale.submit import submit as start
    from distmeta.training.run_folder import CONFIG

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
    """The paths and URLs among a verb's arguments, by option, without the config. Arguments that the verb does not accept are refused."""
    group = context.find_root().command
    command = group.commands[verb]  # type: ignore[attr-defined]
    parsed = command.make_context(verb, list(arguments), parent=context.parent)
    named = {parameter.name: max(parameter.opts, key=len) for parameter in command.params}
    return {
        named[name] if named[name].startswith("-") else name.upper(): str(value)
        for name, value in parsed.params.items()
        if name != "config" and (isinstance(value, Path) or (name in ("shards", "tracking_uri") and value is not None))
    }


def jobs(
    action: Annotated[Literal["list", "logs", "stop", "follow"], typer.Argument(help="What to do.")] = "list",
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="Id of the job. Leave it out for list.", show_default=False)] = None,
    address: Head = ...,  # type: ignore[assignment]
    as_json: Json = False,
) -> None:
    """List the jobs of a cluster, print or follow the log of a job, or stop it.

    Example: distmeta jobs logs raysubmit_8QzX --address http://head:8265
    """
    from distmeta.scale import submit as there

    if action != "list" and job_id is None:
        raise ConfigError(f"jobs {action} needs a job's id", f"distmeta jobs {action} ID; distmeta jobs list names them")
    if job_id is None or action == "list":
        rows = there.list_jobs(address)
        print_json(rows) if as_json else show_table(["job", "status", "verb", "run folder", "start", "duration", "who"], _cells(rows))
    elif action == "logs":
        print(there.logs(address, job_id), end="")
    elif action == "follow":
        _follow(address, job_id)
    else:
        there.stop(address, job_id)
        say(f"job {job_id} was asked to stop")


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Jobs for people: local times, and the command of a job that distmeta did not submit."""
    cells = []
    for row in rows:
        began, until = row["began"], row["ended"] or time.time()
        start = time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) if began else ""
        duration = str(timedelta(seconds=round(max(until - began, 0)))) if began else ""
        cells.append([row["id"], row["status"], row["verb"] or row["command"], row["run_folder"], start, duration, row["who"]])
    return cells


def _follow(address: str, job_id: str) -> None:
    """Print a job's log as it grows, and exit with the job's exit code."""
    from distmeta.scale.submit import follow

    def ask() -> bool:
        if not sys.stdin.isatty():
            return False
        return typer.confirm("Stop the job? (no: only stop watching it)", default=False, err=True)

    code = follow(address, job_id, sys.stdout, ask)
    if code:
        raise typer.Exit(code)


def doctor(
    shards: Annotated[str | None, typer.Option(help="Also check that this packed dataset can be read.")] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Check what is installed and reachable, with a remedy for each problem. Exit code 1 if a check fails.

    Example: distmeta doctor --shards data/omniglot
    """
    say("checking; starting Ray takes some seconds")
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
