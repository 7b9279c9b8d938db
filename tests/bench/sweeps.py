"""Small sweeps by the real command, several in a row, where something used to keep a trial waiting for ever.

    python tests/bench/sweeps.py SCENARIO [--times 10] [--shards data/glyphs]

    stale      `ray_current_cluster` names a cluster that is gone
    other      another cluster lives on this machine, and `ray_current_cluster` names it
    cleaner    every PlacementGroupCleaner of Ray Train is killed as soon as it is seen
    driver     the driver process of a trial is killed, once
    cluster    on `cluster/local.sh up 2`
    shared     two sweeps at once on one such cluster
    apart      two sweeps at once, each on such a cluster of its own

Prints a line for each sweep: its exit code, its seconds, the states of its trials, and how many of the placement groups that it recorded
are left on its cluster (which ends with the sweep in the first four).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from distmeta.scale import places
from distmeta.scale.cluster import connected
from distmeta.sweep.trials import load_trials
from distmeta.training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    "outer.steps": 20,
    "train.validate_every": 5,
    "sweep.grace": 5,
    "sweep.trials": 5,
    "sweep.promote": "none",
}
LIMIT_S = 600


def command(folder: Path, shards: str) -> list[str]:
    settings = SETTINGS | {"data.shards": shards, "run_folder": folder, "tracking.uri": f"sqlite:///{folder}.db"}
    sets = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "distmeta", "sweep", str(ROOT / "configs/quickstart_sweep.yaml"), *sets]


def killer(process: psutil.Process, name: str, most: int | None) -> None:
    """Kill processes called `name` under `process`, `most` at most (a trial's driver only once it has trained)."""
    killed: set[int] = set()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and (most is None or len(killed) < most):
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                if (
                    name in " ".join(child.cmdline())
                    and child.pid not in killed
                    and (most is None or time.time() - child.create_time() > 20)
                ):
                    child.kill()
                    killed.add(child.pid)
                    break
        time.sleep(0.2)


@contextlib.contextmanager
def local_cluster(state: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that uses a cluster started here by cluster/local.sh."""
    environment = os.environ | {"STATE": str(state), "RAY": str(Path(sys.executable).parent / "ray")}
    started = subprocess.run([ROOT / "cluster/local.sh", "up", "2"], env=environment, check=True, capture_output=True, text=True).stdout
    try:
        lines = (line.removeprefix("export ") for line in started.splitlines())
        pairs = (pair.partition("=") for line in lines for pair in line.split())
        yield {name: value.strip("'") for name, _, value in pairs}
    finally:
        subprocess.run([ROOT / "cluster/local.sh", "down"], env=environment, check=True)


def groups_left(environment: dict[str, str], folder: Path) -> int:
    """How many of the groups that the sweep recorded its cluster still has; asked in a process with that cluster's token."""
    recorded = set(RunFolder(folder).read_groups())
    code = "import json, sys, tests.bench.sweeps as s; print(json.dumps(s.present()))"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return len(recorded & set(json.loads(answer.stdout.splitlines()[-1])))


def present() -> list[str]:
    with connected(None):
        return [group.id for group in places.groups()]


def sweep(name: str, work: Path, shards: str, environment: dict[str, str], kill: tuple[str, int | None] | None = None) -> None:
    folder, began = work / name, time.monotonic()
    with Path(f"{folder}.log").open("w") as log:
        process = psutil.Popen(command(folder, shards), env=os.environ | environment, cwd=work, stdout=log, stderr=log)
        if kill is not None:
            threading.Thread(target=killer, args=(process, *kill), daemon=True).start()
        try:
            code = process.wait(LIMIT_S)
        except psutil.TimeoutExpired:
            process.terminate()
            code = "timed out"
    seconds = time.monotonic() - began
    states = dict(Counter(trial.state for trial in load_trials(RunFolder(folder))))
    left = groups_left(environment, folder) if "RAY_ADDRESS" in environment else "cluster ended"
    print(f"{name}: exit {code}, {seconds:.0f} s, {states}, groups left: {left}, load {os.getloadavg()[0]:.0f}", flush=True)


def both(first: tuple[str, Path, str, dict[str, str]], second: tuple[str, Path, str, dict[str, str]]) -> None:
    threads = [threading.Thread(target=sweep, args=arguments) for arguments in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["stale", "other", "cleaner", "driver", "cluster", "shared", "apart"])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--shards", default="data/glyphs")
    arguments = parser.parse_args()
    scenario, shards = arguments.scenario, str(Path(arguments.shards).absolute())
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as scratch, contextlib.ExitStack() as stack:
        work = Path(scratch)  # its name is short: Ray makes sockets in it
        (work / "ray").mkdir()
        noted = work / "ray" / "ray_current_cluster"
        noted.write_text("127.0.0.1:6399")
        environment = {"RAY_TMPDIR": scratch}
        clusters = {"cluster": 1, "shared": 1, "other": 1, "apart": 2}.get(scenario, 0)
        there = [stack.enter_context(local_cluster(work / f"cluster-{number}")) for number in range(clusters)]
        if scenario == "other":
            noted.write_text(there.pop()["RAY_ADDRESS"])
        kill = {"cleaner": ("PlacementGroupCleaner", None), "driver": ("ImplicitFunc", 1)}.get(scenario)
        for number in range(arguments.times):
            names = [f"{scenario}-{number}-{which}" for which in "ab"]
            if scenario in ("shared", "apart"):
                both((names[0], work, shards, environment | there[0]), (names[1], work, shards, environment | there[-1]))
            else:
                sweep(names[0], work, shards, environment | (there[0] if there else {}), kill)


if __name__ == "__main__":
    main()
