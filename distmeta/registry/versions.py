"""The model registry: publish a run's best model, look a model up, and check it before use."""

import importlib.metadata
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from torch import Tensor

from distmeta.errors import ConfigError, RegistryError, RunError
from distmeta.inference.card import as_markdown, model_card
from distmeta.inference.model import Model, build, named_classes
from distmeta.learners.description import default_name
from distmeta.learners.params import unusable
from distmeta.registry import store
from distmeta.registry.champion import SCORE, crown
from distmeta.registry.checks import PUBLISH_AGAIN, check_known, check_weights
from distmeta.registry.listing import FIGURES, is_ours, registered_models, versions_of
from distmeta.registry.package import ARTIFACTS, check_merge, write_package
from distmeta.registry.temperatures import with_tagged
from distmeta.registry.tracking import answers, client
from distmeta.training.model_folder import PUBLISHED, ModelFolder, Rows
from distmeta.training.run_folder import RunFolder
from distmeta.training.sealed import SEAL, sha256
from distmeta.training.storage import understood

__version__ = importlib.metadata.version("distmeta")
ADAPTED_FROM = "adapted_from"
"""The tag of versions that are adapted classifiers: the address of the original model."""
_NAMED = 20  # names in a message
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Published(NamedTuple):
    """A new model version; `champion` if it now has that alias, else `held_by` is the version that has it."""

    name: str
    version: str
    champion: bool
    held_by: str | None = None

    @property
    def uri(self) -> str:
        """The version's address. An alias would be another version's tomorrow."""
        return f"models:/{self.name}/{self.version}"


def _identity(description: dict[str, Any]) -> dict[str, str]:
    """The registry tags that all models under one name share."""
    task = description["task"]
    return {"fingerprint": description["fingerprint"], "way": str(task["way"]), "shot": str(task["shot"])}


def check_model_name(name: str, given_as: str = "tracking.model") -> None:
    """Raises ConfigError unless `name` is a valid name in the registry. `given_as`: the key or option that gave it."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{given_as}={name!r} is not a model name", "use up to 100 letters, digits, '.', '_' and '-'")


def check_name(uri: str, name: str, description: dict[str, Any]) -> None:
    """Raises ConfigError if `name` is not a registry name or holds models of another dataset or way/shot, RegistryError if MLflow fails."""
    check_model_name(name)
    with answers(uri):
        held = registered(client(uri), name)
    if held is not None and ADAPTED_FROM in held.tags:
        raise ConfigError(f"tracking.model={name} holds adapted classifiers", "choose another name: --set tracking.model=NAME")
    for key, value in _identity(description).items():
        if held is not None and held.tags.get(key, value) != value:
            raise ConfigError(
                f"tracking.model={name} holds models with {key} {held.tags[key][:12]}; this run has {key} {value[:12]}",
                "choose another name: --set tracking.model=NAME",
            )


def registered(mlflow_client: MlflowClient, name: str) -> RegisteredModel | None:
    """The registered model `name`, or None if there is none; other answers of MLflow are errors."""
    try:
        return mlflow_client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None


def publish(
    uri: str, run_folder: RunFolder, name: str | None = None, alias: str | None = None, again: bool = True, merge: bool = False
) -> Published:
    """Register the best model of a finished run as a new version of `name` (<dataset>-<way>way-<shot>shot, if None).

    Unless `again`, an existing version of the run is used, because an earlier attempt may have been cut off after creating it. With
    `merge`, low-rank pairs become part of the weights.

    It becomes `champion` if its validation score is the highest so far on the same validation episodes; and `alias` in any case, if one is
    given. Raises RunError if the folder holds no finished run.
    """
    with understood(run_folder):
        description, by_episode, run_id, tags = _finished(run_folder)
    if merge:
        check_merge(description)
    problem = unusable(run_folder.best.load_params())
    if problem:
        raise RunError(
            f"the best model of {run_folder} cannot be used: {problem}",
            "train again with a lower outer.lr or inner_lr: --set run_folder=NEW",
        )
    name = name or default_name(description)
    check_name(uri, name, description)
    if alias is not None:
        check_alias(alias)
    with answers(uri):
        mlflow_client = client(uri)
        if registered(mlflow_client, name) is None:
            register(mlflow_client, name, _identity(description))
        before = _newest_number(mlflow_client, name)
        version = None if again else _version_of(mlflow_client, name, run_id)
        if version is None:
            version = _add_version(mlflow_client, name, run_folder.best, description, by_episode, run_id, tags, merge)
        holder = crown(mlflow_client, name, before, version)
        if alias:
            mlflow_client.set_registered_model_alias(name, alias, version.version)
    return Published(name, str(version.version), holder == str(version.version), holder)


def register(mlflow_client: MlflowClient, name: str, tags: dict[str, str]) -> None:
    """Create a registered model, unless another process creates it at the same time."""
    try:
        mlflow_client.create_registered_model(name, tags=tags)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _add_version(
    mlflow_client: MlflowClient,
    name: str,
    best: ModelFolder,
    description: dict[str, Any],
    by_episode: Rows,
    run_id: str,
    tags: dict[str, str],
    merge: bool,
) -> ModelVersion:
    """A new version with separate files: publishing a run again does not change its earlier versions."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_package(folder, best, description, by_episode, merge)
        place = f"model/{uuid.uuid4().hex[:12]}"
        mlflow_client.log_artifacts(run_id, str(folder), place)
        source = f"{mlflow_client.get_run(run_id).info.artifact_uri}/{place}"
        hashes = {f"sha256:{file}": sha256(folder / ARTIFACTS / file) for file in PUBLISHED}
        return mlflow_client.create_model_version(name, source, run_id, tags=tags | hashes, description=description["card"])


def _newest_number(mlflow_client: MlflowClient, name: str) -> int:
    return max((int(version.version) for version in versions_of(mlflow_client, name)), default=0)


def _version_of(mlflow_client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The run's first version of `name`, or None."""
    versions = [version for version in versions_of(mlflow_client, name) if version.run_id == run_id]
    return min(versions, key=lambda version: int(version.version), default=None)


def _finished(run_folder: RunFolder) -> tuple[dict[str, Any], Rows, str, dict[str, str]]:
    """Of a finished run: the best model's description with its test, the test's figures by episode, the MLflow run's id, and the tags."""
    result, by_episode = run_folder.read_result(), run_folder.read_test_episodes()
    if not run_folder.best.is_whole:
        raise RunError(
            f"{run_folder.best} is damaged: its files are not those that its {SEAL} names",
            "copy the run folder again from an intact copy, or train again: --set run_folder=NEW",
        )
    description = run_folder.best.read_description() | {"test": result["test"], "distmeta": __version__}
    description |= {"calibration": result["calibration"]} if "calibration" in result else {}
    try:
        tags = _identity(description) | _version_tags(description)
        description["card"] = as_markdown(model_card(description))
    except KeyError as error:
        raise RunError(
            f"{run_folder} holds no finished run: it lacks {error}", "give the run_folder of a run that ended with its test"
        ) from None
    return description, by_episode, run_folder.read_mlflow()["run_id"], tags


def promote(uri: str, model_uri: str, alias: str) -> str:
    """Move `alias` to this version. Returns models:/NAME@ALIAS. Raises ConfigError, RegistryError."""
    check_alias(alias)
    version = look_up(uri, model_uri)
    with answers(uri):
        client(uri).set_registered_model_alias(version.name, alias, version.version)
    return f"models:/{version.name}@{alias}"


def check_alias(alias: str) -> None:
    if not _NAME.fullmatch(alias) or re.fullmatch(r"[vV]\d+|latest", alias):
        raise ConfigError(f"{alias!r} is not an alias", "use letters, digits, '.', '_' and '-'; v1 and latest are reserved")


def _version_tags(description: dict[str, Any]) -> dict[str, str]:
    validation, test = description["validation"], description["test"]
    on = {key: validation[key] for key in ("episodes", "seed", "way", "shot", "queries")}
    on |= {"metric": description["metric"]} if "metric" in description else {}  # scores by another metric are not compared
    figures = {key: test[key] for key in FIGURES if key in test}
    return {
        "dataset": description["dataset"],
        "learner": description["learner"]["name"],
        "model": description["model"]["name"],
        "norm": description["norm"],
        "step": str(description["step"]),
        "distmeta": description["distmeta"],
        "validation_episodes": json.dumps(on),
        SCORE: json.dumps(description["validation_score"]),
        **{key: json.dumps(value) for key, value in figures.items()},
    }


def tag_version(uri: str, model_uri: str, tags: dict[str, str]) -> None:
    """Add tags to the version that `look_up` finds. Raises RegistryError."""
    version = look_up(uri, model_uri)
    with answers(uri):
        for key, value in tags.items():
            client(uri).set_model_version_tag(version.name, version.version, key, value)


def download(uri: str, model_uri: str, folder: Path) -> dict[str, Any]:
    """Download the data of the version that `look_up` finds into `folder`. Returns the content of its model.json.

    Raises RegistryError, also if the SHA-256 of a file differs from the one in the version's tags. Code and other files are not downloaded.
    """
    version = look_up(uri, model_uri)
    if not is_ours(version):
        raise RegistryError(f"{model_uri} was not published by distmeta", "distmeta models lists those that were")
    if ADAPTED_FROM in version.tags:
        raise RegistryError(f"{model_uri} is adapted to its classes already", f"give what it came from: {version.tags[ADAPTED_FROM]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for file in PUBLISHED:
            with answers(uri):
                address = f"{version.source}/{ARTIFACTS}/{file}"
                path = mlflow.artifacts.download_artifacts(address, dst_path=scratch, tracking_uri=store.absolute(uri))
            if sha256(Path(path)) != version.tags.get(f"sha256:{file}"):
                raise RegistryError(f"{file} of {model_uri} is not what was published (SHA-256 differs)", PUBLISH_AGAIN)
            shutil.copy(path, folder / file)
    try:
        return with_tagged(ModelFolder(folder).read_description(), version.tags)
    except RunError as error:
        raise RegistryError(f"{model_uri} cannot be read: {error.message}", PUBLISH_AGAIN) from None


def load_model(uri: str, model_uri: str, own: Collection[str] = ()) -> Model:
    """Look up a registered model of images and build it. Nothing downloaded is executed: weights are safetensors, the rest JSON.

    `own` holds the import paths of its network's and learner's classes, if they are the user's. Raises RegistryError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        try:
            return _built(model_uri, description, ModelFolder(Path(scratch)).load_params(), own)
        except (KeyError, TypeError, ValueError, RuntimeError, RunError, ConfigError) as error:
            raise RegistryError(f"{model_uri} cannot be read: {error!r}", "was it published by a newer distmeta? update distmeta") from None


def _built(model_uri: str, description: dict[str, Any], weights: dict[str, Tensor], own: Collection[str]) -> Model:
    check_known(model_uri, description, own)
    if description["preprocessing"] is None:
        policy = description.get("domain", {}).get("name") == "reinforcement"
        function = "policies.load_policy" if policy else "tensors.load_tensor_model"
        raise RegistryError(
            f"{model_uri} reads no images: it was trained on {description['dataset']}",
            f"load it in Python with distmeta.registry.{function}, or choose another: distmeta models lists them",
        )
    try:
        learner = build(description, weights, own)
    except ConfigError as error:
        if named_classes(description).isdisjoint(own):
            raise
        raise RegistryError(f"{model_uri} cannot be built: {error.message}", error.remedy) from None
    check_weights(learner, weights, model_uri)
    return Model(model_uri, description, learner, weights)


def run_of(uri: str, version: ModelVersion) -> tuple[str, str]:
    """The MLflow id of the run that made a model version, and its recorded run folder. Raises RegistryError."""
    with answers(uri):
        run = client(uri).get_run(version.run_id or "")
    folder = run.data.tags.get("run_folder")
    if folder is None:
        raise RegistryError(f"the MLflow run of {version.name}/{version.version} names no run_folder", "give the run's folder itself")
    return run.info.run_id, folder


def look_up(uri: str, model_uri: str) -> ModelVersion:
    """The version that models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model names. Raises ConfigError, RegistryError."""
    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))|runs:/([\w-]+)/model", str(model_uri))
    if match is None:
        raise ConfigError(
            f"model {model_uri!r} is not a registry address", "write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model"
        )
    name, alias, number, run_id = match.groups()
    with answers(uri):
        mlflow_client = client(uri)
        if run_id is not None:
            return _of_run(mlflow_client, run_id)
        held = registered(mlflow_client, name)
        if held is None:
            names = _listed(model.name for model in registered_models(mlflow_client))
            raise RegistryError(f"no model {name!r} is registered (there are: {names})", "distmeta models lists them")
        if alias is not None and alias not in held.aliases:
            aliases = _listed(held.aliases)
            raise RegistryError(f"model {name!r} has no alias {alias!r} (it has: {aliases})", "distmeta models lists them")
        try:
            version = mlflow_client.get_model_version(name, number or held.aliases[alias])
        except MlflowException:
            raise RegistryError(f"model {name!r} has no version {number}", "distmeta models lists them") from None
        if version.name != name or not re.fullmatch(r"[0-9]{1,9}", str(version.version)):
            raise RegistryError(f"MLflow answered with version {version.version!r} of {version.name!r} for {model_uri}", "check its server")
        return version


def pinned(uri: str, model_uri: str) -> str:
    """models:/NAME/VERSION of the version that `look_up` finds: an alias may move while a command works with its version."""
    version = look_up(uri, model_uri)
    return f"models:/{version.name}/{version.version}"


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_NAMED]) + (f", … {len(ordered)} in all" if len(ordered) > _NAMED else "") or "none"


def _of_run(mlflow_client: MlflowClient, run_id: str) -> ModelVersion:
    """The last version published of the run's model."""
    versions = [version for version in versions_of(mlflow_client) if version.run_id == run_id and is_ours(version)]
    if not versions:
        raise RegistryError(
            f"no model of an MLflow run {run_id} is registered",
            "distmeta models lists those that are; distmeta publish RUN_FOLDER adds one",
        )
    return max(versions, key=lambda version: version.creation_timestamp)
