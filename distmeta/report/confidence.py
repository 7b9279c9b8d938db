"""The report's section on the reliability of a run's probabilities."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from distmeta.report.figures import Curve, lines
from distmeta.report.section import Plot, Section


def confidence(test: dict[str, Any]) -> Section | None:
    """The test's accuracy by confidence, without temperature and at the fitted temperature, if it was measured."""
    if "calibration" not in test:
        return None
    found = test["calibration"]
    before, after = found["before"], found["after"]
    temperature = f"temperature {found['temperature']:.3g}"
    curves = [
        _curve("as the network gives them", before["bins"]),
        _curve(f"at {temperature}", after["bins"]),
        Curve("confidence = accuracy", [0, 100], [0, 100], [float("nan")] * 2),
    ]
    text = (
        f"Expected calibration error (inductive, {len(after['bins'])} bins of equal mass): {_error(before)} as the network gives the "
        f"probabilities, {_error(after)} at the {temperature}, fitted on validation episodes for {found['way']}-way {found['shot']}-shot. "
        f"Mean confidence: {100 * before['confidence']:.1f} % before, {100 * after['confidence']:.1f} % after. The answers are the same."
    )
    plot = Plot(
        Markup(lines(curves, "confidence (%)", "accuracy (%)", "o")), "Accuracy of the test's queries by confidence; a bin is a point."
    )
    return Section("Confidence", text, [plot])


def _error(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['error']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def _curve(name: str, bins: Sequence[Sequence[float]]) -> Curve:
    x, y = ([100 * value for value in values] for values in zip(*bins, strict=True))
    return Curve(name, x, y, [float("nan")] * len(x))
