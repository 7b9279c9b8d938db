"""How a device computes is chosen and written down: the real torch's settings on a machine of any kind, a GPU's answers from a fake."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.config import TrainConfig
from distmeta.models import build_model
from distmeta.scale.trainer import backend
from distmeta.training.devices import KINDS, Device, device_of
from distmeta.training.devices.cpu import CPU
from distmeta.training.devices.cuda import CUDA


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CUDA]:
    """A GPU that is not there: torch's switches are real (and put back), what needs the device is fake."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"fake {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronise"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "kept")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    log.clear()
    yield CUDA(torch.device("cuda", 1))
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


log: list[str] = []


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_computes_repeatably_and_in_tf32_only_if_asked(gpu: CUDA, tf32: bool) -> None:
    """Whatever was set before."""
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    gpu.choose(tf32)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    found = gpu.description()
    assert found["deterministic"] == "True"
    assert found["tf32"] == str(tf32)
    assert found["cublas_workspace"] == ":4096:8"
    assert found["gpu"] == "fake cuda:1"


def test_the_description_tells_what_is_and_not_what_was_meant(gpu: CUDA) -> None:
    gpu.choose(tf32=False)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    assert gpu.description()["deterministic"] == "False"
    assert gpu.description()["tf32"] == "True"


def test_a_users_own_workspace_stays_and_is_told(gpu: CUDA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    gpu.choose(tf32=False)
    assert gpu.description()["cublas_workspace"] == ":16:8"


def test_a_clock_starts_and_stops_when_the_device_has_nothing_left_to_do(gpu: CUDA) -> None:
    assert gpu.seconds(lambda: log.append("work")) >= 0
    assert log == ["synchronise", "work", "synchronise"]
    assert (gpu.memory_in_use(), gpu.peak_memory()) == (3, 5)


def test_a_cpu_is_left_as_it_is() -> None:
    """Its operations repeat themselves already, and a setting would cost time."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    cpu = device_of(torch.device("cpu"))
    cpu.choose(tf32=False)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32) == before
    assert cpu.description() == {}
    assert 0 < cpu.memory_in_use() <= cpu.peak_memory() * 1.5


@pytest.mark.parametrize(("kind", "innermost"), [(CPU, True), (CUDA, False)])
def test_convolutions_come_in_the_layout_that_is_fastest_on_the_device(kind: type[Device], innermost: bool) -> None:
    network = build_model("conv4", (3, 28, 28), 5, "batch", seed=0, filters=8)
    before = {name: value.clone() for name, value in network.named_parameters()}
    kind(torch.device("cpu")).place(network, torch.float64)
    kernels = {name: value for name, value in network.named_parameters() if value.dim() == 4}
    assert len(kernels) == 4
    assert all(value.is_contiguous(memory_format=torch.channels_last) == innermost for value in kernels.values())
    assert all(value.is_contiguous() != innermost for value in kernels.values())
    assert all(torch.equal(value, before[name].double()) for name, value in network.named_parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"device": "cuda"}, "nccl"),
        ({"device": "cuda", "gpus_per_worker": 2}, "nccl"),
        ({"device": "cuda", "gpus_per_worker": 0.5}, "gloo"),
        ({"device": "cpu", "gpus_per_worker": 2}, "gloo"),
    ],
)
def test_workers_that_share_a_gpu_do_not_talk_by_nccl(settings: dict[str, Any], expected: str) -> None:
    """It refuses two ranks on one GPU ("Duplicate GPU detected")."""
    assert backend(TrainConfig.model_validate(settings)) == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_collective_backend_of_torchs(kind: str) -> None:
    assert KINDS[kind].backend in torch.distributed.Backend.backend_list


@pytest.mark.slow
def test_the_gpu_bench_runs_on_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part that needs no GPU of its own, on the CPU: so that it runs where there is one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import contenders
    import gpu as bench

    small = replace(contenders.W, size=16, inner_steps=1, queries=2, own={"filters": 8})
    on_cpu = bench.Bench(device_of(torch.device("cpu")), small, 1, (1, 2))
    rows = {row.name: row for part in (bench.exactness, bench.tasks_per_second, bench.same_bits, bench.reductions) for row in part(on_cpu)}
    assert all(row.figure < 1e-10 for name, row in rows.items() if name.startswith("meta-gradient"))
    assert all(row.figure == "True" for name, row in rows.items() if name.startswith("the same bits"))
    assert not [row for row in rows.values() if row.figure == "-"]


def test_the_gpu_bench_says_so_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command: list[Any] = [sys.executable, "tests/bench/gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "no GPU here: nothing was measured")
