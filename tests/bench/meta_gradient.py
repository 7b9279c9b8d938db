"""Speed and memory of a meta-gradient, beside higher, TorchOpt and torch.func on the same machine in the same run.

    pip install --constraint constraints.txt --editable '.[bench]'
    python tests/bench/meta_gradient.py [--only NAME …] [--repeats N] [--processor-time]

Every contender is a process of its own. They take their steps in turn, so that whatever else the machine does meets all of them; a ratio
is the median over turns of ours / theirs, with its quartiles. Work W is Conv-4 with 32 filters at 84 px, 5-way 1-shot, 15 queries a class,
5 inner steps, exact second order, 4 tasks a step. A quiet machine is needed for the times; bytes do not depend on it.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders import CONTENDERS, SINUSOID, W, Work, episodes, learner_of

from distmeta.learners.allocator import ALLOCATOR
from distmeta.learners.memory import predicted_bytes
from distmeta.scale.cluster import connected
from distmeta.training.reduce import Reduction

PEERS = [name for name in CONTENDERS if name != "distmeta"]
GIB = 2**30
ONE_TASK = Work(own={"filters": 64}, tasks=1)
CHECKPOINTED = {"gradient": "checkpointed"}
VGG13 = Work("vgg", {"convolutions": [2, 2, 2, 2, 2]}, inner_steps=10, tasks=1, settings=CHECKPOINTED)
RESNET12 = Work("resnet12", {}, tasks=1, settings=CHECKPOINTED)


class Row(NamedTuple):
    """`ours` and `theirs` with their unit, ours / theirs as (first quartile, median, third quartile), and the ratio aimed at, if any."""

    name: str
    ours: str
    theirs: str
    ratio: tuple[float, float, float]
    goal: float | None = None

    def __str__(self) -> str:
        low, middle, high = self.ratio
        verdict = "" if self.goal is None else "met" if middle <= self.goal else "missed"
        goal = "" if self.goal is None else f"≤ {self.goal:.3g}"
        return f"{self.name:62} {self.ours:>10} {self.theirs:>10}   {middle:.3f} ({low:.3f} to {high:.3f})  {goal:>8}  {verdict}"


class Contender:
    """A process that takes a step whenever asked. A call gives its seconds, of processor time if `processor_time` is set for all."""

    processor_time = False

    def __init__(self, name: str, work: Work, threads: int, allocator: dict[str, str]) -> None:
        plain = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
        program = [sys.executable, str(Path(__file__).with_name("contenders.py")), name, dumps(asdict(work)), str(threads)]
        environment = plain | {"OMP_NUM_THREADS": str(threads)} | allocator
        self.process = subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> tuple[float, float, int]:
        """Seconds of a step, its seconds of processor time, and the process's peak resident bytes so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        seconds, used, peak = self.process.stdout.readline().split()
        return float(seconds), float(used), int(peak)

    def __call__(self) -> float:
        return self.step()[1 if self.processor_time else 0]

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def in_turn(contenders: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of `repeats` steps of each, one after another, after `warm_up` that do not count."""
    rounds = [{name: contender() for name, contender in contenders.items()} for _ in range(repeats + warm_up)][warm_up:]
    return {name: [round[name] for round in rounds] for name in contenders}


def compared(name: str, ours: list[float], theirs: list[float], goal: float | None = None) -> Row:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(name=name, ours=_milliseconds(ours), theirs=_milliseconds(theirs), ratio=(low, middle, high), goal=goal)


def _milliseconds(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.4g} ms"


def _gib(size: float) -> str:
    return f"{size / GIB:.3f} GiB"


def _of_bytes(name: str, ours: float, theirs: float, goal: float | None = None) -> Row:
    return Row(name=name, ours=_gib(ours), theirs=_gib(theirs), ratio=(ours / theirs,) * 3, goal=goal)


def agreement(repeats: int) -> Iterator[str]:
    """All contenders give the same meta-gradient: W and the sinusoids in float64, relative to its norm. Stops the program otherwise."""
    for label, work in (("W, one task", replace(W, tasks=1)), ("sinusoids", SINUSOID)):
        found = {name: contender(replace(work, dtype="float64"))() for name, contender in CONTENDERS.items()}
        for peer in PEERS:
            error = ((found[peer] - found["distmeta"]).norm() / found["distmeta"].norm()).item()
            yield f"{label} in float64: distmeta and {peer} differ by {error:.1e} of the meta-gradient's norm"
            if not error < 1e-10:
                sys.exit(f"{peer} computes another meta-gradient: nothing to compare")


def one_worker(repeats: int) -> Iterator[Row]:
    """W in one process with one thread, all with the allocator's settings that distmeta gives its workers."""
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(Contender(name, W, 1, ALLOCATOR)) for name in CONTENDERS}
        seconds = in_turn(contenders, repeats)
    for peer in PEERS:
        yield compared(
            f"W: one thread, beside {peer} with our allocator settings",
            seconds["distmeta"],
            seconds[peer],
            0.25 if peer == "higher" else None,
        )


def two_workers(repeats: int) -> Iterator[Row]:
    """W on two Ray workers of one thread each, reduced over both, beside one process with two threads and the default allocator."""
    with ExitStack() as stack:
        peers = {name: stack.enter_context(Contender(name, W, 2, {})) for name in PEERS}
        Contender.processor_time = False  # it would not show what threads or workers are for
        seconds = in_turn(peers | {"distmeta": stack.enter_context(ray_workers(W, 2))}, repeats)
    for peer in PEERS:
        goal = 0.18 if peer == "torch.func" else 0.145
        yield compared(f"W: two Ray workers, beside {peer} with two threads", seconds["distmeta"], seconds[peer], goal)


def scaling(repeats: int) -> Iterator[Row]:
    """What a second worker gains, beside what the machine allows: two processes that know nothing of each other, half the tasks each."""
    half = replace(W, tasks=W.tasks // 2)
    with ExitStack() as stack:
        one, *pair = (stack.enter_context(Contender("distmeta", work, 1, ALLOCATOR)) for work in (W, half, half))
        pool = stack.enter_context(ThreadPoolExecutor(len(pair)))
        bare = lambda: max(pool.map(lambda process: process(), pair))  # noqa: E731
        Contender.processor_time = False
        seconds = in_turn({"one": one, "bare": bare, "two": stack.enter_context(ray_workers(W, 2))}, repeats)
    halves = [found / 2 for found in seconds["one"]]
    yield compared("W: two Ray workers beside half of one's time", seconds["two"], halves, 1 / 0.87)
    yield compared("W: two processes apart, beside half of one's time", seconds["bare"], halves)
    yield compared("W: two Ray workers beside two processes apart", seconds["two"], seconds["bare"], 0.92 / 0.87)


@contextmanager
def ray_workers(work: Work, count: int) -> Iterator[Callable[..., float]]:
    """A step on `count` Ray workers: each computes its share of the slots, then all reduce. Gives the slowest worker's seconds.

    What it yields takes a step, and may be given the kind of reduction.
    """
    import ray

    environment = ALLOCATOR | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with connected(None):
        options = {"num_cpus": min(1, (os.cpu_count() or 1) / count), "runtime_env": {"env_vars": environment}}
        remote: Any = ray.remote(RayWorker)
        workers = [remote.options(**options).remote(work, rank, count) for rank in range(count)]
        address = ray.get(workers[0].address.remote())
        ray.get([worker.join.remote(address) for worker in workers])
        yield lambda reduction="exact": max(ray.get([worker.step.remote(reduction) for worker in workers]))


class RayWorker:
    def __init__(self, work: Work, rank: int, workers: int) -> None:
        from distmeta.training.evaluate import block

        torch.set_num_threads(1)
        self.learner, self.rank, self.workers, self.tasks = learner_of(work), rank, workers, work.tasks
        self.meta_params = self.learner.initial_params()
        self.largest: float | None = None
        slots = list(block(work.tasks, rank, workers))
        self.batch = episodes(work).take(slots)

    def address(self) -> str:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def join(self, address: str) -> None:
        torch.distributed.init_process_group("gloo", init_method=address, rank=self.rank, world_size=self.workers)

    def step(self, reduction: Reduction) -> float:
        import time

        from distmeta.learners.params import flatten
        from distmeta.training.reduce import Contribution, Request, reduce, slot_sum

        torch.distributed.barrier()
        start = time.perf_counter()
        flat = flatten(self.meta_params)
        while True:
            into = slot_sum(reduction, self.tasks, len(flat), flat, self.largest)
            contribution = Contribution.of(self.batch.slots, self.learner.each_slot(self.meta_params, self.batch), into)
            reduced = reduce(contribution, self.meta_params, self.tasks, self.rank, self.workers, Request.NOTHING)
            self.largest = reduced.largest
            if not reduced.again:
                return time.perf_counter() - start


def reduction(repeats: int) -> Iterator[Row]:
    """A step with the exact reduction beside one with the backend's float sum, in turn on the same two Ray workers."""
    resnet = replace(RESNET12, inner_steps=1, tasks=2, settings={})
    for label, work, goal in (("W", W, 1.03), ("ResNet-12, one inner step, 2 tasks", resnet, None)):
        with ray_workers(work, 2) as step:
            seconds = in_turn({"exact": lambda: step("exact"), "fast": lambda: step("fast")}, repeats)
        yield compared(f"{label}: exact reduction beside fast, 2 workers", seconds["exact"], seconds["fast"], goal)


def kernels(repeats: int) -> Iterator[Row]:
    """Native kernels beside torch's, and first order beside second: one process with one thread, at 84 px and at the quickstart's 28 px;
    and ResNet-12's convolutions.
    """
    quickstart = replace(W, size=28, queries=5, inner_steps=1)
    for label, work in (("W", W), ("28 px, 5 queries, 1 inner step", quickstart)):
        works = {"native": work, "torch": replace(work, kernels="torch"), "fomaml": replace(work, learner="fomaml")}
        with ExitStack() as stack:
            processes = {name: stack.enter_context(Contender("distmeta", each, 1, ALLOCATOR)) for name, each in works.items()}
            seconds = in_turn(processes, repeats)
        yield compared(f"{label}: native kernels beside torch's", seconds["native"], seconds["torch"], 0.5)
        yield compared(f"{label}: FOMAML beside MAML", seconds["fomaml"], seconds["native"], 0.55 if work is W else None)
    resnet = replace(RESNET12, inner_steps=1, settings={})
    with ExitStack() as stack:
        both = {"native": resnet, "torch": replace(resnet, kernels="torch")}
        processes = {name: stack.enter_context(Contender("distmeta", each, 1, ALLOCATOR)) for name, each in both.items()}
        seconds = in_turn(processes, max(3, repeats // 3), warm_up=1)
    yield compared("ResNet-12, one task, one inner step: native kernels beside torch's", seconds["native"], seconds["torch"], 0.8)


def checkpointed(repeats: int) -> Iterator[Row]:
    """Time of the checkpointed gradient beside the unrolled one, Conv-4 with 64 filters, one task."""
    for inner_steps, goal in ((5, 1.25), (50, 1.4)):
        works = {way: replace(ONE_TASK, inner_steps=inner_steps, settings={"gradient": way}) for way in ("checkpointed", "unrolled")}
        with ExitStack() as stack:
            seconds = in_turn(
                {way: stack.enter_context(Contender("distmeta", work, 1, ALLOCATOR)) for way, work in works.items()}, repeats, warm_up=1
            )
        yield compared(f"{inner_steps} inner steps: checkpointed beside unrolled", seconds["checkpointed"], seconds["unrolled"], goal)


def memory(repeats: int) -> Iterator[Row]:
    """Peak resident bytes of fresh processes, and what `predicted_bytes` says of tensors alone."""
    few, many = (replace(ONE_TASK, inner_steps=steps, settings=CHECKPOINTED) for steps in (5, 50))
    yield _of_bytes("Conv-4 checkpointed, 50 inner steps beside 5: resident", resident(many), resident(few), 1.2)
    yield _of_bytes("Conv-4 checkpointed, 50 inner steps beside 5: predicted", predicted(many), predicted(few), 1.2)
    yield _of_bytes("Conv-4 unrolled, 50 inner steps beside 5: predicted", *(predicted(replace(w, settings={})) for w in (many, few)))
    one, ten = (replace(RESNET12, inner_steps=steps) for steps in (1, 10))
    size = sum(parameter.numel() * parameter.element_size() for parameter in learner_of(one).model.parameters())
    name = "ResNet-12 checkpointed, 10 inner steps beside 1 and 9·|θ|"
    yield _of_bytes(f"{name}: predicted", predicted(ten), predicted(one) + 9 * size, 1)
    yield _of_bytes(f"{name}: resident", resident(ten), resident(one) + 9 * size, 1)
    yield _of_bytes("VGG-13, 10 inner steps, checkpointed beside 4 GiB: resident", resident(VGG13), 4 * GIB, 1)
    yield _of_bytes("VGG-13, 10 inner steps, checkpointed beside 4 GiB: predicted", predicted(VGG13), 4 * GIB, 1)


def resident(work: Work) -> int:
    """Peak resident bytes of a fresh process that takes two steps, the interpreter and torch included."""
    with Contender("distmeta", work, 1, ALLOCATOR) as contender:
        return [contender.step()[2] for _ in range(2)][-1]


def predicted(work: Work) -> int:
    learner = learner_of(work)
    return predicted_bytes(learner, learner.initial_params(), episodes(work))


def sinusoids(repeats: int) -> Iterator[Row]:
    """25 tasks of a small network at once, as `task_batching: auto` does, beside one after another; each turn is the best of 20 steps."""
    batched = replace(SINUSOID, settings={"tasks_per_chunk": SINUSOID.tasks})
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Contender(name, SINUSOID, 1, ALLOCATOR)) for name in PEERS}
        processes["vmap"] = stack.enter_context(Contender("distmeta", batched, 1, ALLOCATOR))
        looped = replace(SINUSOID, settings={"task_batching": "loop"})
        processes["distmeta, one after another"] = stack.enter_context(Contender("distmeta", looped, 1, ALLOCATOR))
        best_of = {name: lambda process=process: min(process() for _ in range(20)) for name, process in processes.items()}
        seconds = in_turn(best_of, repeats)
    for other in [name for name in processes if name != "vmap"]:
        yield compared(f"sinusoids, 25 tasks: vmap beside {other}", seconds["vmap"], seconds[other])


PARTS: dict[str, Callable[[int], Iterator[object]]] = {
    "agreement": agreement,
    "one-worker": one_worker,
    "two-workers": two_workers,
    "scaling": scaling,
    "reduction": reduction,
    "kernels": kernels,
    "checkpointed": checkpointed,
    "memory": memory,
    "sinusoids": sinusoids,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (all)")
    parser.add_argument("--repeats", type=int, default=9, help="turns that count (9)")
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine: compare one-thread processes by processor time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Contender.processor_time = arguments.processor_time
    print(f"{'ratio of ours to theirs: median (quartiles)':62} {'ours':>10} {'theirs':>10}")
    for name in arguments.only:
        for row in PARTS[name](arguments.repeats):
            print(row, flush=True)


if __name__ == "__main__":
    main()
