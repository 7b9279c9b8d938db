"""Compares two models by their paired differences over the episodes that both were tested on."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmeta.errors import RegistryError
from distmeta.registry.versions import download
from distmeta.training.intervals import mean_and_ci95, paired
from distmeta.training.measurement import Measurement, measurement_of
from distmeta.training.model_folder import ModelFolder

_EPISODES = ("episodes", "seed", "way", "shot", "queries")  # keys that determine a test's episodes, besides the dataset


def compare(uri: str, a: str, b: str) -> dict[str, Any]:
    """The paired difference B - A over the test's episodes, in the score by which models are chosen.

    {"figure": its name; "a", "b": means; "difference", "low", "high": its 95% interval (None below 5 episodes); "p": p-value of Student's
    paired test, two-sided; "episodes"; "better": "a", "b", or None without a significant difference; and the format: "unit", "scale",
    "digits", "more_is_better"}. A score that is not finite on some episode counts as worse; values that cannot be computed are None. Raises
    RegistryError if the two were not tested on the same episodes.
    """
    (about_a, measured, figures_a), (about_b, _, figures_b) = _tested(uri, a), _tested(uri, b)
    differing = [key for key in about_a if about_a[key] != about_b[key]]
    if differing:
        differences = ", ".join(f"{key} {about_a[key]} and {about_b[key]}" for key in differing)
        raise RegistryError(
            f"{a} and {b} were not tested on the same episodes: {differences}", "train or evaluate both with the same data.eval.*"
        )
    shown = {key: getattr(measured, key) for key in ("unit", "scale", "digits", "more_is_better")}
    return {"figure": about_a["figure"]} | _paired(figures_a, figures_b, measured.more_is_better) | {"episodes": len(figures_a)} | shown


def _paired(a: list[float | None], b: list[float | None], more_is_better: bool) -> dict[str, Any]:
    """Means, their paired difference, and the conclusion."""
    means = {"a": mean_and_ci95(_numbers(a))[0], "b": mean_and_ci95(_numbers(b))[0]}
    if None in means.values():
        known = [name for name, mean in means.items() if mean is not None]
        return means | dict.fromkeys(("difference", "low", "high", "p")) | {"better": known[0] if known else None}
    difference, half, p = paired(_numbers(b), _numbers(a))
    assert difference is not None
    low, high = (None, None) if half is None else (difference - half, difference + half)
    shown = half is not None and abs(difference) > half
    better = ("b" if (difference > 0) == more_is_better else "a") if shown else None
    return means | {"difference": difference, "low": low, "high": high, "p": p, "better": better}


def _numbers(figures: list[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if figure is None else figure for figure in figures])


def verdict(comparison: dict[str, Any]) -> str:
    """The result of `compare` as a sentence."""
    over = f"over {comparison['episodes']} paired episodes"
    if comparison["difference"] is None:
        worse = {"a": "B's", "b": "A's", None: "both models'"}[comparison["better"]]
        end = "no difference is shown" if comparison["better"] is None else f"{comparison['better'].upper()} is better"
        return f"{end} {over}: {worse} {comparison['figure']} is not finite on some of them"
    unit = " points" if comparison["unit"] == "%" else f" {comparison['unit']}".rstrip()
    ends = (comparison[key] for key in ("difference", "low", "high"))
    difference, low, high = ("" if end is None else f"{comparison['scale'] * end:+.{comparison['digits'] + 1}f}" for end in ends)
    interval = f"95% interval {low} to {high}, " if low else ""
    by = f"{difference}{unit} ({interval}p = {comparison['p']:.2g})"
    if comparison["better"] is None:
        return f"no difference is shown {over}: B - A = {by}"
    return f"B is {'better' if comparison['better'] == 'b' else 'worse'} than A {over}: {by}"


def _tested(uri: str, model_uri: str) -> tuple[dict[str, Any], Measurement, list[float | None]]:
    """The keys that determine a model's test episodes, the measurement, and the deciding score on each episode."""
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        rows = ModelFolder(Path(scratch)).read_test_episodes()
    test = description["test"]
    measured = measurement_of(test)
    column = measured.columns[measured.selected]
    figure = measured.name if measured.axis else f"{column} {measured.name}"
    about = {"figure": figure, "dataset": description["fingerprint"][:12]} | {key: test.get(key) for key in _EPISODES}
    return about, measured, [row[measured.selected] for row in rows]
