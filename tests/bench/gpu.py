"""What a GPU makes of distmeta: exactness, speed, memory and bits, in one table, with the figures as JSON beside it.

    python tests/bench/gpu.py [--out gpu.json] [--quick]

It needs torch, numpy, pydantic, safetensors and this package, and takes less than eight minutes. Without a GPU it says so and exits 0.
Times are of Conv-4 with 32 filters at 84 px, 5-way 1-shot, 15 queries a class, 5 inner steps, exact second order, in float32 without TF32
unless a row says otherwise. Each is the median of several repetitions, and the device has finished before a clock is read.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from contenders import W, Work, episodes, learner_of
from torch import Tensor

from distmeta.learners.learner import Learner
from distmeta.learners.memory import predicted_bytes
from distmeta.learners.params import Params
from distmeta.training.devices import Device, device_of
from distmeta.training.reduce import Contribution, Reduced, Reduction, Request, reduce, slot_sum

CHUNKS = (1, 2, 4, 8, 16, 32, 64)
_SELF = str(Path(__file__).resolve())


class Row(NamedTuple):
    """One figure: what was measured, how much of which unit, and what it stands beside."""

    name: str
    figure: float | str
    unit: str = ""
    note: str = ""

    def __str__(self) -> str:
        figure = f"{self.figure:.4g}" if isinstance(self.figure, float) else self.figure
        return f"{self.name:58} {figure:>14} {self.unit:10} {self.note}"


class Bench(NamedTuple):
    """The device, the work that is timed, and how often."""

    kind: Device
    work: Work
    repeats: int
    chunks: tuple[int, ...] = CHUNKS

    @property
    def device(self) -> torch.device:
        return self.kind.device

    def median(self, step: Callable[[], object]) -> float:
        step()
        return statistics.median(self.kind.seconds(step) for _ in range(self.repeats))


def made(work: Work, device: torch.device, **settings: Any) -> tuple[Learner, Params, Any]:
    """A learner, its meta_params and a batch of the work's tasks, on `device`."""
    learner = learner_of(replace(work, kernels="torch", settings=work.settings | settings))
    device_of(device).place(learner.model, getattr(torch, work.dtype))
    params = learner.initial_params()
    batch = episodes(work).like(next(iter(params.values())))
    return learner, params, batch


def meta_gradients(work: Work, device: torch.device, **settings: Any) -> Tensor:
    learner, params, batch = made(work, device, **settings)
    return learner.slot_gradients(params, batch)[0].cpu()


def exactness(bench: Bench) -> Iterator[Row]:
    """The same meta-gradients as on the CPU, both in float64, by a loop over tasks and by vmap."""
    work = replace(bench.work, tasks=2, inner_steps=2, dtype="float64")
    truth = meta_gradients(work, torch.device("cpu"))
    for batching in ("loop", "vmap"):
        found = meta_gradients(work, bench.device, task_batching=batching, tasks_per_chunk=2)
        yield Row(f"meta-gradient in float64 beside the CPU's, {batching}", ((found - truth).norm() / truth.norm()).item(), "relative")


def tasks_per_second(bench: Bench) -> Iterator[Row]:
    """A loop beside vmap over ever more tasks at once; both layouts of the weights, the run's own first, and the outer pass in bfloat16."""
    learner, params, batch = made(replace(bench.work, tasks=4), bench.device, task_batching="loop")
    loop = 4 / bench.median(lambda: learner.slot_gradients(params, batch))
    yield Row("one task after another", loop, "tasks/s")
    for chunk in bench.chunks:
        for layout in (torch.contiguous_format, torch.channels_last):
            for bfloat16 in (False, True) if layout is torch.contiguous_format else (False,):
                name = f"vmap, {chunk} tasks at once, {str(layout).removeprefix('torch.')}{', bfloat16 outer pass' if bfloat16 else ''}"
                yield attempted(bench, name, chunk, layout, bfloat16, loop)


def attempted(bench: Bench, name: str, chunk: int, layout: torch.memory_format, bfloat16: bool, loop: float) -> Row:
    """A row for this way of computing, or one that says why it cannot be done."""
    try:
        learner, params, batch = made(replace(bench.work, tasks=chunk), bench.device, task_batching="vmap", tasks_per_chunk=chunk)
        learner.bfloat16 = bfloat16
        params = {key: value.contiguous(memory_format=layout) if value.dim() == 4 else value for key, value in params.items()}
        rate = chunk / bench.median(lambda: learner.slot_gradients(params, batch))
    except RuntimeError as error:  # out of memory is one
        return Row(name, "-", "tasks/s", str(error).splitlines()[0][:60])
    return Row(name, rate, "tasks/s", f"{rate / loop:.2f} times the loop")


def graphs(bench: Bench) -> Iterator[Row]:
    """A chunk recorded once as a CUDA graph and replayed, which spares the CPU the launching of every kernel."""
    for chunk in sorted({min(size, bench.chunks[-1]) for size in (4, 32)}):
        yield graph_of(bench, chunk)


def graph_of(bench: Bench, chunk: int) -> Row:
    learner, params, batch = made(replace(bench.work, tasks=chunk), bench.device, task_batching="vmap", tasks_per_chunk=chunk)
    eager = bench.median(lambda: learner.slot_gradients(params, batch))
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                learner.slot_gradients(params, batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = learner.slot_gradients(params, batch)[0]
        replayed = bench.median(graph.replay)
        same = torch.equal(found, learner.slot_gradients(params, batch)[0])
    except RuntimeError as error:
        return Row(f"CUDA graph of {chunk} tasks", "-", "", str(error).splitlines()[0][:60])
    return Row(f"CUDA graph of {chunk} tasks", chunk / replayed, "tasks/s", f"{eager / replayed:.2f} times eager; same bits: {same}")


def memory(bench: Bench) -> Iterator[Row]:
    """What `predicted_bytes` says of a step beside what torch's allocator then held at most."""
    for chunk in (1, min(16, bench.chunks[-1])):
        learner, params, batch = made(replace(bench.work, tasks=chunk), bench.device, task_batching="vmap", tasks_per_chunk=chunk)
        predicted = predicted_bytes(learner, params, batch)
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = bench.kind.memory_in_use()
        learner.slot_gradients(params, batch)
        used = bench.kind.peak_memory() - before
        yield Row(f"memory of a step, vmap of {chunk}: predicted / used", predicted / used, "ratio", f"{used / 2**30:.2f} GiB used")


def digest_of(bench: Bench) -> str:
    """A hash of a chunk's meta-gradients."""
    found = meta_gradients(replace(bench.work, tasks=4), bench.device, task_batching="vmap", tasks_per_chunk=4)
    return hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16]


def same_bits(bench: Bench) -> Iterator[Row]:
    """Twice here and once in another process."""
    here, again, there = digest_of(bench), digest_of(bench), run_self("digest", bench)
    yield Row("the same bits in one process", str(here == again))
    yield Row("the same bits in another process", str(here == there))


def reductions(bench: Bench) -> Iterator[Row]:
    """One step's reduction on one and on two ranks of this device, by integers and by the backend's floats."""
    found = {ranks: on_ranks(ranks, bench) for ranks in (1, 2)}
    for ranks, answer in found.items():
        if "error" in answer:
            yield Row(f"reduction on {ranks} ranks", "-", "", answer["error"][:60])
            continue
        for name in ("exact", "fast"):
            yield Row(f"{name} reduction, {ranks} ranks ({answer['backend']})", 1000 * answer[name]["seconds"], "ms")
    if all("exact" in answer for answer in found.values()):
        yield Row("the same bits on one and two ranks, exact", str(found[1]["exact"]["digest"] == found[2]["exact"]["digest"]))


def on_ranks(ranks: int, bench: Bench) -> dict[str, Any]:
    """What rank 0 of `ranks` processes on this one device reports. NCCL refuses two ranks on one GPU, so two of them talk over gloo."""
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as folder:
        backend = bench.kind.backend if ranks == 1 else "gloo"
        others = [started("rank", bench, str(rank), str(ranks), f"{folder}/meet", backend) for rank in range(ranks)]
        answers = [process.communicate(timeout=240) for process in others]
    if any(process.returncode for process in others):
        return {"error": next(told for _, told in answers if told).strip().splitlines()[-1]}
    return json.loads(answers[0][0].strip().splitlines()[-1])


def rank_main(bench: Bench, rank: int, ranks: int, meet: str, backend: str) -> None:
    """One rank: its share of eight slots, reduced both ways."""
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=ranks)
    learner, params, batch = made(replace(bench.work, tasks=8), bench.device, task_batching="vmap", tasks_per_chunk=4)
    slots = list(range(8))[rank * 8 // ranks : (rank + 1) * 8 // ranks]
    share = batch.take(slots)
    flat = torch.cat([value.reshape(-1) for value in params.values()])
    report: dict[str, Any] = {"backend": backend}
    contents = list(learner.each_slot(params, share))
    names: tuple[Reduction, ...] = ("exact", "fast")
    for name in names:

        def once(name: Reduction = name) -> Reduced:
            into = slot_sum(name, 8, len(flat), flat, None)
            return reduce(Contribution.of(slots, iter(contents), into), params, 8, rank, ranks, Request.NOTHING)

        found = once().meta_gradient
        assert found is not None
        digest = hashlib.sha256(found.cpu().numpy().tobytes()).hexdigest()[:16]
        report[name] = {"seconds": bench.median(once), "digest": digest}
    if rank == 0:
        print(json.dumps(report), flush=True)
    dist.destroy_process_group()


def started(part: str, bench: Bench, *arguments: str) -> "subprocess.Popen[str]":
    described = json.dumps({"work": asdict(bench.work), "device": str(bench.device), "repeats": bench.repeats})
    command = [sys.executable, _SELF, "--part", part, described, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run_self(part: str, bench: Bench) -> str:
    out, told = started(part, bench).communicate(timeout=240)
    return out.strip().splitlines()[-1] if out.strip() else told.strip().splitlines()[-1]


PARTS = (exactness, tasks_per_second, graphs, memory, same_bits, reductions)


def child(part: str, described: str, *arguments: str) -> None:
    told = json.loads(described)
    bench = Bench(device_of(torch.device(told["device"])), Work(**told["work"]), told["repeats"])
    bench.kind.choose(tf32=False)
    if part == "digest":
        print(digest_of(bench))
    else:
        rank, ranks, meet, backend = arguments
        rank_main(bench, int(rank), int(ranks), meet, backend)


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the figures as JSON (default: gpu.json)")
    parser.add_argument("--quick", action="store_true", help="small images and few repetitions, to see whether everything runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return None
    work = replace(W, size=28, inner_steps=1, queries=5) if arguments.quick else W
    bench = Bench(device_of(torch.device("cuda", 0)), work, 2 if arguments.quick else 3, CHUNKS[:3] if arguments.quick else CHUNKS)
    bench.kind.choose(tf32=False)
    rows = []
    for key, value in bench.kind.description().items():
        print(f"{key:58} {value}")
    for part in PARTS:
        for row in part(bench):
            print(row, flush=True)
            rows.append(row._asdict())
    arguments.out.write_text(json.dumps({"device": bench.kind.description(), "torch": torch.__version__, "rows": rows}, indent=1))
    return None


if __name__ == "__main__":
    main()
