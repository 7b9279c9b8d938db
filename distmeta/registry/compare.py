"""Is model B better than model A? Both were tested on the same episodes, so their differences, episode by episode, say it most sharply."""

import math
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from distmeta.errors import RegistryError
from distmeta.registry.versions import download
from distmeta.training.model_folder import ModelFolder

_EPISODES = ("episodes", "seed", "way", "shot", "queries")  # what decides a test's episodes, beside the dataset


def compare(uri: str, a: str, b: str) -> dict[str, Any]:
    """The paired difference B - A over the test's episodes: in inductive accuracy, or in squared error after the last inner step.

    {"figure", "a", "b": means; "difference", "low", "high": its 95% interval; "p": of a difference at least as large by chance (Student's
    paired test, two-sided), "episodes"}. Raises RegistryError if the two were not tested on the same episodes.
    """
    (about_a, figures_a), (about_b, figures_b) = _tested(uri, a), _tested(uri, b)
    differing = [key for key in about_a if about_a[key] != about_b[key]]
    if differing:
        found = ", ".join(f"{key} {about_a[key]} and {about_b[key]}" for key in differing)
        raise RegistryError(
            f"{a} and {b} were not tested on the same episodes: {found}", "train or evaluate both with the same data.eval.*"
        )
    mean_a, mean_b = (math.fsum(figures) / len(figures) for figures in (figures_a, figures_b))
    low = high = mean_b - mean_a
    p = 1.0
    if len({y - x for x, y in zip(figures_a, figures_b, strict=True)}) > 1:  # else there is no spread to test by
        test = ttest_rel(figures_b, figures_a)
        (low, high), p = map(float, test.confidence_interval(0.95)), float(test.pvalue)
    return {
        "figure": about_a["figure"],
        "a": mean_a,
        "b": mean_b,
        "difference": mean_b - mean_a,
        "low": low,
        "high": high,
        "p": p,
        "episodes": len(figures_a),
    }


def verdict(found: dict[str, Any]) -> str:
    """What `compare` found, in a sentence."""
    higher_is_better = found["figure"] != "squared error"
    scale, unit = (100, " points") if higher_is_better else (1, "")
    difference, low, high = (f"{scale * found[key]:+.2f}" for key in ("difference", "low", "high"))
    by = f"{difference}{unit} (95% interval {low} to {high}, p = {found['p']:.2g})"
    if found["low"] <= 0 <= found["high"]:
        return f"no difference is shown over {found['episodes']} paired episodes: B - A = {by}"
    better = (found["difference"] > 0) == higher_is_better
    return f"B is {'better' if better else 'worse'} than A over {found['episodes']} paired episodes: {by}"


def _tested(uri: str, model_uri: str) -> tuple[dict[str, Any], list[float]]:
    """What decides the episodes that a model was tested on, and its figure on each."""
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        rows = ModelFolder(Path(scratch)).read_test_episodes()
    test = description["test"]
    figure = "squared error" if "mse_by_step" in test else "inductive accuracy"
    # The columns are transductive and inductive accuracy, or the error after 0, 1, … inner steps: in both the last is the one.
    about = {"figure": figure, "dataset": description["fingerprint"][:12]} | {key: test.get(key) for key in _EPISODES}
    return about, [math.nan if row[-1] is None else row[-1] for row in rows]
