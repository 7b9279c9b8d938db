"""A meta-trained model in use: adapt it to labelled images, classify others.

This is what a published model brings along as code, so it knows torch and images but neither MLflow nor the shards it was trained on.
"""

import copy
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distmeta.data.decode import ValueRange, read_file
from distmeta.data.episodes import EpisodeBatch
from distmeta.data.images import Pixels, Preprocessing, channels_last, decode, pixels_of
from distmeta.errors import ConfigError, DataError
from distmeta.learners import build_learner
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Objective
from distmeta.learners.params import Params, fill, state
from distmeta.models import build_model
from distmeta.models.convert import batch_norms
from distmeta.models.head import is_head, set_head

CHUNK = 16  # queries classified at once; always as many, so that a query meets the same arithmetic in every company
_WEIGHTS, _ABOUT = "adapted.safetensors", "adapted.json"

Picture = bytes | Path | str | Image.Image | NDArray[np.uint8]
"""An encoded file, the path of one, a Pillow image, or uint8 pixels (H, W) or (H, W, C) with C 1, 3 (RGB) or 4 (RGBA)."""
Pictures = Sequence[Picture] | NDArray[np.uint8] | Tensor
"""Pictures of any sizes; or, as a tensor of floats (M, C, H, W), network input as an EpisodeStream gives it."""


class Model(NamedTuple):
    """A meta-trained model, ready to adapt. `description` is what was published beside its weights."""

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
        """The same model, for which other values are black and white in images that do not have 8 bits."""
        preprocessing = self.description["preprocessing"] | {"value_range": value_range}
        return self._replace(description=self.description | {"preprocessing": preprocessing})

    def check_classes(self, count: int, origin: str) -> None:
        """Raises DataError unless the model can tell `count` classes apart; `origin` says where they were found."""
        if self.way is not None and count != self.way:
            learner = self.description["learner"]["name"]
            raise DataError(
                f"{origin} has {count} classes but the model was trained for {self.way}-way tasks ({learner} adapts a head of that width)",
                f"give {self.way} classes, or train with data.way={count}; protonet and meta-baseline take any number",
            )
        if count < 2:
            raise DataError(f"{origin} has {count} class; at least two are needed", "give images of the other classes, too")

    def adapt(self, images: Pictures, labels: Sequence[str | int] | Tensor, inner_steps: int | None = None) -> "Adapted":
        """The network adapted to M labelled images, by `inner_steps` (those it was evaluated with, if None).

        Raises DataError if images do not decode or their classes are not as many as the model takes, ConfigError for other inner_steps
        than the learner can make.
        """
        labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        if len(labels) != len(images):
            raise DataError(f"{len(images)} images but {len(labels)} labels", "give a label for each image")
        classes = sorted(set(labels))
        self.check_classes(len(classes), "the support set")
        learner = copy.deepcopy(self.learner)  # its network becomes the adapted one; threads may adapt side by side
        if inner_steps is not None:
            learner.check_steps(self.meta_params, inner_steps)
            learner.inner_steps_eval = inner_steps
        inputs = network_input(images, self.preprocessing, next(iter(self.meta_params.values())))
        targets = torch.tensor([classes.index(label) for label in labels], device=inputs.device)
        return Adapted(self.description, learner, learner.adapt(self.meta_params, EpisodeBatch.of_support(inputs, targets)), classes)


class Adapted(nn.Module):
    """A network adapted to one task, as a plain torch module in evaluation mode.

    forward: network input (M, C, H, W) → logits (M, N), every image by itself; `classes` names the N outputs. Its state_dict holds the
    adapted weights, with the support set's norm statistics, under the network's own names.
    """

    def __init__(self, description: dict[str, Any], learner: Learner, tensors: Params, classes: list[Any]) -> None:
        super().__init__()
        self.description = description
        self.preprocessing = Preprocessing.model_validate(description["preprocessing"])
        self.classes = classes
        self.learner = learner
        self.network = _filled(learner.model, tensors)
        self._beside = sorted(tensors.keys() - state(self.network).keys())
        for name in self._beside:  # such as centroids
            self.register_buffer(name, tensors[name])
        self.eval()

    def tensors(self) -> Params:
        """What `Learner.adapt` returned, by name."""
        return state(self.network) | {name: self.get_buffer(name) for name in self._beside}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.learner.outputs(self.tensors(), inputs)

    @torch.no_grad()
    def predict(self, images: Pictures) -> Tensor:
        """Class probabilities (M, N) of M images. Those of one image do not depend on the others. Raises DataError."""
        tensors = self.tensors()
        like = next(iter(tensors.values()))
        rows = [torch.zeros(0, len(self.classes), dtype=like.dtype, device=like.device)]
        for start in range(0, len(images), CHUNK):
            inputs = network_input(images[start : start + CHUNK], self.preprocessing, like)
            padded = torch.cat([inputs, inputs[:1].expand(CHUNK - len(inputs), *inputs.shape[1:])])
            rows.append(self.learner.outputs(tensors, channels_last(padded))[: len(inputs)].softmax(1))
        return torch.cat(rows)

    def save(self, folder: Path | str) -> None:
        """Write the adapted network into `folder`, made if absent, as safetensors and JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in self.tensors().items()}, folder / _WEIGHTS)
        (folder / _ABOUT).write_text(json.dumps({"classes": self.classes, "description": self.description}, indent=1))

    @staticmethod
    def load(folder: Path | str, own: Collection[str] = ()) -> "Adapted":
        """What `save` wrote; `own` holds the import paths of the network's and the learner's class, if they are your own.

        Raises DataError if `folder` does not hold it.
        """
        try:
            about = json.loads((Path(folder) / _ABOUT).read_text())
            tensors = load_file(Path(folder) / _WEIGHTS)
            return Adapted(about["description"], build(about["description"], tensors, own), tensors, about["classes"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ConfigError) as error:
            raise DataError(f"{folder} holds no adapted model ({error!r})", "give a folder that Adapted.save wrote") from None

    def export_onnx(self, path: Path | str) -> None:
        """Write forward as an ONNX graph, images (M, C, H, W) → logits (M, N) with M free; its metadata names classes and preprocessing.

        Needs the extra `distmeta[onnx]`.
        """
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        like = next(iter(self.tensors().values()))
        example = torch.zeros(2, channels, size, size, dtype=like.dtype, device=like.device)
        names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: torch.export.Dim("M", min=1)},)}
        program = torch.onnx.export(self, (example,), dynamo=True, verbose=False, **names)
        assert program is not None
        program.model.metadata_props["classes"] = json.dumps(self.classes)
        program.model.metadata_props["preprocessing"] = self.preprocessing.model_dump_json()
        program.save(path)


def _filled(network: nn.Module, tensors: Params) -> nn.Module:
    """`network` with these values, of a head only if they hold one; norm statistics become part of its state."""
    if not any(is_head(network, name) for name in tensors):
        set_head(network, nn.Identity())  # a metric learner compares features
    for norm in batch_norms(network).values():
        for name in ("running_mean", "running_var"):
            norm.register_buffer(name, getattr(norm, name), persistent=True)
    fill(network, tensors)
    return network.requires_grad_(False)


def build(description: dict[str, Any], weights: Params, own: Collection[str] = (), objective: Objective | None = None) -> Learner:
    """The learner that `description` names, around its network with the values of `weights`, on their device and in their type.

    Nothing that came from a registry is imported for its name alone, only what `own` names: import paths that the user gave.
    Raises what the constructors raise.
    """
    like = next(value for value in weights.values() if value.is_floating_point())
    network = build_model(**description["model"], allow_import=description["model"]["name"] in own).to(like.device, like.dtype)
    allow_import = description["learner"]["name"] in own
    learner = build_learner(model=network, objective=objective, allow_import=allow_import, **description["learner"])
    fill(learner.model, weights)  # an objective may have added parameters to the network
    for name in description.get("frozen", ()):
        learner.model.get_parameter(name).requires_grad_(False)
    return learner


def network_input(images: Pictures, preprocessing: Preprocessing, like: Tensor) -> Tensor:
    """(M, C, H, W) in the type and on the device of `like`. Raises DataError naming an image that cannot be understood."""
    if isinstance(images, Tensor) and images.is_floating_point():
        wanted = (preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
        if images.shape[1:] != wanted:
            raise DataError(
                f"images of shape {tuple(images.shape)}; (M, {', '.join(map(str, wanted))}) is needed", "normalise and resize them"
            )
        return channels_last(images.to(like))
    pixels = np.stack([_pixels(image, preprocessing, f"image {i}") for i, image in enumerate(images)])
    return channels_last(preprocessing.network_input(pixels).to(like))


def _pixels(image: Picture, preprocessing: Preprocessing, origin: str) -> Pixels:
    if isinstance(image, bytes):
        return decode(image, preprocessing, origin)
    if isinstance(image, str | Path):
        return decode(read_file(Path(image)), preprocessing, str(image))
    return pixels_of(image if isinstance(image, Image.Image) else _picture(np.asarray(image), origin), preprocessing, origin)


def _picture(pixels: NDArray[Any], origin: str) -> Image.Image:
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if grey.dtype != np.uint8 or grey.ndim not in (2, 3) or 0 in grey.shape or (grey.ndim == 3 and grey.shape[2] not in (3, 4)):
        raise DataError(
            f"{origin} is an array of {pixels.dtype} {pixels.shape}; uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is needed",
            "give pixel values 0..255, channels last",
        )
    return Image.fromarray(grey)
