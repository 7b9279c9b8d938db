"""Ends a run in MLflow if the process that trains it is killed: a small process beside it waits for that.

Until then it imports nothing but Python's own modules, so it takes little memory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_START = "import sys; sys.path.insert(0, {root!r}); from distmeta.registry.outlive import main; main()"
_ATTEMPTS, _PAUSE_S = 6, 10.0
_ENDED = b"ended\n"


@contextmanager
def watched_over(uri: str, run_folder: str) -> Iterator[None]:
    """If this process is killed inside the block, the folder's run in MLflow is ended, with its child runs."""
    command = [sys.executable, "-c", _START.format(root=str(Path(__file__).parents[2]))]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    assert beside.stdin is not None
    with suppress(OSError):  # it could not start, so nothing waits
        beside.stdin.write(json.dumps({"uri": uri, "run_folder": run_folder}).encode() + b"\n")
        beside.stdin.flush()
    try:
        yield
    finally:
        with suppress(OSError):
            beside.stdin.write(_ENDED)
            beside.stdin.close()
        beside.wait()


def main() -> None:
    """The main function of the small process. It reads the name of the run, then waits for a message, or for the end of the sender."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order = sys.stdin.buffer.readline()
    if not order or os.fork():  # the end of a job also ends the children of its processes, but not a child's child
        return
    if sys.stdin.buffer.readline() == _ENDED:
        return
    for _ in range(_ATTEMPTS):
        with suppress(Exception):  # nobody listens; MLflow may answer at the next attempt
            end_orphan(**json.loads(order))
            return
        time.sleep(_PAUSE_S)


def end_orphan(uri: str, run_folder: str) -> None:
    """End the run of a folder without a writer, and its child runs, as KILLED. Raises RegistryError, RunError."""
    from distmeta.registry import tracking
    from distmeta.training.lease import holds
    from distmeta.training.run_folder import RunFolder

    folder = RunFolder(run_folder)
    if holds(folder.path) is not False or not tracking.begun(folder, uri):  # it was resumed at once, or it has no MLflow run
        return
    folder.events.add("ended", reason="its driver was killed")
    run_id = folder.read_mlflow()["run_id"]
    tracking.send_metrics(uri, run_id, folder)
    for running in tracking.running_below(uri, run_id):
        tracking.end_run(uri, running, "KILLED")
