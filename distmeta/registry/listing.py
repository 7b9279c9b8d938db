"""Lists the registry, of any size. Names and tags are untrusted data, because anybody may have written them."""

import fnmatch
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from distmeta.files import parse_json
from distmeta.registry.tracking import answers, client
from distmeta.training.measurement import KEY

_FORMER = ("accuracy", "ci95", "accuracy_inductive", "ci95_inductive", "mse_by_step", "ci95_by_step")  # known to readers of --json
FIGURES = (KEY, "episodes", "queries", "seed", *_FORMER)
_PAGE = 200  # rows per page of MLflow's answer
_PLAIN = re.compile(r"[A-Za-z0-9._ -]+")


def list_models(uri: str) -> list[dict[str, Any]]:
    """One row for each version that distmeta made: uri, aliases, the test's figures (accuracy or mse_by_step, …), dataset, way, shot,
    learner, age_s. Values that are missing or malformed in its tags, which anybody can edit, are left out or None."""
    with answers(uri):
        models = {model.name: model for model in registered_models(client(uri))}
        return [_row(version, models.get(version.name)) for version in versions_of(client(uri)) if is_ours(version)]


def _row(version: ModelVersion, model: RegisteredModel | None) -> dict[str, Any]:
    aliases = model.aliases if model is not None else {}
    tags = version.tags
    figures = {key: _figure(tags[key], key) for key in FIGURES if key in tags}
    return {
        "uri": f"models:/{version.name}/{version.version}",
        "aliases": [alias for alias, number in aliases.items() if str(number) == str(version.version)],
        **{key: value for key, value in figures.items() if value is not None},
        "dataset": tags.get("dataset"),
        "way": _integer(tags.get("way")),
        "shot": _integer(tags.get("shot")),
        "learner": tags.get("learner"),
        "age_s": round(time.time() - version.creation_timestamp / 1000),
    }


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else None


def _figure(text: str, key: str) -> Any:
    """A number, numbers by inner step or a measurement, as expected for the key; None for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if key == KEY:
        return value if isinstance(value, dict) else None
    if not key.endswith("_by_step"):
        return value if _is_number(value) else None
    steps = value if isinstance(value, dict) else {}
    return steps if steps and all(_integer(step) is not None and _is_number(figure) for step, figure in steps.items()) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def matching(rows: list[dict[str, Any]], name: str | None, alias: str | None, **equal: Any) -> list[dict[str, Any]]:
    """Those rows of `list_models` whose name fits the pattern, that have the alias, and whose other values are as given; None: any."""
    wanted = {key: value for key, value in equal.items() if value is not None}
    return [
        row
        for row in rows
        if fnmatch.fnmatchcase(row["uri"].removeprefix("models:/").partition("/")[0], name or "*")
        and (alias is None or alias in row["aliases"])
        and all(row[key] == value for key, value in wanted.items())
    ]


def versions_of(mlflow_client: MlflowClient, name: str | None = None) -> Iterator[ModelVersion]:
    """All versions of one registered model or of all of them."""
    # A name with a quote would end MLflow's filter.
    chosen = {"filter_string": f"name = '{name}'"} if name is not None and _PLAIN.fullmatch(name) else {}
    for version in _pages(mlflow_client.search_model_versions, **chosen):
        if name is None or version.name == name:
            yield version


def _pages(search: Callable[..., Any], **chosen: str) -> Iterator[Any]:
    """All pages of an MLflow query."""
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token, **chosen)
        yield from page
        token = page.token
        if not token:
            return


def registered_models(mlflow_client: MlflowClient) -> Iterator[RegisteredModel]:
    """All registered models."""
    return _pages(mlflow_client.search_registered_models)


def is_ours(version: ModelVersion) -> bool:
    return any(tag.startswith("sha256:") for tag in version.tags)
