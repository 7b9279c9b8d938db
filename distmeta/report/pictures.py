"""A study of test episodes as sections of a report: adaptation, the episodes, and errors between categories."""

import base64
import io

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from distmeta.report.figures import Curve, lines, matrix
from distmeta.report.section import Plot, Row, Section, Tile
from distmeta.report.study import Pictured, PicturedEpisode, Study
from distmeta.training.intervals import mean_and_ci95

_CATEGORIES_SHOWN = 30


def sections_of(study: Study, way: int) -> list[Section]:
    """The sections of the page that show `study`, of episodes with `way` classes. Learners without inner steps have no adaptation plot."""
    rows = [row for number, episode in enumerate(study.pictured, 1) for row in _rows(number, episode, study)]
    seen = "The first test episodes: their support images, and predictions for queries that are classified one by one."
    return [
        *([Section("Adaptation", "", [_adaptation(study, way)])] if study.trained.shape[1] > 1 else []),
        Section("Episodes", seen, rows=rows),
        Section("Errors between categories", "", [_confusion(study.confused)]),
    ]


def _adaptation(study: Study, way: int) -> Plot:
    curves = [_curve("meta-trained", study.trained), _curve("not meta-trained", study.random_init)]
    text = (
        f"Inductive accuracy on the queries of the first {len(study.trained)} test episodes; at 0 steps the network is not adapted. "
        "Bands are 95 % intervals."
    )
    return Plot(Markup(lines(curves, "inner steps", "query accuracy (%)", "o", floor=100 / way)), text)


def _curve(name: str, by_episode: Tensor) -> Curve:
    figures = [mean_and_ci95(column.numpy()) for column in (100 * by_episode).unbind(1)]
    means, halves = ([np.nan if value is None else value for value in values] for values in zip(*figures, strict=True))
    return Curve(name, list(range(len(means))), means, halves)


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
        "Each cell is the share of queries of the row's category that were predicted as another class of the episode, of the column's "
        f"category. Empty cells: no episode had both.{shown}"
    )
    return Plot(Markup(matrix([_short(name) for name in names], values, "predicted category", "true category", "share of queries")), text)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _rows(number: int, episode: PicturedEpisode, study: Study) -> list[Row]:
    support = [Tile(_png(image, study), name, f"support image of {name}") for image, name in episode.support]
    return [Row(f"Episode {number}: support", support), Row("queries", [_query(query, study) for query in episode.queries])]


def _query(query: Pictured, study: Study) -> Tile:
    right = query.truth == query.said
    said = f"✓ {query.said}" if right else f"✗ {query.said}, is {query.truth}"
    caption = f"{said} ({100 * query.probability:.0f}\N{NO-BREAK SPACE}%)"
    return Tile(_png(query.image, study), caption, f"query of {query.truth}", "right" if right else "wrong")


def _png(image: Tensor, study: Study) -> str:
    mean, std = (np.array(values)[:, None, None] for values in (study.preprocessing_mean, study.preprocessing_std))
    pixels = (255 * (image.cpu().double().numpy() * std + mean)).round().clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
