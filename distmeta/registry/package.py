"""The published package: an MLflow pyfunc model of safetensors, JSON and code, which works without distmeta installed."""

import base64
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Map
from PIL import Image
from safetensors.torch import save_file

from distmeta.errors import ConfigError
from distmeta.inference.actor import ActorDescription
from distmeta.inference.model import WEIGHTS_FILE as ADAPTED
from distmeta.inference.model import Adapted
from distmeta.learners.params import Params
from distmeta.models.lora import merged, without_pairs
from distmeta.training.model_folder import PUBLISHED, ModelFolder, Rows

ARTIFACTS = "artifacts"  # MLflow's name of the folder with data
_PACKAGE = Path(__file__).parent.parent
# The floors 0 to 2 that adapting needs, and the model itself.
_CARRIED = [
    *("__init__.py", "bounds.py", "errors.py", "files.py", "masking.py", "seeds.py", "time_limit.py"),
    *("data/__init__.py", "data/decode.py", "data/images.py", "data/episodes.py", "registry/__init__.py", "registry/serving.py"),
    *("models", "learners", *(f"inference/{name}.py" for name in ("__init__", "inputs", "limits", "model", "temperature"))),
]
_ANSWERS = Schema(
    [ColSpec(DataType.string, "class"), ColSpec(DataType.double, "probability"), ColSpec(Map(DataType.double), "probabilities")]
)
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pillow", "pydantic", "safetensors", "simplejpeg")


def write_package(folder: Path, best: ModelFolder, description: dict[str, Any], by_episode: Rows, merge: bool = False) -> None:
    """Write the model whose weights `best` holds into `folder`, new, in the form that `mlflow.pyfunc.load_model` and distmeta's verbs read.

    A model of images becomes a pyfunc; one of regression, which has no images to send, is its data alone. With `merge`, low-rank pairs
    become part of the weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if merge:
            weights, description = merged(best.load_params(), description["model"]["lora"]), without_pairs(description)
            best = ModelFolder(Path(scratch) / "merged")
            best.save(weights, description)
        data = Path(scratch) / "data"
        best.write_published(data, description, by_episode)
        if description["preprocessing"] is None:
            shutil.copytree(data, folder / ARTIFACTS)
            return
        _save(
            folder,
            python_model=str(_PACKAGE / "registry" / "pyfunc.py"),
            artifacts={Path(name).stem: str(data / name) for name in PUBLISHED},
            code_paths=[str(_carried(Path(scratch), _CARRIED))],
            signature=_signature(description["learner"].get("inner_steps_eval")),
            input_example=_example(description),
            pip_requirements=_requirements(description),
        )


def write_adapted(folder: Path, adapted: Adapted, own_code: Sequence[Path] = ()) -> None:
    """Write an adapted classifier into the new folder `folder`, as a pyfunc from images to classes.

    `own_code`: files and folders of the user's modules that its network needs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        adapted.save(Path(scratch) / "adapted")
        _save(
            folder,
            python_model=str(_PACKAGE / "registry" / "adapted_pyfunc.py"),
            artifacts={"adapted": str(Path(scratch) / "adapted" / ADAPTED)},
            code_paths=[str(_carried(Path(scratch), [*_CARRIED, "inference/batching.py"])), *map(str, own_code)],
            signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")]), outputs=_ANSWERS),
            input_example=pd.DataFrame([{"image": _flat_png(100, adapted.preprocessing.image_size)}]),
            pip_requirements=_requirements(adapted.description),
        )


def write_actor(folder: Path, actor: ActorDescription, params: Params, description: dict[str, Any]) -> None:
    """Write a policy that only acts into `folder` as a pyfunc; `description` is that of the model it was adapted from."""
    actions = (
        TensorSpec(np.dtype(np.int64), (-1,)) if actor["kind"] == "discrete" else TensorSpec(np.dtype(np.float32), (-1, actor["size"]))
    )
    observations = TensorSpec(np.dtype(np.float64), (-1, actor["observation_size"]))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "actor.json").write_text(json.dumps(actor))
        save_file(params, Path(scratch) / "params.safetensors")
        _save(
            folder,
            python_model=str(_PACKAGE / "registry" / "policy_pyfunc.py"),
            artifacts={name.partition(".")[0]: str(Path(scratch) / name) for name in ("actor.json", "params.safetensors")},
            code_paths=[str(_carried(Path(scratch), [*_CARRIED, "envs", "inference/actor.py"]))],
            signature=ModelSignature(inputs=Schema([observations]), outputs=Schema([actions])),
            pip_requirements=_requirements(description),
        )


def _save(folder: Path, **package: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on type hints
        logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
        mlflow.pyfunc.save_model(folder, **package)


def check_merge(description: dict[str, Any]) -> None:
    """Raises ConfigError if a model has no low-rank pairs to merge, or its inner loop adapts them."""
    if "lora" not in description["model"]:
        raise ConfigError("--merge: the model has no low-rank pairs", "leave --merge out")
    adapted = [name for name in description.get("adapted", description["frozen"]) if ".parametrizations." in name]
    if adapted:
        raise ConfigError(
            f"--merge: the inner loop of {description['learner']['name']} adapts low-rank pairs, such as {adapted[0]}",
            "leave --merge out; Adapted.save writes an adapted network with its pairs merged",
        )


def _requirements(description: dict[str, Any]) -> list[str]:
    """A model's requirements: packages used by its stored code, and those of a user's network."""
    ours = {name: version(name).partition("+")[0] for name in _REQUIREMENTS}
    return [f"{name}=={number}" for name, number in (description.get("libraries", {}) | ours).items()]


def _carried(scratch: Path, names: Sequence[str]) -> Path:
    """Copy the code stored with a model: files and folders of this package."""
    package = scratch / "distmeta"
    for name in names:
        source, copied = _PACKAGE / name, package / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copied)
    return package


def _signature(inner_steps: int | None) -> ModelSignature:
    """A table of images and labels in, classes and probabilities out; inner_steps for learners that make some."""
    params = [] if inner_steps is None else [ParamSpec("inner_steps", DataType.integer, inner_steps)]
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(AnyType(), "label", required=False)]),
        outputs=_ANSWERS,
        params=ParamSchema(params),
    )


def _example(description: dict[str, Any]) -> pd.DataFrame:
    """One support image for each class, in shades of grey, and a query."""
    way, size = description["task"]["way"], description["preprocessing"]["image_size"]
    rows = [(255 * i // way, f"class {i}") for i in range(way)] + [(100, "")]
    return pd.DataFrame([{"image": _flat_png(shade, size), "label": label} for shade, label in rows])


def _flat_png(shade: int, size: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size), shade, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
