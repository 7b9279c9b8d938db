"""Chooses the temperature of a model's probabilities: the one that was fitted for the most similar tasks."""

import math
from typing import Any

from distmeta.learners.description import Temperature


def nearest_temperature(description: dict[str, Any], way: int, shot: float, inner_steps: int) -> Temperature | None:
    """The temperature in `description` for `inner_steps` whose way and shot are nearest on a logarithmic scale, or None."""

    def distance(fitted: Temperature) -> float:
        return abs(math.log(fitted["way"] / way)) + abs(math.log(fitted["shot"] / shot))

    fitted = [each for each in description.get("calibration", ()) if each["inner_steps"] == inner_steps]
    return min(fitted, key=distance, default=None)


def calibration_note(fitted: Temperature | None, way: int, shot: float | None) -> str:
    """A note for people on probabilities that were computed with `fitted` for tasks of this way and shot (None: unknown)."""
    if fitted is None:
        return "probabilities are uncalibrated: no temperature was fitted for this model and these inner steps"
    task = f"{fitted['way']}-way {fitted['shot']}-shot"
    note = f"probabilities are calibrated by {fitted['episodes']} validation episodes, {task} (temperature {fitted['temperature']:.3g})"
    here = f"{way}-way {shot:.3g}-shot" if shot is not None else task
    if here == task:
        return note
    return f"{note}, the nearest that were fitted; this task is {here} (distmeta evaluate --calibrate fits others)"


def rejection_note(fitted: Temperature | None, lowest: float) -> str:
    """A sentence on the cost of rejecting answers with a probability below `lowest`, if it was measured."""
    if fitted is None:
        return "what --reject-below costs is unknown: no temperature was fitted for this model and these inner steps"
    coverage, part_right = accepted(fitted, lowest)
    right = "none is left" if part_right is None else f"{100 * part_right:.1f} % of these are right"
    everything = f"without a limit {100 * (fitted['accuracy'][0] or 0):.1f} % of all are"
    return f"on the validation episodes {100 * coverage:.1f} % of queries reach {lowest:g}, and {right}; {everything}"


def accepted(fitted: Temperature, lowest: float) -> tuple[float, float | None]:
    """On the validation episodes: the fraction of queries whose probability reaches `lowest`, and the fraction of these that was right."""
    place = min(math.ceil(100 * lowest - 1e-9), 100)
    return fitted["coverage"][place], fitted["accuracy"][place]
