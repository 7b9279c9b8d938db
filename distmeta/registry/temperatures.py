"""Temperatures that were fitted after a model was published, kept as tags of its version."""

import json
from collections.abc import Mapping
from typing import Any

from distmeta.files import of_kind, parse_json
from distmeta.learners.description import Temperature

_TAG = "calibration:"


def tags_of(fitted: Temperature) -> dict[str, str]:
    """The tag that keeps a temperature."""
    return {f"{_TAG}{fitted['way']}way-{fitted['shot']}shot-{fitted['inner_steps']}steps": json.dumps(fitted)}


def with_tagged(description: dict[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """`description` with the temperatures of a version's tags, which replace those fitted for the same tasks. Invalid tags are ignored,
    because anybody may write tags.
    """
    kept = {_tasks(fitted): fitted for fitted in description.get("calibration", ())}
    for name in sorted(tags):
        if name.startswith(_TAG):
            try:
                fitted = of_kind(Temperature, parse_json(tags[name]))
            except ValueError:
                continue
            kept[_tasks(fitted)] = fitted
    return description | {"calibration": list(kept.values())} if kept else description


def _tasks(fitted: Temperature) -> tuple[int, int, int]:
    return fitted["way"], fitted["shot"], fitted["inner_steps"]
