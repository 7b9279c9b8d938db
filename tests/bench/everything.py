"""Every comparison of docs/results.md that one machine can repeat in 40 minutes: what `make bench` runs after the installation.

    python tests/bench/everything.py [--only NAME …] [--list]

Each part is a program of its own with a time limit, about twice what it takes on an idle machine, and prints its own table; ratios are
measured in alternation within one part. What a part needs and does not find is named, and the part is skipped. After 40 minutes no part
begins, and the one that runs is ended. At the end a table says what became of each. Exit code 1 if a part failed. A part that a limit ends
prints what it had, and counts as stopped, not as failed: on a slow or busy machine, run it alone.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

BENCH = Path(__file__).parent
ROOT = BENCH.parent.parent
GLYPHS, OMNIGLOT = "data/glyphs", "data/omniglot"
OMNIGLOT_CONFIG = "configs/omniglot_5way_1shot_maml.yaml"
LEARNERS = [part for name in ("maml", "anil", "protonet") for part in ("--learner", name)]
ENDING_S = 20.0  # that a part may take to end when it is told to
LONGEST_S = 40 * 60 - ENDING_S
PEERS = Path(os.environ.get("DISTMETA_PEERS", "peers"))  # clones of peers' repositories


class Part(NamedTuple):
    """`{scratch}` in `arguments` is a folder that is removed in the end; `minutes` is the limit; `needs` are paths."""

    name: str
    what: str
    minutes: float
    arguments: list[str]
    needs: tuple[str, ...] = ()


def peer(name: str, minutes: float, episodes: int) -> Part:
    clone = str(PEERS / name)
    arguments = ["bench/peers.py", name, clone, "--episodes", str(episodes)]
    return Part(f"peer {name}", "their weights and episodes, our evaluation", minutes, arguments, (clone,))


def timed(measurement: str, repeats: int) -> list[str]:
    return ["bench/meta_gradient.py", "--only", measurement, "--repeats", str(repeats)]


PARTS = [
    Part("golden", "200 meta-losses of the quickstart beside those in git", 1, ["golden.py", GLYPHS], (GLYPHS,)),
    Part("agreement", "meta-gradients of all contenders in float64", 1, ["bench/meta_gradient.py", "--only", "agreement"]),
    Part("one worker", "a step beside higher, TorchOpt and torch.func", 3, timed("one-worker", repeats=3)),
    Part("two workers", "the same on two Ray workers", 3, timed("two-workers", repeats=3)),
    Part("kernels", "native kernels beside torch's", 6, timed("kernels", repeats=3)),
    Part("reduction", "the exact sum beside a float sum", 6, timed("reduction", repeats=3)),
    Part("checkpointed", "time beside unrolled", 2, timed("checkpointed", repeats=3)),
    Part("memory", "peak memory at 5 and 50 inner steps", 8, ["bench/meta_gradient.py", "--only", "memory"]),
    Part("sinusoids", "25 small tasks at once", 1.5, timed("sinusoids", repeats=5)),
    Part("adapt", "a published model beside bare torch", 1.5, ["bench/adapt.py", "--repeats", "7"]),
    Part(
        "stream", "episodes beside WebDataset and a folder", 8, ["bench/stream.py", "--images", "20000", "--only", "webdataset", "folder"]
    ),
    Part("step time", "where a step's time goes", 1.5, ["bench/step_time.py", GLYPHS], (GLYPHS,)),
    Part("same bits", "one hash on 1, 2, 3 and 4 workers", 7, ["bench/same_weights.py", GLYPHS, "--only", "workers"], (GLYPHS,)),
    Part(
        "learners",
        "three learners in equal time on Omniglot, 20 s each",
        10,
        ["bench/learners.py", OMNIGLOT_CONFIG, *LEARNERS, "--minutes", "0.33", "--out", "{scratch}/learners"],
        (OMNIGLOT,),
    ),
    peer("few-shot-meta-baseline", 4, episodes=2),
    peer("prototypical-networks", 1, episodes=20),
]


def run(part: Part, scratch: str, left_s: float = LONGEST_S) -> tuple[str, float]:
    """What became of a part that may take `left_s` seconds, and its seconds."""
    absent = [path for path in part.needs if not (ROOT / path).exists()]
    if absent:
        return f"skipped: {', '.join(absent)} absent", 0.0
    if left_s <= 0:
        return "not begun", 0.0
    print(f"\n== {part.name}: {part.what}", flush=True)
    program, *arguments = (argument.format(scratch=scratch) for argument in part.arguments)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db"}
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, str(BENCH.parent / program), *arguments], cwd=ROOT, env=environment, start_new_session=True)
    try:
        limit_s = min(60 * part.minutes, left_s)
        code = process.wait(limit_s)
        outcome = "ok" if code == 0 else f"failed (exit code {code})"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {limit_s / 60:.2g} min"
    finally:
        end(process)
    return outcome, time.monotonic() - began


def end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a part and of the processes that it started, which are its group, before the next one is timed."""
    for number, patience_s in ((signal.SIGTERM, ENDING_S), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + patience_s
        there = reaches(process, number)
        while there and time.monotonic() < until:
            time.sleep(0.1)
            there = reaches(process, 0)


def reaches(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send signal `number` (0: none) to a part's group; whether anything was left of it."""
    process.poll()  # a leader that has ended stays in the group until it is asked for
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names of parts (default: all). May be repeated.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Print the parts with their limits (minutes).")] = False,
) -> None:
    unknown = set(only or ()) - {part.name for part in PARTS}
    if unknown:
        raise typer.BadParameter(f"no part is called {', '.join(sorted(unknown))}; see --list")
    chosen = [part for part in PARTS if not only or part.name in only]
    if show:
        print("\n".join(f"{part.name:28} {part.minutes:4g} min  {part.what}" for part in chosen))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the part that runs is ended, too
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-", ignore_cleanup_errors=True) as scratch:
        until = time.monotonic() + LONGEST_S
        outcomes = [(part, *run(part, scratch, until - time.monotonic())) for part in chosen]
    print("\n| part | what | outcome | seconds |\n|---|---|---|---|")
    for part, outcome, seconds in outcomes:
        print(f"| {part.name} | {part.what} | {outcome} | {seconds:.0f} |")
    sys.exit(any(outcome.startswith("failed") for _, outcome, _ in outcomes))


if __name__ == "__main__":
    typer.run(main)
