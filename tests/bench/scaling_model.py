"""How long a step takes on up to 4,096 workers: predicted from one worker measured here, and from published figures of networks.

    python tests/bench/scaling_model.py OUT [--processor-time] [--gloo-latency-us 177 --gloo-gbyte-s 1.07 …] [--no-validation]

writes OUT/scaling.md (tables) and OUT/scaling.png, for Conv-4 (32 filters) and ResNet-12 at 84 px, 5-way 1-shot, 15 queries, 5 inner steps,
exact second order. A step of W workers with n tasks each is

    slowest of W workers, each n tasks  +  its own part of the reduction  +  every collective on the wire

- A task's time, its spread and the reduction's own part are measured here, one thread. "Slowest" is drawn (Monte Carlo) from the times
  measured, divided by their median; ResNet-12, of which few tasks can be timed, and GPUs take Conv-4's spread.
- The collectives and their bytes are counted by running `distmeta.training.reduce` with torch.distributed replaced by a recorder.
- gloo's all-reduce is a ring: 2(W-1) hops and 2(W-1)/W of the bytes. A hop includes the receiver's announcement of its buffer, so a
  network's delay counts twice in it (tests/bench/delay.py measures that). NCCL takes the best of ring and tree, each with small messages
  (LL) or large ones (Simple), as NCCL's own tuning model does: a tree has 2 log2 W hops and twice the bytes.

Public sources:
- gloo, bandwidth: 1.07 GB/s between two servers with 40 Gbit/s Ethernet, 20 MB, one core each; https://github.com/pytorch/gloo/issues/248
- gloo, latency: 0.354 ms for 1 KB between two servers over TCP, two hops: 177 us; https://github.com/pytorch/gloo/issues/158
  (0.2 ms between two processes from Python, https://github.com/meta-pytorch/torchft/pull/199)
- NCCL, latency: base and hop between nodes as in https://github.com/NVIDIA/nccl, src/graph/tuning.cc, baseLat and hwLat (NET), with the
  shares of bandwidth that LL and trees reach there; 20 us for 8 bytes between two nodes, https://github.com/NVIDIA/nccl-tests/issues/150
- NCCL, bandwidth: 24 GB/s through one 200 Gbit/s InfiniBand adapter; https://github.com/NVIDIA/nccl/issues/1048
- GPU: A100, 19.5 TFLOP/s in float32; https://upb-pc2.atlassian.net/wiki/spaces/PC2DOK/pages/1900609/NVIDIA+A100+40GB+with+NVLINK

Assumed, not measured: that those figures hold for any number of workers (no congestion); that every worker is a node of its own (no
NVLink); that a GPU sustains a quarter of its float32 peak on a task's operations, which are counted (`--gpu-tflops`), spreads like our CPU,
and reduces its own part in no time; that loading and logging stay hidden behind the learner.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from contenders import W, Work, episodes, learner_of
from meta_gradient import RESNET12, Contender, in_turn, ray_workers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distmeta.learners.allocator import ALLOCATOR
from distmeta.learners.learner import SlotMetrics
from distmeta.learners.params import Params, flatten
from distmeta.training.reduce import Contribution, Reduction, Request, reduce, slot_sum

WORKERS = [2**power for power in range(13)]
TASKS = [1, 4, 16, 64]
SHOWN = [1, 2, 4, 16, 64, 256, 1024, 4096]
DRAWS = 40_000  # tasks drawn for one figure, about
GOOD = 0.9


class Way(NamedTuple):
    """An algorithm of an all-reduce: seconds to begin, seconds for each hop, bytes a second, and whether it is a tree (else a ring)."""

    base: float
    hop: float
    bandwidth: float
    tree: bool = False

    def seconds(self, size: float, workers: int) -> float:
        if workers == 1:
            return 0.0
        if self.tree:
            return self.base + 2 * math.ceil(math.log2(workers)) * self.hop + 2 * size / self.bandwidth
        return self.base + 2 * (workers - 1) * self.hop + 2 * (workers - 1) / workers * size / self.bandwidth


class Cost(NamedTuple):
    """What a step of one worker costs with one kind of reduction: `own` seconds (constant, for each of its tasks) beside the tasks
    themselves, and each collective's bytes (constant, for each task of all workers)."""

    own: tuple[float, float]
    collectives: list[tuple[float, float]]


class Cluster(NamedTuple):
    """A network on a kind of machine: seconds of a task, their spread around 1, the ways of an all-reduce, the costs of a reduction."""

    name: str
    task: float
    spread: tuple[float, ...]
    ways: list[Way]
    costs: dict[Reduction, Cost]

    def step(self, workers: int, tasks: int, reduction: Reduction) -> float:
        cost = self.costs[reduction]
        sizes = [constant + each * workers * tasks for constant, each in cost.collectives]
        wire = sum(min(way.seconds(size, workers) for way in self.ways) for size in sizes)
        return self.task * slowest(self.spread, workers, tasks) + cost.own[0] + cost.own[1] * tasks + wire

    def efficiency(self, workers: int, tasks: int, reduction: Reduction) -> float:
        """Of a worker's time, the share that goes into tasks as they are when nothing disturbs them."""
        return self.task * tasks / self.step(workers, tasks, reduction)


@cache
def slowest(spread: tuple[float, ...], workers: int, tasks: int) -> float:
    """Tasks' worth of time that the slowest of the workers takes, on average."""
    random = np.random.default_rng(workers * 1000 + tasks)
    return float(np.mean([random.choice(spread, (workers, tasks)).sum(1).max() for _ in range(max(10, DRAWS // workers // tasks))]))


def collectives(params: Params, reduction: Reduction) -> list[tuple[float, float]]:
    """(constant, for each task) bytes of every collective of a step, counted from the project's own reduction."""

    def counted(tasks: int) -> list[int]:
        sent: list[int] = []
        with patch.object(dist, "all_reduce", lambda v, *_, **__: sent.append(v.nbytes)):
            reduced(params, tasks, reduction, workers=2)
        assert sent, "a reduction makes collectives"
        return sent

    return [(2 * one - two, two - one) for one, two in zip(counted(1), counted(2), strict=True)]


def reduced(params: Params, tasks: int, reduction: Reduction, workers: int = 1) -> None:
    """The reduction of a worker that has all `tasks` slots, alone or (with all_reduce replaced) as if there were others without any."""
    flat, one = flatten(params), torch.ones(1)
    found = ((torch.ones_like(flat).unsqueeze(0), SlotMetrics(one, one.double(), one.double()[:, None][:, :0])) for _ in range(tasks))
    into = slot_sum(reduction, tasks, len(flat), flat, before=1.0)
    reduce(Contribution.of(list(range(tasks)), found, into), params, tasks, 0, workers, Request.NOTHING)


def own_part(params: Params, reduction: Reduction, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds (constant, for each task) that a reduction takes on a worker, without any wire."""
    middle = {}
    for tasks in (2, 4):  # not 1, which may be small enough to be summed in another way
        times = []
        for _ in range(5):
            start = clock()
            reduced(params, tasks, reduction)
            times.append(clock() - start)
        middle[tasks] = statistics.median(times)
    each = max(0.0, (middle[4] - middle[2]) / 2)
    return max(0.0, middle[2] - 2 * each), each


def costs(params: Params, clock: Callable[[], float] | None) -> dict[Reduction, Cost]:
    """Of both kinds of reduction; without a clock, nothing but the wire."""
    kinds: tuple[Reduction, ...] = ("exact", "fast")
    return {kind: Cost(own_part(params, kind, clock) if clock else (0.0, 0.0), collectives(params, kind)) for kind in kinds}


def operations(work: Work) -> int:
    """Floating-point operations of one task, counted on tensors without values."""
    learner, batch = learner_of(work), episodes(work)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, FlopCounterMode(display=False) as counter:
        params: Params = {name: mode.from_tensor(value) for name, value in learner.initial_params().items()}
        learner.slot_gradients(params, batch.map(mode.from_tensor))
    return counter.get_total_flops()


def task_seconds(work: Work, repeats: int, warm_up: int) -> list[float]:
    """Of `repeats` tasks, one after another in a process of one thread, after `warm_up` that do not count."""
    with Contender("distmeta", replace(work, tasks=1), 1, ALLOCATOR) as contender:
        return [contender() for _ in range(repeats + warm_up)][warm_up:]


def loopback(workers: int = 2) -> Way:
    """The ring between processes of this machine: latency from 8 bytes, bandwidth from 16 MB, each the median of 20."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    port = 20000 + os.getpid() % 20000
    processes = [context.Process(target=_exchange, args=(rank, workers, port, answers)) for rank in range(workers)]
    for process in processes:
        process.start()
    small, large = answers.get()
    for process in processes:
        process.join()
    hops = 2 * (workers - 1)
    return Way(0.0, small / hops, hops / workers * 2**24 / max(large - small, 1e-9))


def _exchange(rank: int, workers: int, port: int, answers: "torch.multiprocessing.SimpleQueue") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    found = []
    for size in (1, 2**21):
        values, times = torch.zeros(size, dtype=torch.int64), []
        for _ in range(25):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - start)
        found.append(statistics.median(times[5:]))
    if rank == 0:
        answers.put(found)
    dist.barrier()


def validation(conv4: Cluster, repeats: int) -> Iterator[str]:
    """Real Ray workers on this machine, a step of four tasks, beside what the model says; a plain process, in turn with them, gives a
    task's time.

    More workers than cores share them: with four on two, half a core each.
    """
    Contender.processor_time = False
    cores = len(os.sched_getaffinity(0))
    link = loopback()
    yield f"Loopback: {1e6 * link.hop:.0f} us a hop, {link.bandwidth / 1e9:.2f} GB/s. {cores} cores.\n"
    yield "| Ray workers | cores each | predicted | measured, median (quickest) | measured / predicted |\n|---|---|---|---|---|"
    for workers in (1, 2, 4):
        with Contender("distmeta", W, 1, ALLOCATOR) as alone, ray_workers(W, workers) as step:
            seconds = in_turn({"alone": alone, "workers": step}, repeats, warm_up=1)
        here = conv4._replace(task=statistics.median(seconds["alone"]) / W.tasks, ways=[link])
        sharing = max(1.0, workers / cores)
        tasks = W.tasks // workers
        wire = here.step(workers, tasks, "exact") - here._replace(ways=[Way(0, 0, math.inf)]).step(workers, tasks, "exact")
        predicted = sharing * (here.step(workers, tasks, "exact") - wire) + wire
        measured = statistics.median(seconds["workers"])
        yield (
            f"| {workers} | {min(1.0, cores / workers):.2g} | {1000 * predicted:.0f} ms | {1000 * measured:.0f} ms "
            f"({1000 * min(seconds['workers']):.0f}) | {measured / predicted:.2f} |"
        )


def table(cluster: Cluster) -> Iterator[str]:
    yield f"\n### {cluster.name}\n"
    exact = cluster.costs["exact"]
    sizes = " and ".join(f"{constant:,.0f}" + (f" + {each:.0f} a task" if each else "") for constant, each in exact.collectives)
    yield f"A task takes {_time(cluster.task)}; collectives of {sizes} bytes.\n"
    yield "| workers | " + " | ".join(f"{tasks} task{'s' * (tasks > 1)} each" for tasks in TASKS) + " | `fast` saves (1 task) |"
    yield "|---" * (len(TASKS) + 2) + "|"
    for workers in SHOWN:
        cells = []
        for tasks in TASKS:
            seconds, efficiency = cluster.step(workers, tasks, "exact"), cluster.efficiency(workers, tasks, "exact")
            cells.append(f"{_time(seconds)}, {100 * efficiency:.0f} %")
        saved = 1 - cluster.step(workers, 1, "fast") / cluster.step(workers, 1, "exact")
        yield f"| {workers:,} | {' | '.join(cells)} | {100 * saved:.1f} % |"


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def advice(cluster: Cluster) -> str:
    """Tasks a worker needs for GOOD efficiency, with the spread measured and with none; and where `fast` saves a twentieth of a step."""
    cells = []
    for spread in (cluster.spread, (1.0,)):
        at = cluster._replace(spread=spread)
        for workers in (16, 256, 4096):
            enough = [tasks for tasks in (2**power for power in range(9)) if at.efficiency(workers, tasks, "exact") >= GOOD]
            cells.append(str(enough[0]) if enough else "over 256")
    calm = cluster._replace(spread=(1.0,))
    pays = [f"{workers:,}" for workers in WORKERS[1:] if calm.step(workers, 1, "fast") < 0.95 * calm.step(workers, 1, "exact")]
    return f"| {cluster.name} | {' | '.join(cells)} | {', '.join(pays) or 'nowhere'} |"


def draw(clusters: list[Cluster], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained")
    for axis, cluster in zip(axes.flat, clusters, strict=True):
        for tasks, colour in zip(TASKS, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(TASKS))), strict=True):
            for spread, style in ((cluster.spread, "-"), ((1.0,), ":")):
                shares = [100 * cluster._replace(spread=spread).efficiency(workers, tasks, "exact") for workers in WORKERS]
                label = f"{tasks} task{'s' * (tasks > 1)} a worker" if style == "-" else None
                axis.plot(WORKERS, shares, style, color=colour, label=label)
        axis.axhline(100 * GOOD, color="0.7", linewidth=0.8)
        axis.set(title=cluster.name, xscale="log", ylim=(0, 103))
        axis.set_xticks(SHOWN, [f"{workers:,}" for workers in SHOWN])
        axis.minorticks_off()
    axes[0, 0].legend(title="lines: spread as measured, dots: none", frameon=False, loc="lower left")
    figure.supxlabel("workers")
    figure.supylabel("efficiency: share of a worker's time that goes into tasks, %")
    figure.savefig(file, dpi=90)


def clusters_of(arguments: argparse.Namespace) -> list[Cluster]:
    clock = time.process_time if arguments.processor_time else time.perf_counter
    us, gigabyte = 1e-6, 1e9
    net = arguments.nccl_gbyte_s * gigabyte
    gloo = [Way(0, arguments.gloo_latency_us * us, arguments.gloo_gbyte_s * gigabyte)]
    nccl = [
        Way(3.6 * us, 2.7 * us, net / 4),
        Way(8.4 * us, 9.6 * us, net),
        Way(4.4 * us, 5.0 * us, net * 0.9 / 3.8, tree=True),
        Way(0, 50 * us, net * 0.9, tree=True),
    ]
    times = task_seconds(W, arguments.tasks, warm_up=2)
    spread = tuple(seconds / statistics.median(times) for seconds in times)
    seconds = {
        "Conv-4": statistics.median(times),
        "ResNet-12": arguments.resnet12_s or task_seconds(RESNET12, 1, warm_up=0)[0],
    }
    found: dict[str, list[Cluster]] = {"gloo": [], "nccl": []}
    for name, work in (("Conv-4", replace(W, tasks=1)), ("ResNet-12", RESNET12)):
        params = learner_of(work).initial_params()
        found["gloo"].append(
            Cluster(name=f"{name}, CPU cores, gloo", task=seconds[name], spread=spread, ways=gloo, costs=costs(params, clock))
        )
        on_gpu = operations(work) / (1e12 * arguments.gpu_tflops)
        found["nccl"].append(Cluster(name=f"{name}, GPUs, NCCL", task=on_gpu, spread=spread, ways=nccl, costs=costs(params, None)))
    return found["gloo"] + found["nccl"]


def report(clusters: list[Cluster], arguments: argparse.Namespace) -> Iterator[str]:
    spread = clusters[0].spread
    low, high = np.quantile(spread, [0.05, 0.95])
    clock = "processor time" if arguments.processor_time else "time"
    within = f"90 % lie within {low:.3f} to {high:.3f} of the median, the slowest at {max(spread):.3f}"
    yield f"{len(spread)} tasks of Conv-4 timed ({clock}): {within}."
    yield f"\nTasks a worker for {100 * GOOD:.0f} %; workers for which `fast` saves 5 % of an undisturbed step of one task each:\n"
    yield "| | 16 workers | 256 | 4,096 | 16, no spread | 256, no spread | 4,096, no spread | `fast` |\n" + "|---" * 8 + "|"
    yield from map(advice, clusters)
    for cluster in clusters:
        yield from table(cluster)
    if not arguments.no_validation:
        yield "\n### Against real workers\n"
        yield from validation(clusters[0], arguments.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for scaling.md and scaling.png")
    parser.add_argument("--tasks", type=int, default=40, help="tasks of Conv-4 to time (40)")
    parser.add_argument("--resnet12-s", type=float, help="seconds of a task of ResNet-12; one is timed if absent, which takes a minute")
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine: measure processor time, but not the validation")
    parser.add_argument("--gloo-latency-us", type=float, default=177, help="of a hop (177)")
    parser.add_argument("--gloo-gbyte-s", type=float, default=1.07, help="of a worker's link (1.07)")
    parser.add_argument("--nccl-gbyte-s", type=float, default=24, help="of a worker's link (24)")
    parser.add_argument("--gpu-tflops", type=float, default=4.9, help="that a GPU sustains on a task (4.9)")
    parser.add_argument("--repeats", type=int, default=5, help="steps of the validation that count (5)")
    parser.add_argument("--no-validation", action="store_true", help="do not run real workers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Contender.processor_time = arguments.processor_time
    clusters = clusters_of(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(clusters, arguments.out / "scaling.png")
    with (arguments.out / "scaling.md").open("w") as file:
        for line in report(clusters, arguments):
            print(line, flush=True)
            print(line, file=file)


if __name__ == "__main__":
    main()
