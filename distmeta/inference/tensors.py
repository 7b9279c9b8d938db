"""A meta-trained model whose inputs are not images (vectors, sequences, token ids): adapt it to examples, then predict others."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch
from distmeta.data.functions import FAMILIES
from distmeta.errors import ConfigError, DataError
from distmeta.inference.inputs import check_dense
from distmeta.inference.limits import limits
from distmeta.inference.model import build
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Objective, SquaredError, check_finite, kind_of
from distmeta.learners.one_by_one import one_by_one
from distmeta.learners.params import Params, floating, unusable


class TensorModel(NamedTuple):
    """A meta-trained model of tensors, ready to adapt. `description` is the description published with its weights."""

    uri: str
    description: dict[str, Any]
    learner: Learner
    meta_params: Params

    def adapt(self, inputs: Tensor, targets: Tensor, inner_steps: int | None = None) -> "AdaptedTensors":
        """The network adapted to M examples, by `inner_steps` (default: those it was evaluated with).

        inputs (M, …) as the domain gives them; targets (M, N) real numbers in regression, (M,) class numbers from 0 in classification.
        Raises DataError if they do not match, the network does not accept them, or adapting diverges; ConfigError for inner_steps that the
        learner does not support.
        """
        _check(inputs, "input")
        check_dense(targets, "targets")
        if not isinstance(targets, Tensor) or targets.shape[:1] != inputs.shape[:1] or not len(inputs):
            given = f"targets {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"targets of type {type(targets).__name__}"
            raise DataError(f"{len(inputs)} inputs but {given}", "give a tensor with one target for each input, and at least one")
        learner = copy.deepcopy(self.learner)
        learner.objective.check_targets(targets, None if learner.any_way else self.description["model"]["outputs"])
        if inner_steps is not None:
            limits().check("inner_steps", inner_steps)
            learner.check_steps(self.meta_params, inner_steps)
            learner.inner_steps_eval = inner_steps
        episode = EpisodeBatch.of_support(inputs, targets).like(floating(self.meta_params))
        with _reading(inputs):
            adapted = learner.adapt(self.meta_params, episode)
            with torch.no_grad():  # a learner that adapts without the network has not read them yet
                learner.outputs(adapted, episode.support_images[0, :1])
        problem = unusable(adapted)
        if problem:
            raise DataError(f"adapting by {learner.inner_steps_eval} inner steps diverged: {problem}", "give fewer inner steps")
        return AdaptedTensors(learner, adapted)


class AdaptedTensors(NamedTuple):
    """A network adapted to one task, with all its parameters in `params`."""

    learner: Learner
    params: Params

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The network's outputs (M, N) for inputs (M, …): values, or logits of classes.

        Outputs for one input do not depend on the others, bit for bit. Raises DataError if the network does not read the inputs, or an
        input or its outputs hold a value that is not finite.
        """
        _check(inputs, "input")
        like = floating(self.params)
        given = inputs.to(like.device, like.dtype if inputs.is_floating_point() else None)
        with _reading(inputs):
            outputs = one_by_one(lambda one: self.learner.outputs(self.params, one), given)
        _check(outputs, "the network's output for input")
        return outputs


def build_tensor_model(
    uri: str, description: dict[str, Any], weights: Params, own: Collection[str] = (), objective: Objective | None = None
) -> TensorModel:
    """The model for `description`; `objective` is that of its domain (default: squared error, for distmeta's functions).

    Raises the same errors as `build`, and ConfigError if the domain is the user's and `objective` is missing, because its name alone is
    never imported.
    """
    if objective is None and description["dataset"] not in FAMILIES:
        raise ConfigError(f"{uri} was trained on {description['dataset']}, a domain of your own", "give objective=, that of the domain")
    learner = build(description, weights, own, objective or SquaredError())
    return TensorModel(uri, description, learner, weights)


def _check(values: Tensor, what: str) -> None:
    """Raises DataError unless `values`, (M, …), are a tensor of finite values; `what` names one."""
    check_dense(values, f"{what}s")
    if not isinstance(values, Tensor) or not values.dim():
        found = "a single number" if isinstance(values, Tensor) else type(values).__name__
        raise DataError(f"inputs are {found}; a tensor (M, …) is needed", "convert them with torch.as_tensor")
    check_finite(values.float() if values.is_floating_point() and values.element_size() == 1 else values, what)  # float8


@contextmanager
def _reading(inputs: Tensor) -> Iterator[None]:
    """Convert torch's errors about `inputs` that the network does not accept into DataError."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"the network does not read inputs {kind_of(inputs)}: {' '.join(str(error).split())}",
            "give inputs of the type, shape and range that it was trained with",
        ) from error
