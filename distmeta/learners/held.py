"""Trajectories for several updates: drawn once, then weighted by the likelihood ratio of each action under the changed policy.

Shapes: B tasks, P phases (before the first inner step, after it, …), N trajectories, H steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.learners.trajectories import Trajectories


class Phase(NamedTuple):
    """Trajectories of T tasks in one phase, each action's advantage (T, N, H), and the acting policy. The policy is stored as its
    log-probabilities of the actions (T, N, H), its network's outputs (T, N, H, K), and its parameters besides the network's as one vector
    (T, k).
    """

    trajectories: Trajectories
    advantages: Tensor
    log_probs: Tensor
    outputs: Tensor
    own: Tensor


@dataclass(frozen=True)
class HeldBatch(Batch):
    """B tasks with their trajectories in all phases: the parts of `Phase`, each (B, P, …)."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lived: Tensor
    bootstrapped: Tensor
    advantages: Tensor
    log_probs: Tensor
    outputs: Tensor
    own: Tensor

    @classmethod
    def of(cls, batch: Batch, phases: Sequence[Phase]) -> "HeldBatch":
        """The tasks of `batch` with the trajectories of each phase."""
        parts = zip(*((*phase.trajectories, *phase[1:]) for phase in phases), strict=True)
        return cls(batch.step, batch.slots, *(torch.stack(part, 1) for part in parts))

    @classmethod
    def joined(cls, batches: Sequence["HeldBatch"]) -> "HeldBatch":
        """The concatenation of all their tasks, in order."""
        slots = [slot for batch in batches for slot in batch.slots]
        names = [field.name for field in fields(cls) if field.name not in ("step", "slots")]
        return cls(batches[0].step, slots, *(torch.cat([getattr(batch, name) for batch in batches]) for name in names))

    def phase(self, number: int) -> Phase:
        """The trajectories after `number` inner steps."""
        count = len(Trajectories._fields)
        parts = [getattr(self, field.name)[:, number] for field in fields(self) if field.name not in ("step", "slots")]
        return Phase(Trajectories(*parts[:count]), *parts[count:])
