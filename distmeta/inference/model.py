"""A meta-trained model in use: adapt it to labelled images, classify others.

This module is part of the code stored in a published model, so it imports neither MLflow nor the reader of shards.
"""

import copy
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from distmeta.data.decode import ValueRange
from distmeta.data.episodes import EpisodeBatch
from distmeta.data.images import Preprocessing
from distmeta.errors import ConfigError, DataError
from distmeta.files import of_kind, parse_json, read_bytes
from distmeta.inference.inputs import Picture as Picture  # the code of earlier published models imports it from here
from distmeta.inference.inputs import Pictures, check_several, class_labels, network_input
from distmeta.inference.limits import limits
from distmeta.inference.temperature import nearest_temperature
from distmeta.learners import build_learner
from distmeta.learners.description import Description, Temperature
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Objective
from distmeta.learners.params import Params, difference, fill, floating, state, unusable
from distmeta.models import MODELS, build_model
from distmeta.models.convert import batch_norms
from distmeta.models.head import NoHead, has_head, head_of, is_head, set_head
from distmeta.models.lora import merge, without_pairs

WEIGHTS_FILE, _ABOUT = "adapted.safetensors", "adapted"  # the file, and what its header calls classes and description
_OLD_ABOUT = "adapted.json"  # their earlier location


_TIMES, _HEAD = 2, 10_000_000  # limits: values of a network per stored value, and values of a head that is not stored
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


class _About(TypedDict):
    classes: list[str | int | float | bool]
    description: Description
    shot: NotRequired[Annotated[float, Field(gt=0, le=1e9)] | None]
    temperature: NotRequired[Temperature | None]


class Model(NamedTuple):
    """A meta-trained model, ready to adapt. `description` is the description published with its weights."""

    uri: str
    description: dict[str, Any]
    learner: Learner
    meta_params: Params

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.model_validate(self.description["preprocessing"])

    @property
    def way(self) -> int | None:
        """The number of classes it adapts to, None for any."""
        return None if self.learner.any_way else self.description["task"]["way"]

    def with_value_range(self, value_range: ValueRange) -> "Model":
        """The same model with other values of black and white for images that do not have 8 bits."""
        preprocessing = self.description["preprocessing"] | {"value_range": value_range}
        return self._replace(description=self.description | {"preprocessing": preprocessing})

    def check_classes(self, count: int, origin: str) -> None:
        """Raises DataError unless the model can distinguish `count` classes; `origin` is their place, for the message."""
        if self.way is not None and count != self.way:
            learner = self.description["learner"]["name"]
            raise DataError(
                f"{origin} has {count} classes but the model was trained for {self.way}-way tasks ({learner} adapts a head of that width)",
                f"give {self.way} classes, or train with data.way={count}; protonet and meta-baseline take any number",
            )
        if count < 2:
            raise DataError(f"{origin} has {count} class; at least two are needed", "also give images of the other classes")

    def adapt(self, images: Pictures, labels: Iterable[Any], inner_steps: int | None = None) -> "Adapted":
        """The network adapted to M labelled images, by `inner_steps` (default: those it was evaluated with).

        `labels` are as `class_labels` takes them. Raises DataError if images do not decode, labels are missing or mixed, their classes
        are not as many as the model takes, adapting gives values that are not finite, or `inner_steps` is above the limit in `Limits`;
        ConfigError for other inner_steps than the learner can make.
        """
        check_several(images)
        names = class_labels(labels)
        if len(names) != len(images):
            raise DataError(f"{len(images)} images but {len(names)} labels", "give a label for each image")
        classes = sorted(set(names))
        self.check_classes(len(classes), "the support set")
        learner = copy.deepcopy(self.learner)  # the copy becomes the adapted network, so several threads may adapt at once
        if inner_steps is not None:
            limits().check("inner_steps", inner_steps)
            learner.check_steps(self.meta_params, inner_steps)
            learner.inner_steps_eval = inner_steps
        inputs = network_input(images, self.preprocessing, floating(self.meta_params))
        targets = torch.tensor([classes.index(name) for name in names], device=inputs.device)
        tensors = learner.adapt(self.meta_params, EpisodeBatch.of_support(inputs, targets))
        problem = unusable(tensors)
        if problem:
            raise DataError(f"adapting by {learner.inner_steps_eval} inner steps diverged: {problem}", "give fewer inner steps")
        shot = len(names) / len(classes)
        fitted = nearest_temperature(self.description, len(classes), shot, learner.inner_steps_eval)
        return Adapted(self.description, learner, tensors, classes=classes, shot=shot, temperature=fitted)


class Adapted(nn.Module):
    """A network adapted to one task, as a plain torch module in evaluation mode.

    forward: network input (M, C, H, W) → logits (M, N), every image by itself, divided by the `temperature` that was fitted for the
    most similar tasks, if any was. `classes` names the N outputs, and `shot` is the mean number of images that a class was given. Its
    state_dict holds the adapted weights, with the support set's norm statistics, under the network's own names; low-rank pairs are merged
    into them.
    """

    def __init__(
        self,
        description: dict[str, Any],
        learner: Learner,
        tensors: Params,
        classes: list[Any],
        shot: float | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__()
        self.network = _filled(learner.model, tensors)
        self._beside = sorted(tensors.keys() - state(self.network).keys())
        for name in self._beside:  # such as centroids
            self.register_buffer(name, tensors[name])
        if "lora" in description["model"]:
            merge(self.network)
            description = without_pairs(description)
        self.description = description
        self.preprocessing = Preprocessing.model_validate(description["preprocessing"])
        self.classes = classes
        self.shot, self.temperature = shot, temperature
        self.learner = learner
        self.eval()

    def tensors(self) -> Params:
        """The result of `Learner.adapt`, by name."""
        return state(self.network) | {name: self.get_buffer(name) for name in self._beside}

    def forward(self, inputs: Tensor) -> Tensor:
        return self._logits(self.tensors(), inputs)

    def _logits(self, tensors: Params, inputs: Tensor) -> Tensor:
        logits = self.learner.outputs(tensors, inputs)
        return logits if self.temperature is None else logits / self.temperature["temperature"]

    @torch.no_grad()
    def predict(self, images: Pictures) -> Tensor:
        """Class probabilities (M, N) of M images. Those of one image do not depend on the others, bit for bit. Raises DataError."""
        check_several(images)
        tensors = self.tensors()
        like = floating(tensors)
        rows = [torch.zeros(0, len(self.classes), dtype=like.dtype, device=like.device)]
        for number in range(len(images)):  # one by one, as `distmeta.learners.one_by_one` explains
            inputs = network_input(images[number : number + 1], self.preprocessing, like, first=number)
            rows.append(self._logits(tensors, inputs).softmax(1))
        return finite(torch.cat(rows))

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """The probabilities for network input (M, C, H, W), computed together. This is faster than `predict`, but the last bits of an
        image's probabilities may depend on the other images.
        """
        return self(inputs).softmax(1)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device that inputs must have."""
        return floating(self.tensors())

    def save(self, folder: Path | str) -> None:
        """Write the adapted network into `folder` (created if needed): one safetensors file, which also holds classes and description as
        JSON. An earlier model in `folder` is replaced atomically. Raises DataError if it cannot be written.
        """
        folder = Path(folder)
        tensors = {name: value.detach().contiguous() for name, value in self.tensors().items()}
        known = {"classes": self.classes, "shot": self.shot, "temperature": self.temperature}
        about = json.dumps(known | {"description": self.description})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".adapted-", dir=folder) as scratch:
                save_file(tensors, Path(scratch) / WEIGHTS_FILE, {_ABOUT: about})
                os.replace(Path(scratch) / WEIGHTS_FILE, folder / WEIGHTS_FILE)
            (folder / _OLD_ABOUT).unlink(missing_ok=True)
        except (OSError, ValueError, SafetensorError) as error:  # ValueError: a null character in the name
            raise DataError(f"{folder} cannot be written: {error}", "give a folder that you can write to") from None

    @staticmethod
    def load(folder: Path | str, own: Collection[str] | None = ()) -> "Adapted":
        """What `save` wrote; `own` holds the import paths of the network's and the learner's class, if they are your own. With None,
        whatever class the file names is imported.

        Raises DataError if `folder` does not hold it.
        """
        with _readable(folder):
            about = _about(Path(folder))
            with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
            problem = unusable(tensors)
            if problem:
                raise ValueError(problem)
            description = dict(about["description"])
            learner = build(description, tensors, named_classes(description) if own is None else own)
            shot, temperature = about.get("shot"), about.get("temperature")  # models of earlier versions do not have them
            return Adapted(description, learner, tensors, about["classes"], shot=shot, temperature=temperature)

    @staticmethod
    def described(folder: Path | str) -> dict[str, Any]:
        """The description that `save` wrote; nothing is built. Raises DataError."""
        with _readable(folder):
            return dict(_about(Path(folder))["description"])

    def export_onnx(self, path: Path | str) -> None:
        """Write forward as an ONNX graph, images (M, C, H, W) → logits (M, N) with M free; its metadata names classes and preprocessing.

        Needs the extra `distmeta[onnx]`. Raises ConfigError without it, DataError if `path` cannot be written.
        """
        if find_spec("onnxscript") is None:
            raise ConfigError("exporting to ONNX needs packages that are not installed", "pip install 'distmeta[onnx]'")
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        like = floating(self.tensors())
        example = torch.zeros(2, channels, size, size, dtype=like.dtype, device=like.device)
        names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: torch.export.Dim("M", min=1)},)}
        program = torch.onnx.export(self, (example,), dynamo=True, verbose=False, **names)
        assert program is not None
        program.model.metadata_props["classes"] = json.dumps(self.classes)
        program.model.metadata_props["preprocessing"] = self.preprocessing.model_dump_json()
        try:
            program.save(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}", "give the path of a file in a folder that exists") from None


def _about(folder: Path) -> _About:
    """The description of a saved network."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        text = (file.metadata() or {}).get(_ABOUT)
    about: _About = of_kind(_About, parse_json(text if text is not None else read_bytes(folder / _OLD_ABOUT), finite=False))
    return about


@contextmanager
def _readable(folder: Path | str) -> Iterator[None]:
    """Convert errors in reading `folder` into DataError."""
    try:
        yield
    except (*_UNREADABLE, RuntimeError, StopIteration, ConfigError, SafetensorError) as error:
        raise DataError(f"{folder} holds no adapted model ({error!r})", "give a folder that Adapted.save wrote") from None


def finite(probabilities: Tensor) -> Tensor:
    """`probabilities` (M, N). Raises DataError naming the image whose are not finite."""
    if not probabilities.isfinite().all():
        number = int(probabilities.isfinite().all(1).int().argmin())
        raise DataError(f"the network's answer to image {number} is not finite (NaN)", "check that image, and adapt the model again")
    return probabilities


def named_classes(description: dict[str, Any]) -> set[str]:
    """The names of a model's network and learner; some may be import paths of the user's classes."""
    return {description[part]["name"] for part in ("model", "learner")}


def _filled(network: nn.Module, tensors: Params) -> nn.Module:
    """`network` with these values, of a head only if they hold one; norm statistics become part of its state."""
    if has_head(network) and not any(is_head(network, name) for name in tensors):
        set_head(network, NoHead(head_of(network)))  # a metric learner compares features
    for norm in batch_norms(network).values():
        for name in ("running_mean", "running_var"):
            norm.register_buffer(name, getattr(norm, name), persistent=True)
    fill(network, tensors)
    return network.requires_grad_(False)


def build(description: dict[str, Any], weights: Params, own: Collection[str] = (), objective: Objective | None = None) -> Learner:
    """The learner that `description` names, around its network with the values of `weights`, on their device and in their type.

    A class named by a registry is imported only if `own`, the user's import paths, names it too. Raises the same errors as the
    constructors.
    """
    if not any(value.is_floating_point() for value in weights.values()):
        raise ValueError("the weights hold no numbers")
    like = floating(weights)
    if description["model"]["name"] in MODELS:
        _check_size(description["model"], weights)
    network = build_model(**description["model"], allow_import=description["model"]["name"] in own).to(like.device, like.dtype)
    allow_import = description["learner"]["name"] in own
    learner = build_learner(model=network, objective=objective, allow_import=allow_import, **description["learner"])
    frozen = description.get("frozen", ())
    _check_fit(learner.model, weights, frozen)  # an objective may have added parameters to the network
    fill(learner.model, weights)
    for name in frozen:
        learner.model.get_parameter(name).requires_grad_(False)
    return learner


def _check_fit(network: nn.Module, weights: Params, frozen: Collection[str]) -> None:
    """Raises ConfigError unless `weights` hold all values of `network`, the head's only if any of the head's, and it has those `frozen`."""
    headless = not any(is_head(network, name) for name in weights)
    wanted = {name: value for name, value in state(network).items() if not (headless and is_head(network, name))}
    unlike = difference({name: value for name, value in weights.items() if name in wanted or name in frozen}, wanted)
    if unlike:
        raise ConfigError(
            f"the weights are not those of a {type(network).__name__} as it is now: {unlike}",
            "if that is your own class, use the code that it was trained with",
        )


def _check_size(model: dict[str, Any], weights: Params) -> None:
    """Raises ValueError before the network is built, if its description asks for much more values than the weights have."""
    with torch.device("meta"):  # shapes without values
        network = build_model(**model)
    asked, held = (sum(value.numel() for value in values) for values in (state(network).values(), weights.values()))
    if asked > _TIMES * held + _HEAD:
        raise ValueError(f"the network that is described has {asked:,} values; the weights hold {held:,}")
