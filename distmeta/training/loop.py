"""The outer loop, top to bottom."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.errors import DistmetaError, RunError
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, flatten, floating
from distmeta.training.checkpoint import Checkpoint
from distmeta.training.evaluate import Evaluation
from distmeta.training.metrics_folder import OWN_METRICS, Record
from distmeta.training.outer import OuterUpdate
from distmeta.training.reduce import Contribution, Reduced, Reduction, Request, SlotVectors, reduce, slot_sum


class Plan(NamedTuple):
    """Length and intervals of a run (steps), and this worker's slots of the meta-batch among `workers`."""

    steps: int
    checkpoint_every: int
    validate_every: int
    max_bad_steps: int
    meta_batch_size: int
    rank: int
    workers: int
    slots: list[int]
    reduction: Reduction = "exact"


class Hooks(Protocol):
    """The loop's callbacks. Every worker calls each of them at the same steps."""

    def log(self, record: Record) -> None:
        """Keep one step's record."""

    def validate(self, meta_params: Params) -> Evaluation:
        """Evaluate meta_params on the validation episodes, over all workers."""

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        """Keep these meta_params as the best so far."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint and the records up to it."""

    def episode(self, step: int, slot: int) -> str:
        """The episode of (step, slot) in words."""

    def request(self) -> Request:
        """This worker's request to all workers, for itself or for another one."""

    def node_going(self) -> bool:
        """Whether a node is newly known to be shutting down. Called only if some worker requested it."""


@dataclass
class Progress:
    """The state of a run: `step` updates made, the best validation, successive steps without a finite meta-gradient, and the largest
    magnitude in the last step's meta-gradients, which may scale the next.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    bad_steps: int = 0
    largest: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the step."""
        return {"best_step": self.best_step, "best_score": self.best_score, "bad_steps": self.bad_steps, "largest": self.largest}


@dataclass
class _Timer:
    """Seconds between marks, by activity."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        key = f"time/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self.last
        self.last = now

    def take(self) -> dict[str, float]:
        """Return the seconds and reset them."""
        taken, self.seconds = self.seconds, {}
        return taken


def train(learner: Learner, outer: OuterUpdate, batches: Iterator[Batch], progress: Progress, plan: Plan, hooks: Hooks) -> bool:
    """Outer updates from `progress.step` to `plan.steps`. Returns False if it was asked to stop, after a last checkpoint.

    Raises RunError after `max_bad_steps` steps in a row with a non-finite meta-gradient, and what `reduce` raises.
    """
    timer = _Timer()
    if plan.steps == 0 and progress.best_score is None:
        look(outer.meta_params, progress, hooks)
        hooks.checkpoint(Checkpoint(0, outer.meta_params, outer.state(), progress.as_dict()))
    while progress.step < plan.steps:
        reduced, updated = outer_step(learner, outer, batches, progress, plan, hooks, timer)
        progress.step += 1
        count_bad(progress, plan, reduced, hooks)
        record = step_record(progress, reduced, updated, outer, learner)
        timer.mark("update")
        if progress.step % plan.validate_every == 0 or progress.step == plan.steps:
            validation = look(outer.meta_params, progress, hooks)
            record["validation"] = validation.as_dict() | {"score": validation.stored_score}
            timer.mark("validate")
        hooks.log(record | timer.take())
        due = reduced.request >= Request.CHECKPOINT or progress.step % plan.checkpoint_every == 0 or progress.step == plan.steps
        if due or (reduced.request is Request.LOOK and hooks.node_going()):
            hooks.checkpoint(Checkpoint(progress.step, outer.meta_params, outer.state(), progress.as_dict()))
        timer.mark("log")  # counted in the next step's record, because this step's is already written
        if reduced.request is Request.STOP:
            break
    return progress.step == plan.steps


def look(meta_params: Params, progress: Progress, hooks: Hooks) -> Evaluation:
    """Validate, and keep meta_params if they are the best so far."""
    validation = hooks.validate(meta_params)
    if progress.best_score is None or validation.score > progress.best_score:
        progress.best_step = progress.step
        progress.best_score = validation.stored_score
        hooks.keep_best(meta_params, progress.step, validation)
    return validation


def outer_step(
    learner: Learner, outer: OuterUpdate, batches: Iterator[Batch], progress: Progress, plan: Plan, hooks: Hooks, timer: _Timer
) -> tuple[Reduced, Record]:
    """The next step of `outer`, the same on every worker. A failure is reported to all workers, because they would wait for this one."""
    request, batch = hooks.request(), None
    failure: DistmetaError | None = None
    try:
        drawn = next(batches).like(floating(outer.meta_params))
        timer.mark("data")
        batch = outer.prepare(learner, drawn)
    except DistmetaError as error:
        failure = error

    def mean(meta_params: Params, computed: Callable[[], SlotVectors], size: int | None = None) -> Reduced:
        flat = flatten(meta_params)
        while True:
            into = slot_sum(plan.reduction, plan.meta_batch_size, size or len(flat), flat, progress.largest)
            contribution = Contribution.failed(failure, into) if failure else Contribution.of(plan.slots, computed(), into)
            timer.mark("adapt")
            reduced = reduce(contribution, meta_params, plan.meta_batch_size, plan.rank, plan.workers, request, timer.mark)
            timer.mark("reduce")
            if reduced.bad_slot is None:
                progress.largest = reduced.largest
            if not reduced.again:
                return reduced

    return outer.step(learner, batch, mean, progress.step)  # type: ignore[arg-type]


def count_bad(progress: Progress, plan: Plan, reduced: Reduced, hooks: Hooks) -> None:
    """Count successive skipped steps, the same on every worker."""
    if reduced.meta_gradient is not None:
        progress.bad_steps = 0
        return
    progress.bad_steps += 1
    if progress.bad_steps >= plan.max_bad_steps:
        raise RunError(
            f"the meta-gradient was not finite for {progress.bad_steps} steps in a row, last at step {progress.step}, "
            f"slot {reduced.bad_slot} ({hooks.episode(progress.step - 1, reduced.bad_slot or 0)})",
            "lower learner.inner_lr or outer.lr, or set outer.clip_norm, and train again: --set run_folder=NEW",
        )


def step_record(progress: Progress, reduced: Reduced, updated: Record, outer: OuterUpdate, learner: Learner) -> Record:
    """A step's record in the metrics file: means over the slots. `ranks[s]` is the worker that computed slot s."""
    record: Record = {"step": progress.step, "outer_lr": outer.lr(progress.step - 1)}
    if reduced.meta_gradient is None:
        return record | {"bad_slot": reduced.bad_slot}
    score = learner.objective.score
    scored = {score: _finite(reduced.scores.mean())} if score else {}
    own = {f"{OWN_METRICS}{name}": _finite(column.mean()) for name, column in zip(learner.metrics, reduced.own.unbind(1), strict=True)}
    losses = {"meta_loss": reduced.losses.mean().item()}
    return record | losses | scored | own | updated | {"ranks": reduced.ranks.tolist()}


def _finite(mean: Tensor) -> float | None:
    """The value for JSON, which has no NaN."""
    return mean.item() if mean.isfinite() else None
