"""The order-free all-reduce: the same meta-gradient, bit for bit, for any number of workers and any order of summation.

Every slot's meta-gradient is scaled by a power of two taken from the largest magnitude anywhere, rounded to int64 and summed as integers,
which is associative; the sum is scaled back and divided once by the number of episodes. Metrics travel in the same sum.
"""

import math
import zlib
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from distmeta.errors import DistmetaError, RunError
from distmeta.learners.learner import SlotMetrics
from distmeta.learners.params import Params, flatten

_LOSS_UNIT = 2.0**-32


class Contribution(NamedTuple):
    """What one worker brings to a step: its slots, their meta-gradients (B, P) and metrics; or the failure that kept it from it."""

    slots: list[int]
    slot_gradients: Tensor
    metrics: SlotMetrics
    failure: DistmetaError | None = None


class Reduced(NamedTuple):
    """What all workers hold after a step, equal on each.

    meta_gradient (P,): mean over all slots, or None if some slot's was not finite (`bad_slot`, the lowest such).
    losses (B,), correct (B,), total (B,), ranks (B,): every slot's metrics and which worker computed it. `stop`: somebody asked to stop.
    """

    meta_gradient: Tensor | None
    bad_slot: int | None
    losses: Tensor
    correct: Tensor
    total: Tensor
    ranks: Tensor
    stop: bool


class PeerFailure(RunError):
    """Another worker failed and has said why."""


def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values, operation)
    return values


def sum_over_workers(values: Tensor) -> Tensor:
    """Integer sum over all workers, in place."""
    return _all_reduce(values, dist.ReduceOp.SUM)


def agree(failure: DistmetaError | None, device: torch.device) -> None:
    """Raise on every worker if any has failed: its own error where it happened, PeerFailure elsewhere. One collective."""
    failed = _all_reduce(torch.tensor([float(failure is not None)], device=device), dist.ReduceOp.MAX)
    _raise_if_failed(bool(failed.item()), failure)


def _raise_if_failed(anywhere: bool, failure: DistmetaError | None) -> None:
    if failure is not None:
        raise failure
    if anywhere:
        raise PeerFailure("another worker failed", "see its message")


def reduce(contribution: Contribution, meta_params: Params, meta_batch_size: int, rank: int, stop_requested: bool) -> Reduced:
    """Sum the workers' contributions without regard to order; two collectives, a MAX of a few numbers and a SUM of integers.

    Raises RunError if the workers' meta_params differ, the worker's own failure if it has one, PeerFailure if another has.
    """
    gradients, device = contribution.slot_gradients, contribution.slot_gradients.device
    finite = gradients.isfinite().all(1) & contribution.metrics.loss.isfinite()
    bad = [slot for slot, good in zip(contribution.slots, finite.tolist(), strict=True) if not good]
    largest = gradients.where(gradients.isfinite(), 0).abs().max().item() if len(contribution.slots) else 0.0
    mine = _fingerprint(meta_params)
    # Only finite numbers: gloo's MAX can lose a NaN, and a NaN cast to an integer becomes a plausible number.
    facts = [largest, -min(bad, default=meta_batch_size), mine, -mine, stop_requested, contribution.failure is not None]
    agreed = _all_reduce(torch.tensor(facts, dtype=torch.float64, device=device), dist.ReduceOp.MAX).tolist()
    _raise_if_failed(bool(agreed[5]), contribution.failure)
    if agreed[2] != -agreed[3]:
        raise RunError(f"worker {rank} holds other meta_params than its peers", "resume from the last checkpoint, and report this as a bug")
    if -agreed[1] < meta_batch_size:
        nothing = torch.zeros(meta_batch_size)
        return Reduced(None, int(-agreed[1]), nothing, nothing, nothing, nothing, bool(agreed[4]))
    exponent = _exponent(agreed[0], meta_batch_size)
    summed = sum_over_workers(torch.cat([_integers(gradients, exponent), _metric_integers(contribution, meta_batch_size, rank)]))
    size = gradients.shape[1]
    losses, correct, total, ranks, seen = summed[size:].view(5, meta_batch_size).cpu()
    if not bool((seen == 1).all()):
        raise RunError(f"slots {(seen != 1).nonzero().flatten().tolist()} were not computed exactly once", "report this as a bug")
    meta_gradient = summed[:size].double().mul_(2.0**-exponent).div_(meta_batch_size).to(gradients.dtype)
    return Reduced(meta_gradient, None, losses.double() * _LOSS_UNIT, correct, total, ranks, bool(agreed[4]))


def _fingerprint(meta_params: Params) -> int:
    return zlib.crc32(flatten(meta_params).detach().cpu().numpy().tobytes())


def _exponent(largest: float, meta_batch_size: int) -> int:
    """The e for which meta_batch_size values of at most `largest`, times 2^e, sum to less than 2^62."""
    if largest == 0.0:
        return 0
    return min(62 - math.ceil(math.log2(meta_batch_size)) - math.frexp(largest)[1], 1000)  # 2^1000: still a float64


def _integers(gradients: Tensor, exponent: int) -> Tensor:
    """The sum over this worker's slots of round(gradient · 2^exponent), int64 (P,)."""
    total = torch.zeros(gradients.shape[1], dtype=torch.int64, device=gradients.device)
    for gradient in gradients:
        total += gradient.double().mul_(2.0**exponent).round_().long()
    return total


def _metric_integers(contribution: Contribution, meta_batch_size: int, rank: int) -> Tensor:
    """loss in units of 2^-32, correct, total, rank and 1, each in its slot's place: int64 (5 * meta_batch_size,)."""
    columns = torch.zeros(5, meta_batch_size, dtype=torch.int64, device=contribution.slot_gradients.device)
    loss, correct, total = contribution.metrics
    slots = contribution.slots
    columns[0, slots] = (loss.double() / _LOSS_UNIT).round().long()
    columns[1, slots] = correct
    columns[2, slots] = total.to(columns.device)
    columns[3, slots] = rank
    columns[4, slots] = 1
    return columns.flatten()
