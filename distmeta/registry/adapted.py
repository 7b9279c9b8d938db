"""Registered classifiers that are already adapted to their classes and need no support images."""

import importlib.util
import tempfile
import uuid
from collections.abc import Collection
from pathlib import Path

import mlflow.artifacts

from distmeta.errors import ConfigError, DataError, RegistryError
from distmeta.inference.model import WEIGHTS_FILE, Adapted
from distmeta.registry import store
from distmeta.registry.checks import check_known
from distmeta.registry.listing import is_ours
from distmeta.registry.package import ARTIFACTS, write_adapted
from distmeta.registry.tracking import answers, client
from distmeta.registry.versions import ADAPTED_FROM, check_alias, check_model_name, look_up, register, registered
from distmeta.training.sealed import sha256

_INSTALLED = {"site-packages", "dist-packages"}  # folders whose packages are named as requirements
_SHA256 = f"sha256:{WEIGHTS_FILE}"


def publish_adapted(uri: str, model_uri: str, adapted: Adapted, name: str, alias: str | None = None, own: Collection[str] = ()) -> str:
    """Register `adapted`, adapted from the registered model `model_uri`, as a new version of `name`. Returns its address.

    `own` holds the import paths of the user's classes; their modules are stored with the model.

    Its files are kept with the MLflow run of the model. Raises ConfigError if `name` holds models of another kind, RegistryError.
    """
    check_model_name(name, "name")
    if alias is not None:
        check_alias(alias)
    origin = look_up(uri, model_uri)
    run_id = origin.run_id or ""
    source = f"models:/{origin.name}/{origin.version}"
    with answers(uri):
        mlflow_client = client(uri)
        held = registered(mlflow_client, name)
        if held is not None and ADAPTED_FROM not in held.tags:
            raise ConfigError(f"{name} holds models that are not adapted yet", "choose another name: --name NAME")
        if held is None:
            register(mlflow_client, name, {ADAPTED_FROM: source})
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_adapted(folder, adapted, _own_code(own))
            place = f"adapted/{uuid.uuid4().hex[:12]}"
            mlflow_client.log_artifacts(run_id, str(folder), place)
            tags = _tags(adapted, source) | {_SHA256: sha256(folder / ARTIFACTS / WEIGHTS_FILE)}
            where = f"{mlflow_client.get_run(run_id).info.artifact_uri}/{place}"
            text = f"Tells apart {', '.join(map(str, adapted.classes))}. Adapted from {source} by {adapted.shot:.3g} images of each."
            version = mlflow_client.create_model_version(name, where, run_id, tags=tags, description=text)
        if alias is not None:
            mlflow_client.set_registered_model_alias(name, alias, version.version)
    return f"models:/{name}/{version.version}"


def load_adapted(uri: str, model_uri: str, own: Collection[str] = ()) -> Adapted | None:
    """The registered classifier, or None if the registered model is not adapted yet. Nothing downloaded is executed.

    Raises RegistryError, also if the file's SHA-256 differs from the one in the version's tags.
    """
    version = look_up(uri, model_uri)
    if ADAPTED_FROM not in version.tags or not is_ours(version):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        with answers(uri):
            address = f"{version.source}/{ARTIFACTS}/{WEIGHTS_FILE}"
            file = Path(mlflow.artifacts.download_artifacts(address, dst_path=scratch, tracking_uri=store.absolute(uri)))
        if sha256(file) != version.tags.get(_SHA256):
            raise RegistryError(f"{WEIGHTS_FILE} of {model_uri} is not what was published (SHA-256 differs)", "publish it again")
        try:
            check_known(model_uri, Adapted.described(file.parent), own)
            return Adapted.load(file.parent, own)
        except DataError as error:
            raise RegistryError(f"{model_uri} cannot be read: {error.message}", "publish it again") from None


def _tags(adapted: Adapted, source: str) -> dict[str, str]:
    about = adapted.description
    return {
        ADAPTED_FROM: source,
        "dataset": about["dataset"],
        "learner": about["learner"]["name"],
        "model": about["model"]["name"],
        "way": str(len(adapted.classes)),
        "shot": str(round(adapted.shot or 0)),
    }


def _own_code(own: Collection[str]) -> list[Path]:
    """The files and folders of modules in `own` that do not belong to installed packages."""
    found = []
    for module in sorted({name.partition(".")[0] for name in own}):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        if _INSTALLED.isdisjoint(place.parts):
            found.append(place)
    return found
