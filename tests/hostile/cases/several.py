"""Folders of sweeps and of several seeds that others wrote: what they name is not opened (E), what is damaged is named (K)."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from case import Case

from cases.folders import _after

TRIAL: dict[str, Any] = {
    "number": 0,
    "params": {"learner.inner_lr": 0.1},
    "state": "finished",
    "reason": "all 30 steps",
    "began": 1.0,
    "ended": 2.0,
}
TABLE: dict[str, Any] = {"trials": [], "best": {"number": 0, "test": {}, "model": "models:/m/1"}}
SWEEP = {"trials": 2, "space": {"learner.inner_lr": {"choice": [0.1, 0.2]}}}
CLIMBING = "0/../../../run"  # a folder of the user's that the received one names


def _sweep(record: Any = TRIAL, table: Any = TABLE, space: Any = SWEEP) -> Callable[[], object]:
    """The finished run as the only trial of a sweep in `swept`."""

    def act() -> None:
        config = yaml.safe_load(Path("run/config.yaml").read_text())
        trial = Path("swept/trials/trial-000")
        shutil.copytree("run", trial)
        Path("swept/config.yaml").write_text(yaml.safe_dump(config | {"run_folder": "swept", "sweep": space}))
        shutil.copy("run/dataset.json", "swept/dataset.json")
        (trial / "trial.json").write_text(record if isinstance(record, str) else json.dumps(record))
        Path("swept/trials.json").write_text(table if isinstance(table, str) else json.dumps(table))

    return act


def _seeds(record: Any) -> Callable[[], object]:
    """The finished run as that of seed 0 of several in `several`."""

    def act() -> None:
        shutil.copytree("run", "several/seeds/seed-0")
        for name in ("config.yaml", "dataset.json"):
            shutil.copy(f"run/{name}", f"several/{name}")
        Path("several/seeds.json").write_text(record if isinstance(record, str) else json.dumps(record))

    return act


RECORDS = {
    "a path for a number": TRIAL | {"number": CLIMBING},
    "another trial's number": TRIAL | {"number": 1},
    "a number below 0": TRIAL | {"number": -1},
    "an unknown state": TRIAL | {"state": "\x1b[2J"},
    "params that are a list": TRIAL | {"params": [1]},
    "nothing": {},
    "half of it": json.dumps(TRIAL)[:30],
    "a list": [TRIAL],
    "a time that is text": TRIAL | {"began": "now"},
    "a million levels": "[" * 10**6,
}
TABLES = {
    "a path for the best": {"trials": [], "best": {"number": CLIMBING, "test": {}}},
    "a path for retrained steps": {"trials": [], "best": {"number": 0, "test": {}, "retrained_steps": CLIMBING}},
    "no best": {"trials": []},
    "a best that is a list": {"trials": [], "best": ["test"]},
    "a best that is not among the trials": {"trials": [], "best": {"number": 5, "test": {}}},
    "nothing": "",
    "null": "null",
}
SEEDS = {
    "a path for a seed": {"seeds": [0, CLIMBING]},
    "a seed below 0": {"seeds": [-1]},
    "a seed of 200 digits": {"seeds": [int("9" * 200)]},
    "seeds that are text": {"seeds": "0,1"},
    "no seeds": {"seeds": []},
    "a model at a URL": {"seeds": [0], "models": {"models:/m@champion": "http://127.0.0.1:9/x"}},
    "a model that is a command": {"seeds": [0], "models": {"models:/m@champion": "pipe:touch owned"}},
    "half of it": '{"seeds": [0',
}


def _cases() -> Iterator[Case]:
    for verb in ("status", "table"):
        yield Case(f"{verb} of a sweep", _after(_sweep(), verb, "swept"), "61.2 %", 0, seldom=True)
        yield Case(f"{verb} of several seeds", _after(_seeds({"seeds": [0, 7]}), verb, "several"), "61.2", 0, seldom=True)
    for name, record in RECORDS.items():
        yield Case(f"status of a sweep whose trial holds {name}", _after(_sweep(record), "status", "swept"), "trial.json", 1)
    for name, table in TABLES.items():
        yield Case(f"table of a sweep whose table holds {name}", _after(_sweep(table=table), "table", "swept"), "swept", 1)
    for name, record in SEEDS.items():
        for verb in ("status", "table"):
            says = "several|no finished run" if name == "no seeds" else "seeds.json"
            expected = (0, 1, 2) if name == "no seeds" else 1
            yield Case(f"{verb} of seeds with {name}", _after(_seeds(record), verb, "several"), says, expected, seldom=verb == "status")
    for verb in ("report", "sync", "publish"):
        yield Case(f"{verb} of a sweep", _after(_sweep(), verb, "swept"), "swept", (0, 1), seldom=True)
        yield Case(f"{verb} of seeds", _after(_seeds({"seeds": [0]}), verb, "several"), "several", (0, 1), seldom=True)


CASES = list(_cases())
