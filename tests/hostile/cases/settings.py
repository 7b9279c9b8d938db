"""What is typed: --set, and options of verbs (J)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Ask, Case

WRONG = {
    "seed=1:00": "seed='1:00'|seed",
    "seed=1.5": "seed=1.5",
    "seed=true": "seed=True",
    "seed=yes": "seed='yes'",
    "seed=-1": "seed=-1",
    "seed=1e400": "seed",
    "seed=" + "9" * 5000: "5000 characters|seed",
    "seed=[1]": "seed",
    "seed={a: 1}": "seed",
    "seed=2020-99-99": "seed='2020-99-99'",
    "seed=0x": "seed",
    "seed=" + "[" * 900: "nests deeper",
    "seed=!!python/object/apply:os.system ['touch owned']": "tag",
    "seed=*a": "alias|seed",
    "seed=": "seed",
    "seed": "has no value",
    "=1": "has no value",
    "": "has no value",
    "a.b.c=1": "(?s)unknown key.*nearest valid keys: run_folder",
    "seed.x=1": "seed",
    "data=1": "data",
    "data..way=1": "unknown key|data",
    ".seed=1": "unknown key|seed",
    "Seed=1": "unknown key Seed",
    "outer.lr=nan": "outer.lr",
    "outer.lr=inf": "outer.lr",
    "outer.lr=-1": "outer.lr=-1",
    "outer.lr=1,5": "outer.lr='1,5'",
    "outer.lr=.nan": "outer.lr",
    "outer.steps=-5": "outer.steps",
    "outer.steps=1:00": "outer.steps='1:00'",
    "outer.steps=1000000000000": "outer.steps",
    "outer.optimizer=evil": "outer.optimizer",
    "data.way=1": "data.way|way",
    "data.way=0": "data.way=0",
    "data.way=500": "500",
    "data.shot=10000000": "data.shot",
    "data.shot=1000": "data.shot",
    "data.queries=1000": "data.queries",
    "data.image_size=100000": "data.image_size",
    "data.image_size=0": "data.image_size",
    "data.channels=2": "data.channels",
    "data.mean=[1,2,3]": "data.mean",
    "data.std=[0]": "data.std",
    "data.std=[]": "data.std",
    "data.functions=sinusoid": "exclude each other",
    "data.functions=__import__": "data.functions",
    "data.domain=antigravity.Domain": "data.domain",
    "data.domain=os.system": "data.domain=os.system",
    "data.domain=x": "data.domain=x",
    "data.settings={a: 1}": "data.settings",
    "data.augment.jitter=1": "data.augment.jitter",
    "data.read_timeout_s=0": "data.read_timeout_s",
    "data.eval.episodes=0": "data.eval.episodes",
    "data.eval.way=500": "data.eval.way",
    "data.eval.beside=x": "data.eval.beside",
    "model.name=os.system": "os.system",
    "model.name=nonsense": "nonsense",
    "model.name=no_such.Net": "no_such",
    "model.filters=0": "filters",
    "model.filters=-1": "filters",
    "model.filters=x": "filters",
    "model.nonsense=1": "nonsense",
    "learner.name=nonsense": "nonsense",
    "learner.inner_lr=-1": "inner_lr",
    "learner.inner_lr=x": "inner_lr",
    "learner.inner_steps=0": "inner_steps",
    "learner.nonsense=1": "nonsense",
    "init_from=nowhere.safetensors": "nowhere.safetensors",
    "init_from=run.yaml": "run.yaml",
    "init_from=models:/nobody/1": "nobody",
    "train.workers=0": "train.workers",
    "train.workers=5000000": "train.workers",
    "train.workers=64": "train.workers=64",
    "train.device=tpu": "train.device",
    "tracking.model=../x": "tracking.model",
    "tracking.uri=ftp://x": "ftp",
    "tracking.experiment=\x1b[2J": "tracking.experiment",
    "run_folder=run": "holds a run already|holds other",
    "run_folder=data": "holds other files",
    "run_folder=run.yaml": "run.yaml",
    "run_folder=": "run_folder",
    "run_folder=http://127.0.0.1:9/x": "run_folder=http://127.0.0.1:9/x",
    "run_folder=nonsense://x": "run_folder=nonsense://x",
    "run_folder=a\x00b": "run_folder",
    "run_folder=" + "x" * 5000: "run_folder",
    "run_folder=s3://me:hunter2@b/x": "a bucket's name holds only letters",
    "run_folder=s3://a b/x": "a bucket's name holds only letters",
    "tracking.experiment=password=hunter2\x1b[2J": "tracking.experiment",
    "sweep.trials=5": "sweep",
}
RIGHT: dict[str, tuple[str, Any]] = {
    "seed=010": ("seed", 10),
    "seed=0o10": ("seed", 8),
    "seed=0x1F": ("seed", 31),
    "outer.lr=1e-3": ("outer.lr", 0.001),
    "outer.lr=.5": ("outer.lr", 0.5),
    "data.shards=data/my photos #1": ("data.shards", "data/my photos #1"),
    "data.shards=a: b": ("data.shards", "a: b"),
    "data.shards=[x]": ("data.shards", "[x]"),
    "data.shards='x'": ("data.shards", "'x'"),
    "data.shards=*a": ("data.shards", "*a"),
    "run_folder=2024": ("run_folder", "2024"),
    "run_folder=2020-01-01": ("run_folder", "2020-01-01"),
    "run_folder=yes": ("run_folder", "yes"),
    "run_folder=1:00": ("run_folder", "1:00"),
    "tracking.model=1e3": ("tracking.model", "1e3"),
    "tracking.experiment=a=b": ("tracking.experiment", "a=b"),
    "tracking.uri=": ("tracking.uri", None),
    "data.image_size=": ("data.image_size", None),
}


def _read(text: str, key: str) -> Ask:
    from distmeta.config import load_config, value_of

    return lambda: print(repr(value_of(load_config(Path("run.yaml"), [text]), key)))


OPTIONS = {
    "an unknown verb": (("nonsense",), "nonsense"),
    "an unknown option": (("train", "run.yaml", "--nonsense"), "--nonsense"),
    "no arguments of train": (("train",), "(?i)config"),
    "one too many": (("verify", "data", "data"), "data"),
    "an option twice": (("predict", "--model", "a", "--model", "b"), "--support|Missing"),
    "a number that is text": (("pack", "pictures", "--dataset", "folder", "--out", "o", "--seed", "x"), "--seed"),
    "evaluate of -1 episodes": (("evaluate", "data", "--model", "models:/m/1", "--episodes", "-1"), "--episodes"),
    "evaluate of a split": (("evaluate", "data", "--model", "models:/m/1", "--split", "all"), "--split"),
    "inspect of a split": (("inspect", "data", "--split", "../x"), "--split"),
    "sweep without a sweep": (("sweep", "run.yaml"), "sweep"),
    "rollout of a classifier": (("rollout", "--model", "models:/m/1"), "m"),
    "rollout of nothing": (("rollout", "--model", "models:/m/9"), "9"),
    "rollout of an unknown environment": (("rollout", "--model", "models:/m/1", "--env", "os.system"), "os.system"),
    "rollout with an option of none": (("rollout", "--model", "models:/m/1", "--option", "x"), "x"),
    "rollout with a task of text": (("rollout", "--model", "models:/m/1", "--task", "a,b"), "a,b|task|m"),
}


def _cases() -> Iterator[Case]:
    for text, says in WRONG.items():
        ask = ("train", "run.yaml", "--set", text)
        yield Case(f"--set {text[:40]!r}", lambda ask=ask: ask, says, (1, 2), real=text in ("seed=2020-99-99", "data.shot=1000"))
    for text, (key, value) in RIGHT.items():
        yield Case(f"--set {text!r} is {value!r}", lambda text=text, key=key: _read(text, key), _whole_line(value), 0)
    for folder in ("\x1b[2J", "password=hunter2"):
        yield Case(f"init into {folder!r}", lambda folder=folder: ("init", folder, "--template", "regression"), "next:", 0)
    for name, (ask, says) in OPTIONS.items():
        yield Case(name, lambda ask=ask: ask, says, (1, 2), real=name == "an unknown verb")


def _whole_line(value: Any) -> str:
    return rf"(?m)^{re.escape(repr(value))}$"


CASES = list(_cases())
