"""A policy that is adapted and only acts: observations → actions. This is what an adapted policy's MLflow model brings along as code."""

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
    """What an actor is stored with, beside its weights. `kind` says whether actions are vectors of `size` or one of `size` choices."""

    model: Built
    observation_size: _Size
    kind: Annotated[str, Field(pattern="^(continuous|discrete)$")]
    size: _Size
    environment: str
    task: dict[str, float]


class Actor(NamedTuple):
    """`policy` under one set of parameters: those of the network that `forward` computes, and the policy's own."""

    forward: Forward
    policy: Policy
    params: Params

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """The likeliest actions (M, size), or (M,) integers, for observations (M, O). One action does not depend on the others."""
        given = observations.to(floating(self.params))
        outputs = one_by_one(lambda one: self.forward(self.params, one[None])[0], given)
        return self.policy.act(self.params, outputs[None], None)[0]


def build_actor(description: ActorDescription, params: Params) -> Actor:
    """The actor that `description` describes. Its network's class is imported if it is the user's own.

    Raises what `build_model` raises.
    """
    settings: dict[str, Any] = dict(description["model"])
    network = build_model(**settings, allow_import="." in settings["name"])
    fill(network, params)
    actions = Continuous(description["size"]) if description["kind"] == "continuous" else Discrete(description["size"])
    return Actor(Forward(network, batched=False), policy_for(actions), params)
