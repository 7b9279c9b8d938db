"""The reduction: the workers' meta-gradients become one, the same on every worker.

`exact` is order-free. Every slot's meta-gradient is scaled by a power of two taken from the largest magnitude anywhere, rounded to int64
and summed as integers, which is associative; the sum is scaled back and divided once by the number of episodes. So the bits do not
depend on how many workers there are. `fast` is the backend's own floating-point sum: half the bytes, and bits that depend on the workers.
Metrics travel in the same collective, as integers in either case.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from distmeta.errors import DistmetaError, RunError
from distmeta.learners.learner import SlotMetrics
from distmeta.learners.params import Params, flatten

Reduction = Literal["exact", "fast"]

HELD_BYTES = 64 * 2**20
"""Limit on held gradients (bytes). Above it, each is scaled as it arrives, by the previous step's largest magnitude."""
_HEADROOM = 2.0**10  # headroom of such a scale above the last step's largest magnitude
_LOSS_UNIT = 2.0**-32
_LOSS_LIMIT = 2.0**30  # the limit of a finite but diverged loss


class Request(IntEnum):
    """A worker's request to all workers. The highest request of any worker is what all do after the step."""

    NOTHING = 0
    LOOK = 1
    """Check whether a node is about to shut down."""
    CHECKPOINT = 2
    STOP = 3
    """With a checkpoint."""


class SlotSum(ABC):
    """The sum of a worker's meta-gradients, built slot by slot, with their largest magnitude and finiteness."""

    def __init__(self, size: int, like: Tensor) -> None:
        """`size` is P; `like` gives device and type of the meta-gradients."""
        self.size = size
        self.dtype = like.dtype
        self.device = like.device
        self._largest = torch.zeros((), dtype=like.dtype, device=like.device)
        self._finite: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Add the meta-gradients (n, P) of the next n slots."""
        finite = gradients.isfinite()
        self._largest = torch.maximum(self._largest, gradients.where(finite, 0).abs().max())
        self._finite.append(finite.all(1))
        self._keep(gradients)

    @property
    def largest(self) -> float:
        """The largest finite magnitude among them."""
        return self._largest.item()

    @property
    def finite(self) -> list[bool]:
        """For each slot, whether its meta-gradient is finite."""
        return torch.cat(self._finite).tolist() if self._finite else []

    def fits(self, largest: float) -> bool:
        """Whether the sum is valid if `largest` is the largest magnitude on any worker. If not, the step is recomputed."""
        return True

    @abstractmethod
    def _keep(self, gradients: Tensor) -> None: ...

    @abstractmethod
    def with_metrics(self, metrics: Tensor, largest: float) -> Tensor:
        """The sum (P,) followed by integer metrics (M,), as a vector that can be added over workers."""

    @abstractmethod
    def split(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the sum over all workers: the meta-gradients' sum in float64 or the gradients' type, and the metrics."""


class IntegerSum(SlotSum):
    """A sum of integers, in units of 2^-exponent: the same bits in any order."""

    _exponent = 0

    def split(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return total[: self.size].double().mul_(2.0**-self._exponent), total[self.size :]


class HeldSum(IntegerSum):
    """Holds the slots' meta-gradients until this step's largest magnitude is known, which scales them."""

    def __init__(self, size: int, like: Tensor, meta_batch_size: int) -> None:
        super().__init__(size, like)
        self._meta_batch_size = meta_batch_size
        self._held: list[Tensor] = []

    def _keep(self, gradients: Tensor) -> None:
        self._held.append(gradients)

    def with_metrics(self, metrics: Tensor, largest: float) -> Tensor:
        self._exponent = _exponent(largest, self._meta_batch_size)
        total = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        for gradients in self._held:
            _add_scaled(total, gradients, self._exponent)
        return torch.cat([total, metrics])


class ScaledSum(IntegerSum):
    """Holds only the sum, scaled by the previous step's largest magnitude. If that is unknown (None or 0), this step only determines it."""

    def __init__(self, size: int, like: Tensor, meta_batch_size: int, before: float | None) -> None:
        super().__init__(size, like)
        self._limit = (before or 0.0) * _HEADROOM
        self._exponent = _exponent(self._limit, meta_batch_size)
        self._total = torch.zeros(size, dtype=torch.int64, device=like.device)

    def _keep(self, gradients: Tensor) -> None:
        if self._limit:
            _add_scaled(self._total, gradients, self._exponent)

    def fits(self, largest: float) -> bool:
        return largest <= self._limit

    def with_metrics(self, metrics: Tensor, largest: float) -> Tensor:
        return torch.cat([self._total, metrics])


class FloatSum(SlotSum):
    """The plain sum in the meta-gradients' type."""

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__(size, like)
        self._total = torch.zeros(size, dtype=like.dtype, device=like.device)

    def _keep(self, gradients: Tensor) -> None:
        for gradient in gradients:
            self._total += gradient

    def with_metrics(self, metrics: Tensor, largest: float) -> Tensor:
        # An integer is sent as four 16-bit parts, which floats represent exactly; all workers but one contribute zeros.
        return torch.cat([self._total, metrics.view(torch.int16).to(self.dtype)])

    def split(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return total[: self.size], total[self.size :].round().to(torch.int16).view(torch.int64)


def slot_sum(reduction: Reduction, meta_batch_size: int, size: int, like: Tensor, before: float | None) -> SlotSum:
    """The sum for meta-gradients of P = `size` values like `like`; `before` is the previous step's largest magnitude.

    The choice between the two exact sums depends on the whole meta-batch, never on this worker's slots, because they round differently.
    """
    if reduction == "fast":
        return FloatSum(size, like)
    if meta_batch_size * size * like.element_size() <= HELD_BYTES:
        return HeldSum(size, like, meta_batch_size)
    return ScaledSum(size, like, meta_batch_size, before)


class Contribution(NamedTuple):
    """One worker's part of a step: its slots, the sum of their meta-gradients and their metrics, or the failure that prevented it."""

    slots: list[int]
    sum: SlotSum
    metrics: SlotMetrics
    failure: DistmetaError | None = None

    @classmethod
    def of(cls, slots: list[int], computed: Iterable[tuple[Tensor, SlotMetrics]], into: SlotSum) -> "Contribution":
        """Add the results of `Learner.each_slot`. A DistmetaError becomes the contribution's failure."""
        kept = []
        try:
            for gradients, metrics in computed:
                into.add(gradients)
                kept.append(metrics)
        except DistmetaError as failure:
            return cls.failed(failure, into)
        return cls(slots, into, SlotMetrics(*(torch.cat(columns).to(into.device) for columns in zip(*kept, strict=True))))

    @classmethod
    def failed(cls, failure: DistmetaError, into: SlotSum) -> "Contribution":
        nothing = torch.zeros(0, device=into.device)
        return cls([], into, SlotMetrics(nothing, nothing, nothing), failure)


class Reduced(NamedTuple):
    """The result of a step, equal on all workers.

    meta_gradient (P,): mean over all slots. It is None if a slot's meta-gradient was not finite (`bad_slot`, the lowest such slot), or if
    the step must be computed `again` with the `largest` magnitude that is now known. losses (B,), scores (B,), own (B, E), ranks (B,):
    every slot's metrics (NaN: none) and which worker computed it. `request`: the highest request of any worker.
    """

    meta_gradient: Tensor | None
    bad_slot: int | None
    again: bool
    largest: float
    request: Request
    losses: Tensor = torch.zeros(0)
    scores: Tensor = torch.zeros(0)
    own: Tensor = torch.zeros(0, 0)
    ranks: Tensor = torch.zeros(0)


SlotVectors = Iterator[tuple[Tensor, SlotMetrics]]
"""Vectors (n, P) of the next n slots of a worker and their metrics, as `Learner.each_slot` gives them."""


class Mean(Protocol):
    """Averages slots' vectors over all workers for an outer update, once or several times per step."""

    def __call__(self, meta_params: Params, computed: Callable[[], SlotVectors], size: int | None = None) -> Reduced:
        """The mean of `computed` over the slots of all workers; vectors have `size` values (default: a meta-gradient's).

        The vectors were computed with `meta_params`, which must be equal on all workers. `computed` may be called again.
        """


class PeerFailure(RunError):
    """Another worker failed and reports the reason itself."""


def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, workers: int) -> Tensor:
    # Do not ask torch whether a process group exists: Ray destroys it in mid-step when a worker is lost, and the others would continue
    # alone.
    if workers > 1:
        dist.all_reduce(values, operation)
    return values


def sum_over_workers(values: Tensor, workers: int) -> Tensor:
    """The sum over all workers, in place."""
    return _all_reduce(values, dist.ReduceOp.SUM, workers)


def agree(failure: DistmetaError | None, device: torch.device, workers: int) -> None:
    """Raise on every worker if any has failed: the error itself on that worker, PeerFailure on the others. One collective."""
    failed = _all_reduce(torch.tensor([float(failure is not None)], device=device), dist.ReduceOp.MAX, workers)
    _raise_if_failed(bool(failed.item()), failure)


def _raise_if_failed(anywhere: bool, failure: DistmetaError | None) -> None:
    if failure is not None:
        raise failure
    if anywhere:
        raise PeerFailure("another worker failed", "see its message")


def reduce(
    contribution: Contribution,
    meta_params: Params,
    meta_batch_size: int,
    rank: int,
    workers: int,
    request: Request,
    mark: Callable[[str], None] = lambda name: None,
) -> Reduced:
    """Sum the workers' contributions with two collectives, a MAX of a few numbers and a SUM. `mark("wait")` is called once this worker has
    waited for the others. Raises RunError if the workers' meta_params differ, the worker's own failure if it has one, PeerFailure if
    another has.
    """
    summed, device = contribution.sum, contribution.sum.device
    good = zip(contribution.slots, summed.finite, contribution.metrics.loss.isfinite().tolist(), strict=False)
    bad = [slot for slot, *finite in good if not all(finite)]
    mine = _fingerprint(meta_params)
    # Only finite numbers: gloo's MAX can lose a NaN, and a NaN cast to an integer becomes a plausible number.
    facts = [summed.largest, -min(bad, default=meta_batch_size), mine, -mine, request, contribution.failure is not None]
    agreed = _all_reduce(torch.tensor(facts, dtype=torch.float64, device=device), dist.ReduceOp.MAX, workers).tolist()
    mark("wait")
    _raise_if_failed(bool(agreed[5]), contribution.failure)
    if agreed[2] != -agreed[3]:
        raise RunError(f"worker {rank} holds other meta_params than its peers", "resume from the last checkpoint, and report this as a bug")
    largest, bad_slot, asked = agreed[0], int(-agreed[1]), Request(int(agreed[4]))
    if bad_slot < meta_batch_size:
        return Reduced(None, bad_slot, again=False, largest=largest, request=asked)
    if not summed.fits(largest):
        return Reduced(None, None, again=True, largest=largest, request=asked)
    integers = _metric_integers(contribution, meta_batch_size, rank)
    everything = sum_over_workers(summed.with_metrics(integers, largest), workers)
    total, metrics = summed.split(everything)
    (losses, scores, ranks, seen), own = metrics.view(-1, meta_batch_size).cpu().split([4, contribution.metrics.own.shape[1]])
    if not bool((seen == 1).all()):
        raise RunError(f"slots {(seen != 1).nonzero().flatten().tolist()} were not computed exactly once", "report this as a bug")
    return Reduced(
        meta_gradient=total.div_(meta_batch_size).to(summed.dtype),
        bad_slot=None,
        again=False,
        largest=largest,
        losses=losses.double() * _LOSS_UNIT,
        scores=scores.contiguous().view(torch.float64),
        own=own.contiguous().view(torch.float64).T,
        ranks=ranks,
        request=asked,
    )


def _fingerprint(meta_params: Params) -> int:
    return zlib.crc32(flatten(meta_params).detach().cpu().numpy().tobytes())


def _exponent(largest: float, meta_batch_size: int) -> int:
    """The e for which meta_batch_size values of at most `largest`, times 2^e, sum to less than 2^62."""
    if largest == 0.0:
        return 0
    return min(62 - math.ceil(math.log2(meta_batch_size)) - math.frexp(largest)[1], 1000)  # 2^1000: still a float64


def _add_scaled(total: Tensor, gradients: Tensor, exponent: int) -> None:
    """total (P,) int64 += the sum over the rows of gradients (n, P) of round(gradient · 2^exponent)."""
    for gradient in gradients:
        total += gradient.double().mul_(2.0**exponent).round_().long()


def _metric_integers(contribution: Contribution, meta_batch_size: int, rank: int) -> Tensor:
    """loss in units of 2^-32, score bit for bit, rank, 1, and each own metric bit for bit, in its slot's place: (4 + E) * meta_batch_size
    of int64."""
    loss, score, own = contribution.metrics
    columns = torch.zeros(4 + own.shape[1], meta_batch_size, dtype=torch.int64, device=contribution.sum.device)
    slots = contribution.slots
    columns[0, slots] = (loss.double().clamp(-_LOSS_LIMIT, _LOSS_LIMIT) / _LOSS_UNIT).round().long()
    columns[1, slots] = score.double().view(torch.int64)  # no other worker adds to it, so a NaN stays one
    columns[2, slots] = rank
    columns[3, slots] = 1
    columns[4:, slots] = own.double().T.contiguous().view(torch.int64)
    return columns.flatten()
