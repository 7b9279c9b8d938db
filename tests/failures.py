"""What tests do to runs: find their workers, and act once a run has come to a step."""

import threading
from collections.abc import Callable
from pathlib import Path

import psutil


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Ray Train's workers among the descendants of `process`: the cluster is ours, others on this machine are not."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def at_checkpoint(run_folder: Path, step: int, act: Callable[[], None], delay_s: float = 0.0) -> threading.Thread:
    """Call `act` from a thread, `delay_s` after the run has a checkpoint of at least `step`."""

    def watch() -> None:
        while not any(int(path.parent.name[5:]) >= step for path in run_folder.glob("checkpoints/step-*/checkpoint.json")):
            waiting.wait(0.05)
        waiting.wait(delay_s)
        act()

    waiting = threading.Event()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
