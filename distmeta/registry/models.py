"""The model registry: publish what a run found best, list what is there, look one up and check it before use."""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distmeta import __version__
from distmeta.data.images import Preprocessing
from distmeta.errors import ConfigError, RegistryError
from distmeta.learners import LEARNERS, build_learner
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.models import MODELS, build_model
from distmeta.registry.tracking import answers, client
from distmeta.train.checkpoint import MODEL, WEIGHTS, sha256

CHAMPION = "champion"
_FILES = (WEIGHTS, MODEL)
_SCORE = "validation_score"
_FIGURES = ("accuracy", "ci95", "accuracy_inductive", "ci95_inductive", "mse_by_step", "ci95_by_step", "episodes", "queries", "seed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Published(NamedTuple):
    """A model version just made; `champion` if it now holds that alias."""

    name: str
    version: str
    champion: bool

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@{CHAMPION}" if self.champion else f"models:/{self.name}/{self.version}"


def _identity(description: dict[str, Any]) -> dict[str, str]:
    """What all models under one name share, as registry tags."""
    task = description["task"]
    return {"fingerprint": description["fingerprint"], "way": str(task["way"]), "shot": str(task["shot"])}


def check_name(uri: str, name: str, description: dict[str, Any]) -> None:
    """Raises ConfigError if `name` is no registry name or holds models of another dataset or way/shot, RegistryError if MLflow fails."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"tracking.model={name!r} is no model name", "use up to 100 letters, digits, '.', '_' and '-'")
    with answers(uri):
        held = _registered(client(uri), name)
    for key, value in _identity(description).items():
        if held is not None and held.tags.get(key, value) != value:
            raise ConfigError(
                f"tracking.model={name} holds models with {key} {held.tags[key][:12]}; this run has {key} {value[:12]}",
                "choose another name: --set tracking.model=NAME",
            )


def _registered(mlflow_client: MlflowClient, name: str) -> RegisteredModel | None:
    """The registered model `name`, or None if there is none; other answers of MLflow are errors."""
    try:
        return mlflow_client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None


def publish(uri: str, run_id: str, best: Path, name: str, test: dict[str, Any]) -> Published:
    """Register the model in the folder `best` as a new version of `name`.

    It becomes `champion` if its validation score (inductive accuracy; in regression, minus the squared error) is the highest so far on
    the same validation episodes.
    """
    content = json.loads((best / MODEL).read_text())
    description = content | {"test": test, "distmeta": __version__}
    identity = _identity(description)
    with answers(uri), tempfile.TemporaryDirectory() as scratch:
        mlflow_client = client(uri)
        folder = Path(scratch)
        (folder / WEIGHTS).write_bytes((best / WEIGHTS).read_bytes())
        (folder / MODEL).write_text(json.dumps(description, indent=1))
        mlflow_client.log_artifacts(run_id, scratch, "model")
        held = _registered(mlflow_client, name) or mlflow_client.create_registered_model(name, tags=identity)
        source = f"{mlflow_client.get_run(run_id).info.artifact_uri}/model"
        tags = identity | _version_tags(description) | {f"sha256:{file}": sha256(folder / file) for file in _FILES}
        version = mlflow_client.create_model_version(name, source, run_id, tags=tags)
        champion = _is_champion(mlflow_client, held, version)
        if champion:
            mlflow_client.set_registered_model_alias(name, CHAMPION, version.version)
    return Published(name, str(version.version), champion)


def _version_tags(description: dict[str, Any]) -> dict[str, str]:
    validation, test = description["validation"], description["test"]
    on = {key: validation[key] for key in ("episodes", "seed", "way", "shot", "queries")}
    figures = {key: test[key] for key in _FIGURES if key in test}
    return {
        "dataset": description["dataset"],
        "learner": description["learner"]["name"],
        "model": description["model"]["name"],
        "norm": description["norm"],
        "step": str(description["step"]),
        "distmeta": description["distmeta"],
        "validation_episodes": json.dumps(on),
        _SCORE: repr(description["validation_score"]),
        **{key: json.dumps(value) for key, value in figures.items()},
    }


def _is_champion(mlflow_client: MlflowClient, held: RegisteredModel, new: ModelVersion) -> bool:
    """Whether `new` beats the present champion on the same validation episodes, or there is none; not comparable is not better."""
    if CHAMPION not in held.aliases:
        return True
    old = mlflow_client.get_model_version(held.name, held.aliases[CHAMPION])
    same_episodes = old.tags.get("validation_episodes") == new.tags.get("validation_episodes")
    return same_episodes and float(new.tags[_SCORE]) > float(old.tags[_SCORE])


def tag_version(uri: str, model_uri: str, tags: dict[str, str]) -> None:
    """Add tags to the version at models:/NAME@ALIAS or models:/NAME/VERSION. Raises RegistryError."""
    version = _look_up(uri, model_uri)
    with answers(uri):
        for key, value in tags.items():
            client(uri).set_model_version_tag(version.name, version.version, key, value)


def list_models(uri: str) -> list[dict[str, Any]]:
    """One row for each model version: uri, aliases, the test's figures (accuracy or mse_by_step, …), dataset, way, shot, learner, age_s."""
    rows = []
    with answers(uri):
        for model in client(uri).search_registered_models():
            for version in client(uri).search_model_versions(f"name = '{model.name}'"):
                tags = version.tags
                if "fingerprint" not in tags:
                    continue  # registered by something else
                rows.append(
                    {
                        "uri": f"models:/{model.name}/{version.version}",
                        "aliases": [alias for alias, number in model.aliases.items() if str(number) == str(version.version)],
                        **{key: json.loads(tags[key]) for key in _FIGURES if key in tags},
                        "dataset": tags["dataset"],
                        "way": int(tags["way"]),
                        "shot": int(tags["shot"]),
                        "learner": tags["learner"],
                        "age_s": round(time.time() - version.creation_timestamp / 1000),
                    }
                )
    return rows


class Model(NamedTuple):
    """A meta-trained model, ready to adapt; `way` is the number of classes it adapts to, or None for any."""

    uri: str
    learner: Learner
    meta_params: Params
    preprocessing: Preprocessing
    way: int | None


def download(uri: str, model_uri: str, folder: Path) -> dict[str, Any]:
    """Fetch models:/NAME@ALIAS or models:/NAME/VERSION into `folder` and return what its model.json says.

    Raises RegistryError, also if the files are not those whose SHA-256 stand in the version's tags.
    """
    version = _look_up(uri, model_uri)
    with tempfile.TemporaryDirectory() as scratch:
        with answers(uri):
            found = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=scratch, tracking_uri=uri))
        for file in _FILES:
            if not (found / file).is_file() or sha256(found / file) != version.tags.get(f"sha256:{file}"):
                raise RegistryError(
                    f"{file} of {model_uri} is not what was published (SHA-256 differs)", "publish it again from its run folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(found / file, folder / file)
    try:
        return json.loads((folder / MODEL).read_text())
    except ValueError as error:
        raise RegistryError(f"{model_uri} cannot be read: {error!r}", "publish it again from its run folder") from None


def load_model(uri: str, model_uri: str) -> Model:
    """Look up a registered model of images and build it. Nothing downloaded is executed: weights are safetensors, the rest JSON.

    Raises RegistryError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        try:
            return _build(model_uri, description, load_file(Path(scratch) / WEIGHTS))
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
            raise RegistryError(f"{model_uri} cannot be read: {error!r}", "was it published by a newer distmeta? update distmeta") from None


def _build(model_uri: str, description: dict[str, Any], weights: dict[str, Tensor]) -> Model:
    kinds = (("model", MODELS), ("learner", LEARNERS))
    for kind, known in kinds:
        if description[kind]["name"] not in known:
            raise RegistryError(
                f"{model_uri} uses {kind} {description[kind]['name']!r}, unknown to distmeta {__version__}", "update distmeta"
            )
    if description["preprocessing"] is None:
        raise RegistryError(f"{model_uri} does regression on {description['dataset']}, not on images", "distmeta models lists the others")
    # Nothing that came from a registry names what is imported: law 6.
    network = build_model(**description["model"], allow_import=False).to(next(iter(weights.values())).dtype)
    learner = build_learner(model=network, **description["learner"])
    check_weights(learner, weights, model_uri)
    way = None if learner.any_way else description["task"]["way"]
    return Model(model_uri, learner, weights, Preprocessing.model_validate(description["preprocessing"]), way)


def check_weights(learner: Learner, weights: Params, model_uri: str) -> None:
    """Raises RegistryError unless `weights` are named and shaped as the learner's own."""
    expected = {name: value.shape for name, value in learner.initial_params(0).items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise RegistryError(f"the weights of {model_uri} are not those of its network", "publish it again from its run folder")


def _look_up(uri: str, model_uri: str) -> ModelVersion:
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", model_uri)
    if match is None:
        raise ConfigError(f"model {model_uri!r} is no registry address", "write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    with answers(uri):
        mlflow_client = client(uri)
        held = _registered(mlflow_client, name)
        if held is None:
            names = ", ".join(sorted(m.name for m in mlflow_client.search_registered_models())) or "none"
            raise RegistryError(f"no model {name!r} is registered (there are: {names})", "distmeta models lists them")
        if alias is not None and alias not in held.aliases:
            aliases = ", ".join(held.aliases) or "none"
            raise RegistryError(f"model {name!r} has no alias {alias!r} (it has: {aliases})", "distmeta models lists them")
        try:
            return mlflow_client.get_model_version(name, number or held.aliases[alias])
        except MlflowException:
            raise RegistryError(f"model {name!r} has no version {number}", "distmeta models lists them") from None
