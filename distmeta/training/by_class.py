"""The accuracy of a test by class and category."""

from collections import Counter
from typing import Any

import numpy as np

from distmeta.data.stream import EpisodeStream
from distmeta.learners.description import Temperature
from distmeta.training.calibration import Answered, calibration_of
from distmeta.training.evaluate import Stream

_WORST = 10  # number of worst classes that are named
_FEWEST = 20  # minimum queries of a class; with fewer its accuracy is noise


def figures_of_answers(stream: Stream, answers: Answered | None, temperature: Temperature | None) -> dict[str, Any]:
    """The parts of a test's result that are about answers, if it has any: calibration error, and accuracy by class."""
    if answers is None:
        return {}
    calibration = {"calibration": calibration_of(answers, temperature)} if temperature else {}
    return calibration | ({"by_class": accuracy_by_class(stream, answers)} if isinstance(stream, EpisodeStream) else {})


def accuracy_by_class(stream: EpisodeStream, answered: Answered) -> dict[str, Any]:
    """Inductive accuracy on the stream's episodes by class and category: the number of classes, every category, and the worst classes. Each
    entry holds its number of queries; classes with few queries are not ranked.
    """
    queries: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for index, (labels, hits) in enumerate(zip(answered.labels, answered.right, strict=True)):
        class_ids = stream.evaluation_episode(index).class_ids[labels.astype(np.int64)]
        queries.update(class_ids.tolist())
        right.update(class_ids[hits].tolist())
    classes = stream.dataset.manifest.classes
    asked: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    for class_id, count in queries.items():
        asked[classes[class_id].category] += count
        hit[classes[class_id].category] += right[class_id]
    entries = [
        {"name": classes[class_id].name, "category": classes[class_id].category} | _share(count, right[class_id])
        for class_id, count in queries.items()
        if count >= _FEWEST
    ]
    categories = [{"name": name} | _share(count, hit[name]) for name, count in asked.items()]
    return {"classes": len(queries), "categories": sorted(categories, key=_rank), "worst": sorted(entries, key=_rank)[:_WORST]}


def _share(queries: int, right: int) -> dict[str, Any]:
    return {"queries": queries, "accuracy": right / queries}


def _rank(entry: dict[str, Any]) -> tuple[float, str]:
    return entry["accuracy"], entry["name"]
