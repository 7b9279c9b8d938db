"""Files that distmeta wrote, damaged since (K): each file, each damage, each verb that reads it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import Ask, Case

from cases.folders import _after
from cases.pictures import PREDICT

RUN = {
    "run/config.yaml": ("report", "publish", "sync"),
    "run/dataset.json": ("report",),
    "run/starts.jsonl": ("report",),
    "run/metrics/000000-000030.jsonl": ("report", "sync"),
    "run/result.json": ("report", "publish", "sync"),
    "run/test_episodes.json": ("publish",),
    "run/mlflow.json": ("publish", "sync"),
    "run/best/best.json": ("report", "publish"),
    "run/best/step-000010/model.json": ("report", "publish"),
    "run/best/step-000010/meta_params.safetensors": ("report", "publish"),
    "run/best/step-000010/checkpoint.json": ("report", "publish"),
    "run/checkpoints/step-000030/progress.json": ("report",),
    "run/checkpoints/step-000030/checkpoint.json": ("report",),
}
OTHERS: dict[str, dict[str, tuple[str, ...]]] = {
    "data/manifest.json": {"verify": ("verify", "data"), "inspect": ("inspect", "data")},
    "data/train-000000.tar": {"verify": ("verify", "data"), "inspect": ("inspect", "data", "--export", "e", "--split", "train")},
    "mlflow.db": {"models": ("models",), "predict": PREDICT},
    "run.yaml": {"train": ("train", "run.yaml", "--set", "run_folder=run")},
}


def _older(content: Any) -> Any:
    return dict(list(content.items())[1:]) if isinstance(content, dict) else content[:-1]


def _newer(content: Any) -> Any:
    return content | {"a_key_of_later": {"x": [1]}} if isinstance(content, dict) else [*content, {"a_key_of_later": 1}]


def _wrong(content: Any) -> Any:
    """The right keys with values of other types."""
    return {key: [None] for key in content} if isinstance(content, dict) else [{"x": None} for _ in content]


def _rewritten(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """A file of JSON, one value or one on each line, with its content changed; other files get a byte more."""

    def damage(path: Path) -> object:
        if path.suffix == ".jsonl":
            lines = [json.dumps(change(json.loads(line))) for line in path.read_text().splitlines()]
            return path.write_text("\n".join(lines) + "\n")
        if path.suffix != ".json":
            return path.write_bytes(path.read_bytes() + b"\0")
        return path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "empty": lambda path: path.write_bytes(b""),
    "of null": lambda path: path.write_text("null\n"),
    "of a list": lambda path: path.write_text("[1, [2]]\n"),
    "of a number": lambda path: path.write_text("5\n"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "older": _rewritten(_older),
    "newer": _rewritten(_newer),
    "of other types": _rewritten(_wrong),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
}


def _loaded(path: str, load: Callable[[], Any]) -> Iterator[Case]:
    for name, damage in DAMAGES.items():

        def arrange(damage: Callable[[Path], object] = damage) -> Ask:
            damage(Path(path))
            return load

        yield Case(f"load {path}, {name}", arrange, "(?s)", (0, 1), seldom=name not in ("cut", "binary", "newer"))


def _load_adapted() -> None:
    from distmeta.inference.model import Adapted

    Adapted.load("adapted")


def _load_checkpoint() -> None:
    from distmeta.training.run_folder import RunFolder

    RunFolder("run").checkpoint(30).load()
    RunFolder("run").checkpoint(30).written_on()


def _escapes() -> None:
    """A result whose measurement has names that a terminal would obey."""
    path = Path("run/result.json")
    result = json.loads(path.read_text())
    names = {
        "name": "\x1b[31mx",
        "unit": "\x1b[2J",
        "scale": 1.0,
        "digits": 1,
        "more_is_better": True,
        "axis": None,
        "columns": ["\x1b[1m", "b"],
    }
    figures = {"selected": 1, "headline": 0, "values": [0.5, 0.5], "ci95": [0.1, 0.1], "episodes": 50, "chance": None, "notes": ["\x1b[0m"]}
    result["test"]["measurement"] = names | figures
    path.write_text(json.dumps(result))


def _cases() -> Iterator[Case]:
    for ask in (("table", "run"), ("table", "run", "--format", "csv"), ("table", "run", "--format", "latex"), ("status", "run")):
        yield Case(f"{' '.join(ask)} with names that are escapes", _after(_escapes, *ask), r"\\x1b", 0)
    asks = {path: {verb: (verb, "run") for verb in verbs} for path, verbs in RUN.items()} | OTHERS
    for path, of_path in asks.items():
        for name, damage in DAMAGES.items():
            for verb, ask in of_path.items():
                act = lambda path=path, damage=damage: damage(Path(path))  # noqa: E731
                yield Case(
                    f"{verb} with {path} {name}",
                    _after(act, *ask),
                    "",
                    (0, 1, 2),
                    real=name == "cut" and (verb, path) in (("report", "run/result.json"), ("verify", "data/manifest.json")),
                    seldom=name not in ("cut", "of other types"),
                )
    for path in ("progress.json", "meta_params.safetensors", "optimizer.safetensors"):
        yield from _loaded(f"run/checkpoints/step-000030/{path}", _load_checkpoint)
    yield from _loaded("adapted/adapted.safetensors", _load_adapted)


CASES = list(_cases())
