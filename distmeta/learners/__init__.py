"""Learners: what adapts to a support set and turns episodes into a meta-gradient."""

from typing import Any

from torch import nn

from distmeta.learners.maml import MAML

LEARNERS: dict[str, type[MAML]] = {"maml": MAML}


def build_learner(name: str, model: nn.Module, **settings: Any) -> MAML:
    """The learner `name` for `model`, with its constructor's arguments."""
    return LEARNERS[name](model, **settings)
