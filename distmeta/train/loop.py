"""The outer loop, top to bottom."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from distmeta.errors import DistmetaError, RunError
from distmeta.learners.learner import Batch, Learner, SlotMetrics
from distmeta.learners.params import Params
from distmeta.train.checkpoint import Checkpoint
from distmeta.train.evaluate import Evaluation
from distmeta.train.metrics import Record
from distmeta.train.outer import OuterUpdate
from distmeta.train.reduce import Contribution, Reduced, reduce


class Plan(NamedTuple):
    """How long and how often, in steps; and this worker's slots of the meta-batch."""

    steps: int
    checkpoint_every: int
    validate_every: int
    max_bad_steps: int
    meta_batch_size: int
    rank: int
    slots: list[int]


class Hooks(Protocol):
    """What the loop asks of the place it runs in. Every worker calls each of these at the same steps."""

    def log(self, record: Record) -> None:
        """Keep one step's record."""

    def validate(self, meta_params: Params) -> Evaluation:
        """How good they are on the validation episodes, over all workers."""

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        """These meta_params are the best so far."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint, and the records up to it."""

    def episode(self, step: int, slot: int) -> str:
        """What the episode of (step, slot) is made of, for people."""

    def stop_requested(self) -> bool:
        """Whether somebody asked this worker to stop soon."""


@dataclass
class Progress:
    """Where a run stands: `step` updates made, the best validation, steps in a row without a finite meta-gradient."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    bad_steps: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best_score": self.best_score, "bad_steps": self.bad_steps}


@dataclass
class _Timer:
    """Seconds since the last mark, by what they went into."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = now - self.last
        self.last = now


def train(learner: Learner, outer: OuterUpdate, batches: Iterator[Batch], progress: Progress, plan: Plan, hooks: Hooks) -> bool:
    """Outer updates from `progress.step` to `plan.steps`; whether it got there (or was asked to stop, after a last checkpoint).

    Raises RunError after `max_bad_steps` steps in a row with a non-finite meta-gradient, and what `reduce` raises.
    """
    while progress.step < plan.steps:
        timer = _Timer()
        contribution = contribute(learner, outer.meta_params, batches, plan.slots, timer)
        reduced = reduce(contribution, outer.meta_params, plan.meta_batch_size, plan.rank, hooks.stop_requested())
        timer.mark("reduce")
        gradient_norm = None
        if reduced.meta_gradient is not None:
            gradient_norm = outer.update(reduced.meta_gradient, progress.step)
        progress.step += 1
        count_bad(progress, plan, reduced, hooks)
        record = step_record(progress, reduced, gradient_norm, outer)
        if progress.step % plan.validate_every == 0 or progress.step == plan.steps:
            validation = hooks.validate(outer.meta_params)
            record["validation"] = validation.as_dict() | {"score": validation.score}
            if progress.best_score is None or validation.score > progress.best_score:
                progress.best_step, progress.best_score = progress.step, validation.score
                hooks.keep_best(outer.meta_params, progress.step, validation)
        timer.mark("update")
        hooks.log(record | timer.seconds)
        if reduced.stop or progress.step % plan.checkpoint_every == 0 or progress.step == plan.steps:
            hooks.checkpoint(Checkpoint(progress.step, outer.meta_params, outer.state(), progress.as_dict()))
        if reduced.stop:
            break
    return progress.step == plan.steps


def contribute(learner: Learner, meta_params: Params, batches: Iterator[Batch], slots: list[int], timer: _Timer) -> Contribution:
    """This worker's meta-gradients for the next step, or the failure that kept it from them: its peers must hear of either."""
    parameter = next(iter(meta_params.values()))
    try:
        episodes = next(batches).like(parameter)
        timer.mark("data")
        slot_gradients, metrics = learner.slot_gradients(meta_params, episodes)
        timer.mark("adapt")
        return Contribution(slots, slot_gradients, metrics)
    except DistmetaError as failure:
        nothing = torch.zeros(0, device=parameter.device)
        return Contribution([], nothing.view(0, 1), SlotMetrics(nothing, nothing, nothing), failure)


def count_bad(progress: Progress, plan: Plan, reduced: Reduced, hooks: Hooks) -> None:
    """Count steps in a row that were skipped, the same on every worker."""
    if reduced.meta_gradient is not None:
        progress.bad_steps = 0
        return
    progress.bad_steps += 1
    if progress.bad_steps >= plan.max_bad_steps:
        raise RunError(
            f"the meta-gradient was not finite for {progress.bad_steps} steps in a row, last at step {progress.step}, "
            f"slot {reduced.bad_slot} ({hooks.episode(progress.step - 1, reduced.bad_slot or 0)})",
            "lower learner.inner_lr or outer.lr, or set outer.clip_norm; then --resume",
        )


def step_record(progress: Progress, reduced: Reduced, gradient_norm: float | None, outer: OuterUpdate) -> Record:
    """What the metrics file says of a step. `ranks[s]` is the worker that computed slot s."""
    record: Record = {"step": progress.step, "outer_lr": outer.lr(progress.step - 1)}
    if reduced.meta_gradient is None:
        return record | {"bad_slot": reduced.bad_slot}
    classified = reduced.total.sum().item()
    accuracy = {"accuracy": reduced.correct.sum().item() / classified} if classified else {}
    return (
        record | {"meta_loss": reduced.losses.mean().item()} | accuracy | {"gradient_norm": gradient_norm, "ranks": reduced.ranks.tolist()}
    )
