"""Common parts of loading registered models that are adapted in Python."""

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from distmeta.errors import RegistryError, RunError
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.registry.checks import check_known, check_weights
from distmeta.registry.versions import download
from distmeta.training.model_folder import ModelFolder


class Adaptable(Protocol):
    """A model with its learner and weights."""

    @property
    def learner(self) -> Learner: ...

    @property
    def meta_params(self) -> Params: ...


M = TypeVar("M", bound=Adaptable)


def load_adaptable(
    uri: str, model_uri: str, own: Collection[str], check: Callable[[dict[str, Any]], None], build: Callable[[dict[str, Any], Params], M]
) -> M:
    """The result of `build` for a registered model's description and weights, after `check` of the description. Raises RegistryError."""
    with tempfile.TemporaryDirectory() as scratch:
        description = download(uri, model_uri, Path(scratch))
        check(description)
        check_known(model_uri, description, own)
        try:
            model = build(description, ModelFolder(Path(scratch)).load_params())
        except (KeyError, TypeError, ValueError, RuntimeError, RunError) as error:
            raise RegistryError(f"{model_uri} cannot be read: {error!r}", "was it published by a newer distmeta? update distmeta") from None
    check_weights(model.learner, model.meta_params, model_uri)
    return model
