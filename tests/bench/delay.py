"""What a network's delay costs a training step, beside the prediction of scaling_model.py.

    python tests/bench/delay.py [--delays-ms 0,5,10] [--repeats 25]

MAML on sinusoids, 8 tasks a step, over four hosts (network namespaces joined by a network that delays, tests/hosts.py). The delays take
turns between steps of the same processes; the first must be 0. Predicted is what the delay adds to the ring's 2(W-1) hops in each
collective of a step. A hop takes a round trip: gloo's receiver announces its buffer, then the data comes. Needs root and Linux.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
from contenders import SINUSOID, learner_of
from hosts import Hosts, missing
from meta_gradient import RayWorker
from scaling_model import Way, collectives

WORKERS, PORT, WARM_UP = 4, 29500, 3
WORK = replace(SINUSOID, tasks=8)


def work(rank: int, address: str) -> None:
    """A worker on its host: a step for each line of its input, whose seconds it prints."""
    os.environ["GLOO_SOCKET_IFNAME"] = "net"
    worker = RayWorker(WORK, rank, WORKERS)
    worker.join(address)
    for _ in sys.stdin:
        print(worker.step("exact"), flush=True)


@contextmanager
def workers(hosts: Hosts) -> Iterator[Callable[[], float]]:
    """A step of all of them, the slowest one's seconds."""
    address = f"tcp://{hosts.address(1)}:{PORT}"
    pipes: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    commands = [hosts.command(rank + 1, sys.executable, __file__, "--rank", str(rank), "--address", address) for rank in range(WORKERS)]
    processes = [subprocess.Popen(command, text=True, **pipes) for command in commands]  # type: ignore[call-overload]

    def step() -> float:
        for process in processes:
            process.stdin.write("step\n")
            process.stdin.flush()
        return max(float(process.stdout.readline()) for process in processes)

    yield step
    for process in processes:
        process.stdin.close()
        process.wait()


def added_seconds(delay_s: float) -> float:
    """What the delay adds to a step, as predicted."""
    sizes = [constant + each * WORK.tasks for constant, each in collectives(learner_of(WORK).initial_params(), "exact")]
    return sum(Way(0.0, 2 * delay_s, float("inf")).seconds(size, WORKERS) for size in sizes)


def measured(delays: list[float], repeats: int) -> dict[float, list[float]]:
    """Seconds of the steps at each delay (milliseconds)."""
    seconds: dict[float, list[float]] = {delay: [] for delay in delays}
    with Hosts(WORKERS) as hosts, workers(hosts) as step:
        for number in range(WARM_UP + repeats):
            for delay in delays:
                hosts.set(delay_ms=delay)
                took = step()
                if number >= WARM_UP:
                    seconds[delay].append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays-ms", default="0,5,10", help="delays of a packet (default: 0,5,10)")
    parser.add_argument("--repeats", type=int, default=25, help="steps at each delay (default: 25)")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        work(given.rank, given.address)
        return
    if lacking := missing():
        sys.exit(lacking)
    seconds = measured([float(delay) for delay in given.delays_ms.split(",")], given.repeats)
    without = statistics.median(seconds.pop(0.0))
    print(f"Without delay a step takes {1000 * without:.0f} ms.\n")
    print("| delay | a step | added | predicted | added / predicted |\n|---|---|---|---|---|")
    for delay, took in seconds.items():
        step, predicted = statistics.median(took), added_seconds(delay / 1000)
        added = step - without
        print(f"| {delay:g} ms | {1000 * step:.0f} ms | {1000 * added:.0f} ms | {1000 * predicted:.0f} ms | {added / predicted:.2f} |")


if __name__ == "__main__":
    main()
