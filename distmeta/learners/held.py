"""Trajectories that several updates learn from: drawn once, then weighted by how much likelier a changed policy makes each action.

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
    """Trajectories of T tasks in one phase, what each action was worth (T, N, H), and the policy that acted.

    Of that policy: its log-probabilities of the actions (T, N, H), its network's outputs (T, N, H, K), and the parameters that it has
    beside the network's, in one vector (T, k).
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
        """The tasks of `batch` with what was played in each phase."""
        parts = zip(*((*phase.trajectories, *phase[1:]) for phase in phases), strict=True)
        return cls(batch.step, batch.slots, *(torch.stack(part, 1) for part in parts))

    @classmethod
    def joined(cls, batches: Sequence["HeldBatch"]) -> "HeldBatch":
        """All their tasks, in order."""
        slots = [slot for batch in batches for slot in batch.slots]
        names = [field.name for field in fields(cls) if field.name not in ("step", "slots")]
        return cls(batches[0].step, slots, *(torch.cat([getattr(batch, name) for batch in batches]) for name in names))

    def phase(self, number: int) -> Phase:
        """What was played after `number` inner steps."""
        count = len(Trajectories._fields)
        parts = [getattr(self, field.name)[:, number] for field in fields(self) if field.name not in ("step", "slots")]
        return Phase(Trajectories(*parts[:count]), *parts[count:])
