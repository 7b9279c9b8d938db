"""A run's report: one HTML file that needs nothing beside it, from what the run folder holds and what a study of its model found."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from distmeta.report.adaptation import adaptation_curves
from distmeta.report.figures import Curve, bars, binned, lines, matrix
from distmeta.report.study import PicturedEpisode, Study
from distmeta.training.metrics import Record
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import write_whole

_PARTS = {
    "data": "waiting for episodes",
    "adapt": "adapting, and its gradients",
    "wait": "waiting for other workers",
    "reduce": "sum over workers",
    "update": "update",
    "validate": "validation",
    "log": "records and checkpoints",
}
_CATEGORIES_SHOWN = 30


class Plot(NamedTuple):
    """An SVG and what it shows, in a sentence."""

    svg: Markup
    caption: str


def write_report(run_folder: RunFolder, study: Study | None, why_not: str = "") -> None:
    """Write the run's report; `why_not` says what kept us from a study, if there is none. Raises RunError for an unfinished run."""
    result, best = run_folder.read_result(), run_folder.best.read_description()
    records = list(run_folder.metrics.read())
    checkpoint = run_folder.newest_checkpoint()
    environment = Environment(loader=PackageLoader("distmeta.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True)
    page = environment.get_template("page.html").render(
        run=run_folder.name,
        test=result["test"],
        result=result,
        best=best,
        dataset=run_folder.read_dataset(),
        summary=_summary(result["test"]),
        facts=_facts(records, best, run_folder.restarts()),
        learning=list(_learning(records)),
        adaptation=_adaptation(result["test"], study, best["task"]["way"]),
        episodes=[_pictures(episode, study) for episode in study.pictured] if study else [],
        confusion=_confusion(study.confused) if study else None,
        studied=len(study.trained) if study else 0,
        why_not=why_not,
        time=_time(records),
        machine=checkpoint.written_on() if checkpoint else {},
        config=run_folder.config_text(),
    )
    write_whole(run_folder.report, page)


def _summary(test: dict[str, Any]) -> str:
    """Whether the run was good, in a sentence."""
    if "mse_by_step" in test:
        last = max(test["mse_by_step"], key=int)
        ours, theirs = test["mse_by_step"][last], test["random_init"][last]
        return f"After {last} inner steps its squared error on new tasks is {ours:.3g}; without meta-training it is {theirs:.3g}."
    gain = test["accuracy"] - test["random_init"]
    noise = (test["ci95"] ** 2 + test["random_init_ci95"] ** 2) ** 0.5
    guessing = f"guessing would be right {100 / test['way']:.0f} % of the time"
    if gain <= noise:
        return f"Meta-training shows no gain over the same network at its random initialisation ({guessing})."
    return (
        f"On classes it never saw, it is right {100 * test['accuracy']:.1f} % of the time; the same network without meta-training "
        f"{100 * test['random_init']:.1f} % ({guessing})."
    )


def _facts(records: Sequence[Record], best: dict[str, Any], restarted: Sequence[int]) -> list[tuple[str, str]]:
    """What happened on the way, as name and value."""
    workers: list[tuple[int, int]] = []  # since which step how many
    for record in records:
        count = len(set(record.get("ranks", [])))
        if count and (not workers or workers[-1][1] != count):
            workers.append((record["step"], count))
    skipped = [record["step"] for record in records if "bad_slot" in record]
    seconds = sum(sum(_times(record).values()) for record in records)
    episodes = sum(len(record.get("ranks", [])) for record in records)
    facts = [
        ("steps", f"{len(records)}, best at {best['step']}"),
        ("workers", ", ".join(f"{count} from step {step}" for step, count in workers)),
        ("went on after a failure, or by --resume", ", ".join(f"from step {step}" for step in restarted) or "never"),
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
    """Meta-loss, and accuracy or validation error, over the steps."""
    for key, label in (("meta_loss", "meta-loss"), ("accuracy", "accuracy")):
        curves = []
        found = [record for record in records if record.get(key) is not None]
        if found:
            curves.append(binned([record["step"] for record in found], [record[key] for record in found], "training tasks"))
        if key == "accuracy":
            curves += _validations(records)
        if curves:
            yield Plot(Markup(lines(curves, "step", label)), f"{label} over the steps; bands are 95 % intervals of the means.")


def _validations(records: Sequence[Record]) -> list[Curve]:
    found = [record for record in records if "accuracy" in record.get("validation", {})]
    steps = [record["step"] for record in found]
    kinds = (("accuracy_inductive", "ci95_inductive", "validation, inductive"), ("accuracy", "ci95", "validation, transductive"))
    return [Curve(name, steps, [r["validation"][y] for r in found], [r["validation"][ci] for r in found]) for y, ci, name in kinds if found]


def _adaptation(test: dict[str, Any], study: Study | None, way: int) -> Plot | None:
    """Accuracy, or squared error, on new tasks after 0, 1, … inner steps."""
    if "mse_by_step" in test:
        text = f"Squared error on the queries of {test['episodes']} test tasks."
        return Plot(Markup(lines(adaptation_curves(test), "inner steps", "squared error", "o")), text)
    if study is None:
        return None
    curves = [_curve("meta-trained", study.trained), _curve("random initialisation", study.random_init)]
    text = (
        f"Inductive accuracy on the queries of the first {len(study.trained)} test episodes; at 0 steps a network is not adapted. "
        "Bands are 95 % intervals."
    )
    return Plot(Markup(lines(curves, "inner steps", "query accuracy", "o", floor=1 / way)), text)


def _curve(name: str, by_episode: Tensor) -> Curve:
    half = 1.96 * by_episode.std(0) / len(by_episode) ** 0.5
    return Curve(name, list(range(by_episode.shape[1])), by_episode.mean(0).tolist(), half.tolist())


def _confusion(confused: dict[tuple[str, str], tuple[int, int]]) -> Plot:
    weight: dict[str, int] = {}
    for (a, _), (_, chances) in confused.items():
        weight[a] = weight.get(a, 0) + chances
    names = sorted(sorted(weight, key=lambda name: -weight[name])[:_CATEGORIES_SHOWN])
    values = np.full((len(names), len(names)), np.nan)
    for (a, b), (taken, chances) in confused.items():
        if a in names and b in names:
            values[names.index(a), names.index(b)] = taken / chances
    shown = f" The {len(names)} most frequent of {len(weight)} categories." if len(names) < len(weight) else ""
    text = (
        "How often a query of the row's category was taken for another class of the episode, of the column's category: a part of the "
        f"occasions.{shown} Empty where there was no occasion."
    )
    return Plot(Markup(matrix([_short(name) for name in names], values, "taken for", "category")), text)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _time(records: Sequence[Record]) -> Plot | None:
    parts = [_times(record) for record in records]
    if not any(parts):
        return None
    means = {key: sum(part.get(key, 0) for part in parts) / len(parts) for key in _PARTS}
    plot = bars(list(_PARTS.values()), [1000 * value for value in means.values()], "milliseconds a step")
    return Plot(Markup(plot), "Where a step's time went on worker 0, on average.")


def _pictures(episode: PicturedEpisode, study: Study) -> dict[str, Any]:
    """What the template shows of an episode, its images as PNG in text."""

    def png(image: Tensor) -> str:
        mean, std = (np.array(values)[:, None, None] for values in (study.preprocessing_mean, study.preprocessing_std))
        pixels = (255 * (image.cpu().double().numpy() * std + mean)).round().clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    return {
        "support": [(png(image), name) for image, name in episode.support],
        "queries": [(png(query.image), query) for query in episode.queries],
    }
