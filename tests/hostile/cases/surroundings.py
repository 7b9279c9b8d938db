"""Where a command runs: few open files, a working folder that is gone, a temporary folder with a long path (K)."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from case import Ask, Case

from cases.pictures import PACK, PREDICT

ASKS: dict[str, tuple[str, ...]] = {
    "models": ("models",),
    "pack": PACK,
    "predict": PREDICT,
    "verify": ("verify", "data"),
    "report": ("report", "run"),
    "publish": ("publish", "run"),
    "train": ("train", "run.yaml", "--set", "tracking.uri=http://127.0.0.1:9"),
}


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _gone() -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()


def _long() -> None:
    folder = Path("tmp") / ("x" * 200)
    folder.mkdir()
    os.environ["TMPDIR"] = str(folder.absolute())


def _arranged(act: Callable[[], None], ask: tuple[str, ...]) -> Callable[[], Ask]:
    def arrange() -> Ask:
        act()
        return ask

    return arrange


def _cases() -> Iterator[Case]:
    for name, ask in ASKS.items():
        yield Case(f"{name} with 64 open files", _arranged(_few_files, ask), "", (0, 1, 2))
        yield Case(f"{name} where the working folder is gone", _arranged(_gone, ask), "the working folder is gone", (1, 2))
        yield Case(f"{name} with a temporary folder of 200 letters", _arranged(_long, ask), "", 1 if name == "train" else 0)


CASES = list(_cases())
