"""Adapt a published model to a folder of labelled images and classify others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmeta.data.images import channels_last, decode
from distmeta.errors import DataError
from distmeta.registry.models import Model

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_CHUNK = 64


def support_set(folder: Path, way: int | None) -> dict[str, list[Path]]:
    """class name → image files, from folder/class_name/*.

    Raises DataError unless there are `way` classes (two or more if None) with an image each.
    """
    if not folder.is_dir():
        raise DataError(f"support folder {folder} does not exist", "give a folder that holds a folder of images for each class")
    classes = {sub.name: _images_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    if len(classes) < 2:
        found = "no class folder" if not classes else f"one class folder, {next(iter(classes))!r}"
        raise DataError(
            f"support folder {folder} has {found}; at least two are needed", "put the images of each class in a folder of its name"
        )
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise DataError(f"class folder {folder / empty[0]} holds no image", f"put {', '.join(sorted(_SUFFIXES))} files there, or remove it")
    if way is not None and len(classes) != way:
        raise DataError(
            f"support folder {folder} has {len(classes)} classes but the model was trained for {way}-way tasks",
            f"give {way} classes, or train with data.way={len(classes)}",
        )
    return classes


def query_files(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted. Raises DataError if there are none."""
    files = _images_in(folder) if folder.is_dir() else [folder] if folder.is_file() else []
    if not files:
        raise DataError(f"{folder} holds no image to classify", f"give a folder with {', '.join(sorted(_SUFFIXES))} files")
    return files


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def predict_folder(model: Model, support: Path, query: Path) -> Iterator[dict[str, Any]]:
    """For each image under `query`, {"file", "class", "probability"} after adapting `model` to support/class_name/*.

    The answer for an image does not depend on which others are asked. Raises DataError.
    """
    classes = support_set(support, model.way)
    files = query_files(query)
    names = list(classes)
    images = _read([path for paths in classes.values() for path in paths], model)
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(paths) for paths in classes.values()]))
    adapted = model.learner.adapt(model.meta_params, images, labels)
    for start in range(0, len(files), _CHUNK):
        chunk = files[start : start + _CHUNK]
        # Padded to one size, so that a query meets the same arithmetic in every company.
        queries = _read(chunk, model)
        padded = torch.cat([queries, queries[:1].expand(_CHUNK - len(queries), *queries.shape[1:])])
        probabilities = model.learner.predict(adapted, channels_last(padded)).inductive.softmax(1)
        for path, row in zip(chunk, probabilities[: len(chunk)], strict=True):
            yield {"file": str(path), "class": names[int(row.argmax())], "probability": row.max().item()}


def _read(paths: list[Path], model: Model) -> Tensor:
    pixels = np.stack([decode(path.read_bytes(), model.preprocessing, str(path)) for path in paths])
    dtype = next(iter(model.meta_params.values())).dtype
    return channels_last(model.preprocessing.network_input(pixels).to(dtype))
