"""A run's report: one self-contained HTML file, made from the run folder and a study of its model."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, UndefinedError, select_autoescape
from markupsafe import Markup

from distmeta.inference.card import model_card
from distmeta.learners.description import default_name
from distmeta.report.adaptation import adaptation_curves
from distmeta.report.confidence import confidence
from distmeta.report.figures import Curve, bars, binned, lines
from distmeta.report.section import Plot, Section
from distmeta.training.events import Event, sentence
from distmeta.training.measurement import Measurement, baseline_of, measurement_of, quantity, score_of
from distmeta.training.metrics_folder import OWN_METRICS, Record
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import write_whole
from distmeta.training.stored import LOST

_PARTS = {
    "data": "waiting for episodes",
    "adapt": "adapting, and its gradients",
    "wait": "waiting for other workers",
    "reduce": "sum over workers",
    "update": "update",
    "validate": "validation",
    "log": "records and checkpoints",
}


def write_report(run_folder: RunFolder, sections: Sequence[Section], why_not: str = "") -> None:
    """Write the run's report with the domain's own `sections`; `why_not` is the reason if a domain's sections are missing.

    Raises RunError for an unfinished run.
    """
    result, best = run_folder.read_result(), run_folder.best.read_description()
    records = list(run_folder.metrics.read())
    shown = {
        "test": result["test"],
        "result": result,
        "best": best,
        "summary": _summary(result["test"]),
        "cards": _cards(result["test"]),
        "card": model_card(best | {"test": result["test"]} | {key: result[key] for key in ("calibration",) if key in result}),
        "use": _use(run_folder, best),
        "facts": _facts(records, best["step"], run_folder.restarts(), _losses(run_folder)),
        "sections": [section for section in (_adaptation(result["test"]), confidence(result["test"]), *sections) if section],
        "why_not": why_not,
    }
    _write(run_folder, records, shown)


def write_report_so_far(run_folder: RunFolder) -> None:
    """Write the report of a run that has not ended: its progress, curves and lost workers. The final report replaces it."""
    config, records = run_folder.read_config(), list(run_folder.metrics.read())
    facts = _facts(records, None, run_folder.restarts(), _losses(run_folder))
    reached = records[-1]["step"] if records else 0
    _write(run_folder, records, {"summary": f"This run has not ended: it is at step {reached} of {config.outer.steps}.", "facts": facts})


def _write(run_folder: RunFolder, records: Sequence[Record], shown: dict[str, Any]) -> None:
    """Render the page from `shown` and from what every run has."""
    checkpoint = run_folder.newest_checkpoint()
    of_every_run = {
        "run": run_folder.name,
        "written": f"{datetime.now(UTC):%d %B %Y}",
        "dataset": run_folder.read_dataset(),
        "learning": list(_learning(records)),
        "time": _time(records),
        "machine": checkpoint.written_on() if checkpoint else {},
        "config": run_folder.config_text(),
    }
    environment = Environment(loader=PackageLoader("distmeta.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True)
    try:
        page = environment.get_template("page.html").render(of_every_run | shown)
    except UndefinedError as error:
        raise ValueError(str(error)) from None  # a figure that the page shows is not stored
    write_whole(run_folder.report, page)


def _summary(test: dict[str, Any]) -> str:
    """Whether the run was good, in a sentence: the figure that papers quote, and beside it the one that models are chosen by."""
    ours, theirs = measurement_of(test), baseline_of(test)
    column, other = ours.headline, theirs.headline
    after = f"After {ours.columns[column]} {ours.axis}, its" if ours.axis else "Its"
    guessing = "" if ours.chance is None else f" (guessing: {quantity(ours.chance, None, ours.scale, ours.digits, ours.unit)})"
    gain = score_of(ours.values[column], ours.more_is_better) - score_of(theirs.values[other], ours.more_is_better)
    noise = ((ours.ci95[column] or 0) ** 2 + (theirs.ci95[other] or 0) ** 2) ** 0.5
    if not gain > noise:
        return f"Meta-training shows no gain over the same network without it: {ours.name} {ours.text(column)}{guessing}."
    value = ours.text(column, interval=False)
    if ours.axis is None and ours.selected != column:
        value += f" {ours.columns[column]} and {ours.text(ours.selected, interval=False)} {ours.columns[ours.selected]}"
    return f"{after} {ours.name} on new tasks is {value}; without meta-training it is {theirs.text(other, interval=False)}{guessing}."


def _cards(test: dict[str, Any]) -> list[tuple[str, str]]:
    """The test's figures, each with its name."""
    ours, theirs = measurement_of(test), baseline_of(test)
    named = [f"{ours.name} after {column} {ours.axis}" if ours.axis else f"{column} {ours.name}" for column in ours.columns]
    notes = [f": {note}" for note in ours.notes] or [""] * len(named)
    cards = [(ours.text(i), name + note) for i, (name, note) in enumerate(zip(named, notes, strict=True))]
    untrained = f"the same network not meta-trained, adapted ({theirs.columns[theirs.headline]}{' ' + theirs.axis if theirs.axis else ''})"
    return [*cards, (theirs.text(theirs.headline), untrained)]


class _Use(NamedTuple):
    """How a reader gets the model: its name and address in the registry, the run's page in MLflow, and what to type.

    `link` is the page's URL, empty if it is not one of http. The rest of `page` says how to start a server.
    """

    name: str
    address: str
    page: str
    link: str
    commands: list[str]


def _use(run_folder: RunFolder, best: dict[str, Any]) -> _Use:
    """`runs:/RUN_ID/model` is the model's address before it has a version. Address and page are empty if the run has no MLflow run."""
    record = run_folder.read_mlflow() if run_folder.has_mlflow_run else {}
    address = record.get("model") or (f"runs:/{record['run_id']}/model" if record else "")
    commands = (
        [f"distmeta predict --model {address} --support SUPPORT_FOLDER --query QUERY_FOLDER"] if address and _reads_images(best) else []
    )
    page = record.get("page", "")
    link = page.split()[0] if page.startswith(("http://", "https://")) else ""
    name = run_folder.read_config().tracking.model or default_name(best)
    return _Use(name=name, address=address, page=page.removeprefix(link), link=link, commands=commands)


def _reads_images(best: dict[str, Any]) -> bool:
    return best.get("preprocessing") is not None


def _losses(run_folder: RunFolder) -> list[Event]:
    return [event for event in run_folder.events.read() if event["kind"] in LOST]


def _facts(records: Sequence[Record], best_step: int | None, restarted: Sequence[int], losses: Sequence[Event]) -> list[tuple[str, str]]:
    """Facts about the training, as name and value; `best_step` is None for an unfinished run."""
    workers: list[tuple[int, int]] = []  # (first step, number of workers)
    for record in records:
        count = len(set(record.get("ranks", [])))
        if count and (not workers or workers[-1][1] != count):
            workers.append((record["step"], count))
    skipped = [record["step"] for record in records if "bad_slot" in record]
    seconds = sum(sum(_times(record).values()) for record in records)
    episodes = sum(len(record.get("ranks", [])) for record in records)
    facts = [
        ("steps", f"{len(records)}" if best_step is None else f"{len(records)}, best at {best_step}"),
        ("workers", ", ".join(f"{count} from step {step}" for step, count in workers)),
        ("continued after a failure, or by --resume", ", ".join(f"from step {step}" for step in restarted) or "never"),
        *((f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M:%S} UTC", sentence(event)) for event in losses),
        ("steps skipped (meta-gradient not finite)", ", ".join(map(str, skipped[:10])) or "none"),
    ]
    if seconds:
        facts.append(
            ("throughput", f"{len(records) / seconds:.3g} steps/s, {episodes / seconds:.3g} episodes/s over {seconds / 60:.1f} min")
        )
    return facts


def _times(record: Record) -> dict[str, float]:
    return {key.removeprefix("time/"): value for key, value in record.items() if key.startswith("time/")}


def _learning(records: Sequence[Record]) -> Iterator[Plot]:
    """Meta-loss, and training and validation scores, over the steps."""
    losses = _binned(records, "meta_loss")
    if losses:
        yield _over_steps(losses, "meta-loss")
    validations = [(record["step"], measurement_of(record["validation"])) for record in records if "validation" in record]
    if validations:
        measurement = validations[0][1]
        yield _over_steps([*_binned(records, measurement.name, measurement.scale), *_validations(validations)], measurement.label)
    for key in dict.fromkeys(key for record in records for key in record if key.startswith(OWN_METRICS)):
        if own := _binned(records, key):
            yield _over_steps(own, key.removeprefix(OWN_METRICS))


def _validations(validations: Sequence[tuple[int, Measurement]]) -> Iterator[Curve]:
    """A curve for each measured column; if columns count inner steps, for the last one only."""
    first = validations[0][1]
    for column in [first.selected] if first.axis else reversed(range(len(first.columns))):
        points = [(step, *measurement.shown(column)) for step, measurement in validations]
        yield Curve(f"validation, {first.columns[column]} {first.axis or ''}".rstrip(), *zip(*points, strict=True))


def _binned(records: Sequence[Record], key: str, scale: float = 1.0) -> list[Curve]:
    kept = [record for record in records if record.get(key) is not None]
    return [binned([record["step"] for record in kept], [scale * record[key] for record in kept], "training tasks")] if kept else []


def _over_steps(curves: Sequence[Curve], label: str) -> Plot:
    caption = f"{label[0].upper()}{label[1:]} over the steps. Bands are 95 % intervals of the means."
    return Plot(Markup(lines(curves, "step", label)), caption)


def _adaptation(test: dict[str, Any]) -> Section | None:
    """The score on new tasks after 0, 1, … inner steps, if it was measured."""
    measurement = measurement_of(test)
    if measurement.axis is None:
        return None
    plot = lines(adaptation_curves(test), measurement.axis, measurement.label, "o")
    return Section("Adaptation", "", [Plot(Markup(plot), f"{measurement.label} of {measurement.episodes} test episodes.")])


def _time(records: Sequence[Record]) -> Plot | None:
    parts = [_times(record) for record in records]
    if not any(parts):
        return None
    means = {key: sum(part.get(key, 0) for part in parts) / len(parts) for key in _PARTS}
    plot = bars(list(_PARTS.values()), [1000 * value for value in means.values()], "milliseconds a step")
    return Plot(Markup(plot), "Average time of a step on worker 0, by activity.")
