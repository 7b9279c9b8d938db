"""The output of the command line for people: lines, tables, progress."""

import csv
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from rich.cells import cell_len
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from distmeta.errors import RunError
from distmeta.masking import masked_tree, printable
from distmeta.terminal import Display, console
from distmeta.training.measurement import KEY, Measurement, baseline_name, baseline_of, measurement_of

if TYPE_CHECKING:
    from distmeta.data.image_files import LeftOut
    from distmeta.inference.predict import FileReader, Prediction, Score, Support

T = TypeVar("T")
_MARKS = {True: "right", False: "wrong", None: ""}


def say(text: str) -> None:
    """A line for people: standard error, so that standard output holds results alone."""
    console(sys.stderr).print(printable(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object, or list, on a line of standard output. NaN and infinities are not JSON: they become null."""
    print(json.dumps(masked_tree(_finite(value)), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_table(columns: list[str], rows: list[list[str]], file: TextIO | None = None) -> None:
    """A table of text on `file` (default: standard output). On a terminal too narrow for its words, a list: no header or address is cut."""
    file = file or sys.stdout
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = _widths(list(zip(columns, *rows, strict=True)), console(file).width)
    if widths is None:
        print("\n\n".join("\n".join(f"{name}: {cell}" for name, cell in zip(columns, row, strict=True) if cell) for row in rows), file=file)
        return
    table = Table()
    for name, width in zip(columns, widths, strict=True):
        table.add_column(name, width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console(file).print(table)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The widths of a table's columns that cut no word, in `room` terminal columns; None if the words need more.

    Beyond their longest words, the columns that need least get their whole width first.
    """
    widths = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    missing = [max(map(cell_len, column)) - width for column, width in zip(columns, widths, strict=True)]
    room -= 1 + 3 * len(columns) + sum(widths)  # each column has a border and two spaces
    if room < 0:
        return None
    for position, column in enumerate(sorted(range(len(columns)), key=missing.__getitem__)):
        added = min(missing[column], room // (len(columns) - position))
        widths[column] += added
        room -= added
    return widths


def write_predictions(predictions: "Iterable[Prediction]", form: str, keep: bool) -> "list[Prediction]":
    """Print predictions, in csv and jsonl as they come, in a table the wrong ones first; returns those printed if they are needed again."""
    kept = []
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["file", "class", "probability", "truth", "right", "rejected"])
    for prediction in predictions:
        if form == "csv":
            writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in prediction.as_dict().values()])
        elif form == "jsonl":
            print_json(prediction.as_dict())
        if keep or form in ("table", "json"):
            kept.append(prediction)
    if form == "json":
        print_json([prediction.as_dict() for prediction in kept])
    elif form == "table":
        _show_predictions(kept)
    return kept


def _show_predictions(predictions: "list[Prediction]") -> None:
    """A table with the wrong ones first, and columns for the truth if any of it is known."""
    from distmeta.inference.predict import wrong_first

    known = any(prediction.truth is not None for prediction in predictions)
    rejected = any(prediction.rejected for prediction in predictions)
    rows = [
        [str(p.file), p.label, f"{p.probability:.3f}", "rejected" if p.rejected else _MARKS[p.right], p.truth or ""]
        for p in wrong_first(predictions)
    ]
    columns = ["file", "class", "probability", "result", "truth"]
    width = len(columns) if known else 4 if rejected else 3
    show_table(columns[:width], [row[:width] for row in rows])


def show_classes(score: "Score", classes: "Iterable[str]") -> None:
    """The counts of each class, on standard error: what its labelled queries were taken for, or how many queries it was given to."""
    rows = score.by_class(classes)
    if score.labelled:
        taken = [", ".join(f"{name} {count}" for name, count in row.taken_for) for row in rows]
        cells = [[row.name, str(row.labelled), str(row.right), str(row.predicted), names] for row, names in zip(rows, taken, strict=True)]
        show_table(["class", "queries", "right", "predicted", "taken for"], cells, sys.stderr)
    else:
        show_table(["class", "predicted"], [[row.name, str(row.predicted)] for row in rows], sys.stderr)


def prediction_notes(score: "Score", reader: "FileReader", support: "Support", left_out: "LeftOut") -> Iterator[str]:
    """What is worth saying after predictions, in sentences."""
    yield from support_notes(reader, support, left_out)
    if score.rejected:
        yield f"rejected {score.rejected} of {score.asked} queries"
    if score.asked and not score.known:
        yield "accuracy is unknown: no query is in a folder named like a class of the support set"
    if score.labelled:
        accuracy, low, high = score.accuracy()
        line = (
            f"accuracy {100 * accuracy:.1f} %: {score.right} of {score.labelled} right, 95% interval {100 * low:.1f} to {100 * high:.1f} %"
        )
        accepted = score.asked - score.rejected
        labelled = "" if score.labelled == accepted else f"; {score.labelled} of {accepted} labelled"
        yield f"{line}, this support set alone{labelled}"


def support_notes(reader: "FileReader", support: "Support", left_out: "LeftOut") -> Iterator[str]:
    """What is worth saying of the files that were read, in sentences."""
    if left_out.counts:
        yield str(left_out)
    if reader.several:
        yield f"{reader.several} files are animated or have several pages; the first picture of each was read"
    if support.copies:
        first, second = support.copies[0]
        yield f"{len(support.copies)} support images are copies of another one, such as {first} and {second}"


def show_test(test: dict[str, Any]) -> None:
    """The final test as a table: a row for each figure, a column for each network."""
    ours = measurement_of(test)
    networks = {"meta-trained": ours, f"{baseline_name(test)}, adapted": baseline_of(test)}
    networks |= {name: measurement_of(other) for name, other in test.get("beside", {}).items()}
    rows = [[column, *(_cell(network, column) for network in networks.values())] for column in ours.columns]
    if "beside" in test:
        differences = [ours.difference(other["difference"], other["difference_ci95"]) for other in test["beside"].values()]
        rows.append([f"this run minus it, {ours.columns[ours.headline]}, paired", "", "", *differences])
    say(
        f"test, {ours.name}, {test['way']}-way {test['shot']}-shot, {test['queries']} queries, {test['episodes']} episodes "
        f"(seed {test['seed']}), {test['inner_steps']} inner steps, norm {test['norm']}:"
    )
    show_table([ours.axis or ours.name, *networks], rows)
    for note in calibration_notes(test):
        say(note)


def calibration_notes(test: dict[str, Any]) -> Iterator[str]:
    """How far a test's probabilities are from its accuracy, in a sentence, if that was measured."""
    if "calibration" not in test:
        return
    found = test["calibration"]
    before, after = (
        f"{100 * each['error']:.1f} % ({' to '.join(f'{100 * end:.1f}' for end in each['interval'])} %)"
        for each in (found["before"], found["after"])
    )
    fitted = f"the temperature {found['temperature']:.3g} fitted for {found['way']}-way {found['shot']}-shot"
    yield f"expected calibration error of inductive probabilities: {before} as the network gives them, {after} at {fitted}"


def show_seeds(result: dict[str, Any]) -> None:
    """The tests of runs that differ in their seed alone, and their mean with its two intervals."""
    test, runs = result["runs"][0]["test"], result["runs"]
    seeds, episodes = (measurement_of({KEY: result[kind]}) for kind in ("over_seeds", "over_episodes"))
    each = {f"seed {run['training_seed']}": measurement_of(run["test"]) for run in runs}
    say(
        f"test, {seeds.name}, {test['way']}-way {test['shot']}-shot, {test['queries']} queries, {test['episodes']} episodes "
        f"(seed {test['seed']}), {test['inner_steps']} inner steps, norm {test['norm']}; 95 % intervals of the mean over {len(runs)} seeds "
        "(another run of this config) and over episodes (these networks):"
    )
    rows = []
    for number, column in enumerate(seeds.columns):
        single = [measurement.text(number, interval=False) for measurement in each.values()]
        rows.append([column, *single, seeds.text(number), episodes.text(number)])
    show_table([seeds.axis or seeds.name, *each, "mean, over seeds", "mean, over episodes"], rows)


def _cell(measurement: Measurement, column: str) -> str:
    return measurement.text(measurement.columns.index(column)) if column in measurement.columns else ""


def show_schedule(history: list[dict[str, Any]]) -> None:
    """Which values the winner of a population had from when on, and whose checkpoints it continued from, if they changed."""
    if len(history) > 1:
        say("those are the last values of a schedule: " + "; ".join(_part(part) for part in history))


def _part(part: dict[str, Any]) -> str:
    values = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in part["params"].items())
    followed = "" if part["from"] is None else f" (with the weights of trial {part['from']})"
    return f"from step {part['step']}{followed} {values}"


def show_advance(fresh: dict[str, Any]) -> None:
    """The winner of a sweep on validation episodes that no trial saw, and how far it is ahead of trial 0 there."""
    ours = measurement_of(fresh)
    line = f"on {fresh['episodes']} validation episodes that no trial saw: {ours.name} {ours.text(ours.selected)}"
    if "advance" in fresh:
        difference = ours.difference(fresh["advance"], fresh["advance_ci95"])
        line += f"; difference to trial 0 (the config without changes) {difference}, paired"
    say(f"{line} ({ours.columns[ours.selected]} {ours.axis or ''}".rstrip() + ")")


def show_advance_over_seeds(seeds: dict[str, Any], fresh: dict[str, Any]) -> None:
    """How far a sweep's winner is ahead of trial 0 over several training seeds."""
    ours = measurement_of(fresh)
    for name, title in (("winner", "the winner's config"), ("trial_0", "trial 0's")):
        if name in seeds:
            tested = measurement_of({KEY: seeds[name]["over_seeds"]})
            say(f"{title}, trained with seeds {', '.join(map(str, seeds['seeds']))}: test {tested.summary} over seeds")
    if "advance" in seeds:
        over_seeds, over_episodes = (
            ours.difference(seeds["advance"], seeds[f"advance_ci95_over_{kind}"]) for kind in ("seeds", "episodes")
        )
        say(f"on validation episodes that no trial saw the winner's is ahead by {over_seeds} over seeds ({over_episodes} over episodes)")


def summary(row: dict[str, Any]) -> str:
    """What a registered model came to on its test, "?" where its tags do not say it."""
    try:
        return measurement_of(row).summary
    except (RunError, TypeError, ValueError, LookupError):  # anybody may have changed a tag
        return "?"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


def counted(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass items through, with count, rate and time left: a bar on a terminal, elsewhere a line every ten seconds."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Display(sys.stderr, lambda console: Progress(*columns, console=console, transient=True)) as display:
        if display.console.is_terminal:
            yield from display.live.track(items, description=what, total=total)
            return
        before = 0
        for count, item in enumerate(items, 1):
            yield item
            if (seconds := display.line_due()) is not None:
                rate = (count - before) / seconds  # the last seconds': a resumed pack passes quickly over what it has
                of = f" of {total:,}, {max(0, total - count) / rate:,.0f} s left" if total else ""
                say(f"{what}: {count:,}{of}, {rate:,.0f}/s")
                before = count


def _program() -> str:
    if shutil.which("distmeta"):
        return "distmeta"
    if os.path.basename(sys.argv[0]) == "distmeta":
        path = os.path.relpath(sys.argv[0])
        return shlex.quote(path if os.sep in path else f"./{path}")
    return f"{shlex.quote(sys.executable)} -m distmeta"  # started by python -m, python -c or a script


def next_commands(shards: str, model: str, way: int, shot: int, tracking_uri: str | None, own: Mapping[str, str]) -> None:
    """The commands that show the model at work, as they must be typed here; `own` holds import paths of the user's classes, by flag."""
    program = _program()
    uri = f" --tracking-uri {shlex.quote(tracking_uri)}" if tracking_uri else ""
    classes = "".join(f" {flag} {shlex.quote(name)}" for flag, name in own.items())
    say("next:")
    say(f"  {program} inspect {shlex.quote(shards)} --way {way} --shot {shot} --export episode")
    say(f"  {program} predict --model {model}{classes} --support episode/support --query episode/query{uri}")
    say(f"  {program} models{uri}")
