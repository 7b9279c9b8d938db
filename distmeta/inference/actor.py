"""An adapted policy that only acts: observations → actions. This module is part of the code stored in an adapted policy's MLflow model."""

from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from distmeta.envs.environment import Continuous, Discrete
from distmeta.learners.description import Built
from distmeta.learners.forward import Forward
from distmeta.learners.one_by_one import one_by_one
from distmeta.learners.params import Params, fill, floating
from distmeta.learners.policy import Policy, policy_for
from distmeta.models import build_model

_Size = Annotated[int, Field(ge=1, le=10**6)]


class ActorDescription(TypedDict):
    """The description stored with an actor's weights. `kind` says whether actions are vectors of `size` components or one of `size`
    choices.
    """

    model: Built
    observation_size: _Size
    kind: Annotated[str, Field(pattern="^(continuous|discrete)$")]
    size: _Size
    environment: str
    task: dict[str, float]


class Actor(NamedTuple):
    """`policy` with one set of parameters: those of the network that `forward` computes, and the policy's other parameters."""

    forward: Forward
    policy: Policy
    params: Params

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """The most probable actions (M, size), or integers (M,), for observations (M, O). An action does not depend on the other
        observations.
        """
        given = observations.to(floating(self.params))
        outputs = one_by_one(lambda one: self.forward(self.params, one[None])[0], given)
        return self.policy.act(self.params, outputs[None], None)[0]


def build_actor(description: ActorDescription, params: Params) -> Actor:
    """The actor for `description`. If its network is a user's class, the class is imported. Raises the same errors as `build_model`."""
    settings: dict[str, Any] = dict(description["model"])
    network = build_model(**settings, allow_import="." in settings["name"])
    fill(network, params)
    actions = Continuous(description["size"]) if description["kind"] == "continuous" else Discrete(description["size"])
    return Actor(Forward(network, batched=False), policy_for(actions), params)
