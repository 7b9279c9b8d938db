"""The reduction: equal bits for any partition over any workers, right to float64, and agreement on all that can go wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from distmeta.errors import DataError, RunError
from distmeta.learners.learner import SlotMetrics
from distmeta.training import reduce as reduction
from distmeta.training.reduce import (
    Contribution,
    HeldSum,
    PeerFailure,
    Reduced,
    Request,
    ScaledSum,
    SlotSum,
    agree,
    reduce,
    slot_sum,
    sum_over_workers,
)

SLOTS, SIZE, WORKERS = 8, 1000, 3
THETA = {"weight": torch.arange(4.0)}


def slot_gradients(seed: int, slots: int = SLOTS, decades: float = 8.0) -> torch.Tensor:
    """Values spread over `decades` powers of ten, of both signs, some exactly zero."""
    random = torch.Generator().manual_seed(seed)
    magnitude = 10 ** (decades * torch.rand(slots, SIZE, generator=random) - decades / 2)
    values = magnitude * torch.randn(slots, SIZE, generator=random).sign()
    values[torch.rand(slots, SIZE, generator=random) < 0.05] = 0
    return values


def contribution(gradients: torch.Tensor, slots: list[int], into: SlotSum | None = None) -> Contribution:
    """What a worker with these slots brings, found one slot at a time."""
    numbers = torch.arange(len(gradients)).double()
    metrics = SlotMetrics(numbers.float() / 7, -numbers / 3, torch.stack([numbers / 9, torch.full_like(numbers, torch.nan)], 1))
    found = ((gradients[slot : slot + 1], SlotMetrics(*(column[slot : slot + 1] for column in metrics))) for slot in slots)
    into = into or slot_sum("exact", len(gradients), SIZE, gradients, None)
    return Contribution.of(slots, found, into) if slots else Contribution(slots, into, SlotMetrics(*(column[:0] for column in metrics)))


def alone(gradients: torch.Tensor) -> Reduced:
    return reduce(contribution(gradients, list(range(len(gradients)))), THETA, len(gradients), 0, 1, Request.NOTHING)


def unheld(gradients: torch.Tensor, slots: list[int], rank: int, before: float | None, workers: int = 1) -> tuple[torch.Tensor, float, int]:
    """The meta-gradient of slots too large to hold, its largest magnitude, and how often it had to be computed again."""
    for repeats in range(3):
        own = contribution(gradients, slots, ScaledSum(SIZE, gradients, len(gradients), before))
        got = reduce(own, THETA, len(gradients), rank, workers, Request.NOTHING)
        before = got.largest
        if got.meta_gradient is not None:
            return got.meta_gradient, before, repeats
    raise AssertionError("a scale that was just found does not reach")


@given(seed=st.integers(0, 10**6), slots=st.integers(1, 33), decades=st.floats(0, 12))
def test_close_to_the_float64_mean(seed: int, slots: int, decades: float) -> None:
    gradients = slot_gradients(seed, slots, decades)
    expected = gradients.double().mean(0)
    got = alone(gradients).meta_gradient
    assert got is not None
    # One rounding to float32, and one integer unit of the largest entry per slot.
    largest = gradients.abs().max().double()
    assert ((got.double() - expected).abs() <= expected.abs() * 2**-23 + largest * slots * 2**-50).all()


@given(seed=st.integers(0, 10**6), exponent=st.integers(-120, 100))
def test_scaling_by_a_power_of_two_changes_nothing_else(seed: int, exponent: int) -> None:
    gradients = slot_gradients(seed, decades=3)
    plain, scaled = alone(gradients).meta_gradient, alone(gradients * 2.0**exponent).meta_gradient
    assert plain is not None
    assert scaled is not None
    assert torch.equal(plain.double() * 2.0**exponent, scaled.double()) or exponent < -100  # below, float32 itself runs out of exponents


def test_zero_gradients_give_zero() -> None:
    got = alone(torch.zeros(SLOTS, SIZE)).meta_gradient
    assert got is not None
    assert not got.any()


def test_the_largest_float_does_not_overflow() -> None:
    gradients = torch.full((33, SIZE), torch.finfo(torch.float32).max)
    got = alone(gradients).meta_gradient
    assert got is not None
    assert torch.equal(got, gradients[0])


# Real gloo workers from here on: one group of processes runs every case.

PARTITIONS = [
    [[0, 1, 2], [3, 4, 5], [6, 7]],
    [[7, 0], [1, 6, 3, 2, 5], [4]],
    [[], [0, 1, 2, 3, 4, 5, 6, 7], []],
    [[5], [], [7, 6, 4, 3, 2, 1, 0]],
]


def same_bits_for_every_partition(rank: int) -> None:
    for seed in range(5):
        gradients = slot_gradients(seed)
        whole = EXPECTED[seed]
        for partition in PARTITIONS:
            got = reduce(contribution(gradients, partition[rank]), THETA, SLOTS, rank, WORKERS, Request.NOTHING)
            assert got.meta_gradient is not None
            assert torch.equal(got.meta_gradient, whole.meta_gradient)
            assert torch.equal(got.losses, whole.losses)
            assert torch.equal(got.scores, whole.scores)
            assert torch.equal(got.own[:, 0], torch.arange(SLOTS).double() / 9)
            assert got.own[:, 1].isnan().all()
            assert all(slot in partition[worker] for slot, worker in enumerate(got.ranks.tolist()))


def non_finite_is_found_wherever_it_is(rank: int) -> None:
    for bad_value in (float("nan"), float("inf"), float("-inf")):
        for bad_slot in range(SLOTS):
            gradients = slot_gradients(1)
            gradients[bad_slot, 17] = bad_value
            for partition in PARTITIONS:
                got = reduce(contribution(gradients, partition[rank]), THETA, SLOTS, rank, WORKERS, Request.NOTHING)
                assert got.meta_gradient is None
                assert got.bad_slot == bad_slot


def a_non_finite_loss_counts_too(rank: int) -> None:
    own = contribution(slot_gradients(1), PARTITIONS[0][rank])
    if rank == 1:
        own.metrics.loss[0] = float("nan")
    assert reduce(own, THETA, SLOTS, rank, WORKERS, Request.NOTHING).bad_slot == 3


def the_most_that_anybody_asks_for_is_what_all_do(rank: int) -> None:
    for asking in range(WORKERS):
        for request in Request:
            own = contribution(slot_gradients(1), PARTITIONS[0][rank])
            assert reduce(own, THETA, SLOTS, rank, WORKERS, request if rank == asking else Request.NOTHING).request is request


def fast_is_the_plain_sum_and_its_metrics_are_exact(rank: int) -> None:
    for seed in range(5):
        gradients = slot_gradients(seed, decades=2)
        for partition in PARTITIONS:
            own = contribution(gradients, partition[rank], slot_sum("fast", SLOTS, SIZE, gradients, None))
            got = reduce(own, THETA, SLOTS, rank, WORKERS, Request.NOTHING)
            assert got.meta_gradient is not None
            torch.testing.assert_close(got.meta_gradient.double(), gradients.double().mean(0), rtol=1e-5, atol=1e-5)
            assert torch.equal(got.losses, EXPECTED[seed].losses)
            assert torch.equal(got.scores, EXPECTED[seed].scores)
            assert all(slot in partition[worker] for slot, worker in enumerate(got.ranks.tolist()))


def slots_too_large_to_hold_give_the_same_bits_for_every_partition(rank: int) -> None:
    before = None
    for seed, (expected, largest, repeats) in enumerate(UNHELD):
        for partition in PARTITIONS:
            got = unheld(growing(seed), partition[rank], rank, before, WORKERS)
            assert torch.equal(got[0], expected)
            assert got[1:] == (largest, repeats)
        before = largest


def one_failure_is_everybodys(rank: int) -> None:
    for failing in range(WORKERS):
        own = contribution(slot_gradients(1), PARTITIONS[0][rank])
        if rank == failing:
            own = Contribution.failed(DataError("shard x is missing", "copy it"), own.sum)
        with pytest.raises(DataError if rank == failing else PeerFailure):
            reduce(own, THETA, SLOTS, rank, WORKERS, Request.NOTHING)


def different_meta_params_are_noticed(rank: int) -> None:
    theta = {"weight": torch.arange(4.0) + (rank == 2) * 1e-6}
    with pytest.raises(RunError, match="other meta_params"):
        reduce(contribution(slot_gradients(1), PARTITIONS[0][rank]), theta, SLOTS, rank, WORKERS, Request.NOTHING)


def a_slot_computed_twice_or_never_is_noticed(rank: int) -> None:
    for partition in ([[0, 1, 2], [2, 3, 4], [5, 6, 7]], [[0, 1], [3, 4], [5, 6, 7]]):
        with pytest.raises(RunError, match="slots \\[2\\]"):
            reduce(contribution(slot_gradients(1), partition[rank]), THETA, SLOTS, rank, WORKERS, Request.NOTHING)


CASES: list[Callable[[int], None]] = [
    same_bits_for_every_partition,
    non_finite_is_found_wherever_it_is,
    a_non_finite_loss_counts_too,
    the_most_that_anybody_asks_for_is_what_all_do,
    fast_is_the_plain_sum_and_its_metrics_are_exact,
    slots_too_large_to_hold_give_the_same_bits_for_every_partition,
    one_failure_is_everybodys,
    different_meta_params_are_noticed,
    a_slot_computed_twice_or_never_is_noticed,
]
EXPECTED = [alone(slot_gradients(seed)) for seed in range(5)]


def growing(seed: int) -> torch.Tensor:
    """Meta-gradients of successive steps; from 1 to 2 and from 3 to 4 they grow by more than a scale's headroom."""
    return slot_gradients(seed, decades=3) * 10.0 ** (4 * (seed // 2))


def in_succession() -> Iterator[tuple[torch.Tensor, float, int]]:
    before = None
    for seed in range(5):
        found = unheld(growing(seed), list(range(SLOTS)), 0, before)
        before = found[1]
        yield found


UNHELD = list(in_succession())


def test_slots_too_large_to_hold() -> None:
    """Computed again at first and when they outgrow the scale of the step before; and as right as those that were held."""
    assert [repeats for _, _, repeats in UNHELD] == [1, 0, 1, 0, 1]
    for seed, (found, largest, _) in enumerate(UNHELD):
        gradients = growing(seed).double()
        error = (found.double() - gradients.mean(0)).abs()
        assert (error <= gradients.mean(0).abs() * 2**-23 + largest * SLOTS * 2**-40).all()


def test_the_whole_meta_batch_decides_whether_slots_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.zeros(1)
    assert isinstance(slot_sum("exact", SLOTS, SIZE, like, 1.0), HeldSum)
    monkeypatch.setattr(reduction, "HELD_BYTES", 4 * SLOTS * SIZE - 1)
    assert isinstance(slot_sum("exact", SLOTS, SIZE, like, 1.0), ScaledSum)


def test_a_loss_beyond_the_integers_counts_as_the_largest() -> None:
    own = contribution(slot_gradients(0), list(range(SLOTS)))
    own.metrics.loss[2:4] = torch.tensor([1e30, -1e30])
    losses = reduce(own, THETA, SLOTS, 0, 1, Request.NOTHING).losses
    assert losses[2:4].tolist() == [2.0**30, -(2.0**30)]


def test_a_group_that_has_ended_is_not_taken_for_being_alone() -> None:
    """Ray ends it when a worker is lost; what a step then says must come from all workers or be no result, and no message to the user."""
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="process group"):
        reduce(contribution(slot_gradients(0), [0, 1]), THETA, SLOTS, 0, WORKERS, Request.NOTHING)
    with pytest.raises(ValueError, match="process group"):
        sum_over_workers(torch.zeros(2), WORKERS)
    with pytest.raises(ValueError, match="process group"):
        agree(None, torch.device("cpu"), WORKERS)


def run_cases(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    for case in CASES:
        case(rank)
        Path(folder, f"{case.__name__}-{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def finished_cases(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("gloo")
    try:
        mp.spawn(run_cases, (str(folder),), nprocs=WORKERS)
    except mp.ProcessRaisedException as error:
        print(error)
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_three_workers(case: Callable[[int], None], finished_cases: set[str]) -> None:
    assert {f"{case.__name__}-{rank}" for rank in range(WORKERS)} <= finished_cases
