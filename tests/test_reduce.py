"""The reduction: equal bits for any partition over any workers, right to float64, and agreement on all that can go wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from distmeta.errors import DataError, RunError
from distmeta.learners.learner import SlotMetrics
from distmeta.train.reduce import Contribution, PeerFailure, Reduced, reduce

SLOTS, SIZE, WORKERS = 8, 1000, 3
THETA = {"weight": torch.arange(4.0)}


def slot_gradients(seed: int, slots: int = SLOTS, decades: float = 8.0) -> torch.Tensor:
    """Values spread over `decades` powers of ten, of both signs, some exactly zero."""
    random = torch.Generator().manual_seed(seed)
    magnitude = 10 ** (decades * torch.rand(slots, SIZE, generator=random) - decades / 2)
    values = magnitude * torch.randn(slots, SIZE, generator=random).sign()
    values[torch.rand(slots, SIZE, generator=random) < 0.05] = 0
    return values


def contribution(gradients: torch.Tensor, slots: list[int]) -> Contribution:
    loss = torch.arange(len(gradients), dtype=torch.float32)[slots] / 7
    return Contribution(
        slots, gradients[slots], SlotMetrics(loss, torch.tensor(slots, dtype=torch.int64) + 1, torch.full((len(slots),), 10))
    )


def alone(gradients: torch.Tensor) -> Reduced:
    return reduce(contribution(gradients, list(range(len(gradients)))), THETA, len(gradients), 0, False)


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
            got = reduce(contribution(gradients, partition[rank]), THETA, SLOTS, rank, False)
            assert got.meta_gradient is not None
            assert torch.equal(got.meta_gradient, whole.meta_gradient)
            assert torch.equal(got.losses, whole.losses)
            assert torch.equal(got.correct, whole.correct)
            assert all(slot in partition[worker] for slot, worker in enumerate(got.ranks.tolist()))


def non_finite_is_found_wherever_it_is(rank: int) -> None:
    for bad_value in (float("nan"), float("inf"), float("-inf")):
        for bad_slot in range(SLOTS):
            gradients = slot_gradients(1)
            gradients[bad_slot, 17] = bad_value
            for partition in PARTITIONS:
                got = reduce(contribution(gradients, partition[rank]), THETA, SLOTS, rank, False)
                assert got.meta_gradient is None
                assert got.bad_slot == bad_slot


def a_non_finite_loss_counts_too(rank: int) -> None:
    own = contribution(slot_gradients(1), PARTITIONS[0][rank])
    if rank == 1:
        own.metrics.loss[0] = float("nan")
    assert reduce(own, THETA, SLOTS, rank, False).bad_slot == 3


def one_request_stops_all(rank: int) -> None:
    for asking in range(WORKERS):
        got = reduce(contribution(slot_gradients(1), PARTITIONS[0][rank]), THETA, SLOTS, rank, rank == asking)
        assert got.stop
    assert not reduce(contribution(slot_gradients(1), PARTITIONS[0][rank]), THETA, SLOTS, rank, False).stop


def one_failure_is_everybodys(rank: int) -> None:
    for failing in range(WORKERS):
        own = contribution(slot_gradients(1), PARTITIONS[0][rank])
        if rank == failing:
            own = Contribution([], torch.zeros(0, 1), SlotMetrics(*torch.zeros(3, 0)), DataError("shard x is missing", "copy it"))
        with pytest.raises(DataError if rank == failing else PeerFailure):
            reduce(own, THETA, SLOTS, rank, False)


def different_meta_params_are_noticed(rank: int) -> None:
    theta = {"weight": torch.arange(4.0) + (rank == 2) * 1e-6}
    with pytest.raises(RunError, match="other meta_params"):
        reduce(contribution(slot_gradients(1), PARTITIONS[0][rank]), theta, SLOTS, rank, False)


def a_slot_computed_twice_or_never_is_noticed(rank: int) -> None:
    for partition in ([[0, 1, 2], [2, 3, 4], [5, 6, 7]], [[0, 1], [3, 4], [5, 6, 7]]):
        with pytest.raises(RunError, match="slots \\[2\\]"):
            reduce(contribution(slot_gradients(1), partition[rank]), THETA, SLOTS, rank, False)


CASES: list[Callable[[int], None]] = [
    same_bits_for_every_partition,
    non_finite_is_found_wherever_it_is,
    a_non_finite_loss_counts_too,
    one_request_stops_all,
    one_failure_is_everybodys,
    different_meta_params_are_noticed,
    a_slot_computed_twice_or_never_is_noticed,
]
EXPECTED = [alone(slot_gradients(seed)) for seed in range(5)]


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
