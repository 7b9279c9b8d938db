"""Addresses, names and registries (D), clusters' addresses (G)."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from case import Ask, Case

from cases.folders import _after, _write
from cases.received import serving

ADDRESSES = {
    "models:/": "is not a registry address",
    "models:/m": "is not a registry address",
    "models:/m/": "is not a registry address",
    "models:/m/0": "has no version 0",
    "models:/m/999": "has no version 999",
    "models:/m/-1": "is not a registry address",
    "models:/m/1e9": "is not a registry address",
    "models:/m/99999999999999999999999": "has no version",
    "models:/m@none": "has no alias 'none'",
    "models:/m@champion/extra": "is not a registry address",
    "models:/nobody@champion": "no model 'nobody' is registered",
    "models:/../../x/1": "is not a registry address",
    "models:/o'brien/1": "no model .*o'brien.* is registered",
    "models:/a b;drop/1": "is registered",
    "models:/\x1b[2J/1": "is registered|is not a registry address",
    "models:/\U0001f436/1": "is registered",
    "models:/" + "x" * 5000 + "/1": "is registered",
    "runs:/x/model": "no model of an MLflow run x",
    "runs:/../model": "is not a registry address",
    "runs:/x/other": "is not a registry address",
    "file:///etc/passwd": "is not a registry address|no run|/etc/passwd",
    "http://127.0.0.1:9/m": "is not a registry address|http",
    "": "is not a registry address|run",
}


def _tampered(statement: str) -> Callable[[], object]:
    def act() -> None:
        with sqlite3.connect("mlflow.db") as database:
            database.execute(statement)
        database.close()

    return act


def _uri(uri: str) -> tuple[str, ...]:
    return ("models", "--tracking-uri", uri)


TAMPERED = {
    "no tags": "DELETE FROM model_version_tags",
    "tags of text": "UPDATE model_version_tags SET value = 'x' WHERE key NOT LIKE 'sha256%'",
    "tags of NaN": "UPDATE model_version_tags SET value = 'NaN' WHERE key NOT LIKE 'sha256%'",
    "tags that nest": "UPDATE model_version_tags SET value = '" + "[" * 4000 + "' WHERE key NOT LIKE 'sha256%'",
    "tags of escapes": "UPDATE model_version_tags SET value = char(27) || '[2J' WHERE key NOT LIKE 'sha256%'",
    "other hashes": "UPDATE model_version_tags SET value = 'x' WHERE key LIKE 'sha256%'",
    "a source elsewhere": "UPDATE model_versions SET source = '/etc', storage_location = '/etc'",
    "a source that climbs": "UPDATE model_versions SET source = source || '/../../../..'",
    "a source on another host": "UPDATE model_versions SET source = 'http://127.0.0.1:9/x', storage_location = 'http://127.0.0.1:9/x'",
    "no run": "UPDATE model_versions SET run_id = ''",
    "a run folder elsewhere": "UPDATE tags SET value = '/etc' WHERE key = 'run_folder'",
    "a run folder that is a URL": "UPDATE tags SET value = 'http://127.0.0.1:9/run' WHERE key = 'run_folder'",
    "a run folder that is a pipe": "UPDATE tags SET value = 'pipe:touch owned {name}' WHERE key = 'run_folder'",
    "no run folder": "DELETE FROM tags WHERE key = 'run_folder'",
    "a deleted run": "UPDATE runs SET lifecycle_stage = 'deleted'",
    "a deleted experiment": "UPDATE experiments SET lifecycle_stage = 'deleted'",
    "no experiments": "DELETE FROM experiments",
    "no versions": "DELETE FROM model_versions",
    "aliases that lead nowhere": "UPDATE registered_model_aliases SET version = 77",
    "tables that are gone": "DROP TABLE model_versions",
    "a later database": "UPDATE alembic_version SET version_num = 'ffffffffffff'",
}
VERBS: dict[str, tuple[str, ...]] = {
    "models": ("models",),
    "predict": ("predict", "--model", "models:/m@champion", "--support", "support", "--query", "query"),
    "report": ("report", "models:/m@champion"),
    "compare": ("compare", "models:/m/1", "models:/m/2"),
    "promote": ("promote", "models:/m/1", "--alias", "x"),
}


def _addresses() -> Iterator[Case]:
    for address, says in ADDRESSES.items():
        shown = address[:40]
        predict = ("predict", "--model", address, "--support", "support", "--query", "query")
        yield Case(f"predict --model {shown!r}", lambda ask=predict: ask, says, (1, 2), real=address in ("models:/", "models:/m/999"))
        yield Case(f"promote {shown!r}", lambda ask=("promote", address): ask, says, (1, 2), seldom=True)
        yield Case(f"report {shown!r}", lambda ask=("report", address): ask, ".", (1, 2), seldom=True)
        yield Case(f"compare {shown!r}", lambda ask=("compare", address, "models:/m/1"): ask, says, (1, 2), seldom=True)


def _registries() -> Iterator[Case]:
    for name, statement in TAMPERED.items():
        for verb, ask in VERBS.items():
            often = verb == ("report" if "run folder" in name else "predict")
            yield Case(f"{verb} of a registry with {name}", _after(_tampered(statement), *ask), ".", (0, 1), seldom=not often)
    for name, says in (("a deleted experiment", "is deleted\n  mlflow experiments restore"), ("a later database", "mlflow")):
        ask = ("train", "run.yaml", "--set", "data.eval.episodes=2")  # it would meet a cluster that is not there
        yield Case(f"train on a registry with {name}", _after(_tampered(TAMPERED[name]), *ask), says)
    for name in ("../x", "a'b", "x" * 200, "", "a/b", "a\nb", "-x", "."):
        yield Case(
            f"publish --name {name[:10]!r}",
            lambda name=name: ("publish", "run", "--name", name),
            "is not a model name" if name else "published",
            2 if name else 0,
        )
    for alias in ("latest", "v1", "V2", "a b", "../x", "x" * 200):
        yield Case(
            f"promote --alias {alias[:10]!r}", lambda alias=alias: ("promote", "models:/m/1", "--alias", alias), "is not an alias", 2
        )
    for uri, says in {
        "sqlite:///run": "run",
        "sqlite:///run.yaml": "run.yaml",
        "sqlite:///run.yaml/mlflow.db": "run.yaml",
        "http://127.0.0.1:9": "127.0.0.1:9.*[Rr]efused",
        "http://me:hunter2@127.0.0.1:9": "http://127.0.0.1:9",
        "https://127.0.0.1:9?token=hunter2": "127.0.0.1:9",
        "http://[::1": "http",
        "http://": "http",
        "http:///x": "http",
        "ftp://127.0.0.1/x": "ftp",
        "postgresql://me:hunter2@127.0.0.1:9/x": "postgresql://127.0.0.1",
        "mysql://me:hunter2@127.0.0.1:9/x": "mysql",
        "nonsense://x": "nonsense",
        "databricks": "databricks",
        "\x1b[2J": "MLflow",
        "pipe:touch owned": "MLflow",
        "models:/m/1": "MLflow",
    }.items():
        yield Case(f"models --tracking-uri {uri!r}", lambda uri=uri: _uri(uri), says, (1, 2), real=uri == "sqlite:///run.yaml")
    for name, content in (("text", b"no database"), ("half", b"SQLite format 3\0" + bytes(200)), ("zeros", bytes(8192))):
        yield Case(f"a database of {name}", _after(_write("mlflow.db", content), "models"), "mlflow.db")
    for name in ("drips", "endless", "garbage", "silent", "closes", "redirects"):
        yield Case(f"a server that {name}", serving(name, "models", "--tracking-uri", "{}"), "MLflow at http://127.0.0.1")


def _clusters() -> Iterator[Case]:
    """Addresses of jobs, and what a job would lose."""
    for address, says in {
        "http://127.0.0.1:9": "no Ray cluster answers at http://127.0.0.1:9",
        "127.0.0.1:9": "is not a dashboard's address",
        "ray://127.0.0.1:9": "is not a dashboard's address",
        "": "is not a dashboard's address|address",
        "http://": "no Ray cluster answers",
        "http://[::1": "is not a dashboard's address",
        "http://127.0.0.1:99999": "no Ray cluster answers",
        "http://me:hunter2@127.0.0.1:9": "no Ray cluster answers at http://127.0.0.1:9",
        "http://127.0.0.1:9/\x1b[2J": "no Ray cluster answers",
        "file:///etc/passwd": "is not a dashboard's address",
    }.items():
        yield Case(
            f"jobs list --address {address!r}",
            lambda a=address: ("jobs", "list", "--address", a),
            says,
            (1, 2),
            real=address.endswith(":9"),
        )
    here = ("--address", "http://127.0.0.1:9")
    for name, ask, says in (
        ("a relative run folder", ("train", "run.yaml"), "run_folder=new is relative"),
        ("no config", ("train",), "submit train needs a config"),
        ("relative shards", ("evaluate", "data", "--model", "models:/m/1"), "SHARDS=data is relative"),
        ("a secret", ("evaluate", "http://me:hunter2@h/d", "--model", "models:/m/1"), "holds a secret"),
        ("an unknown option", ("pack", "/x", "--dataset", "folder", "--out", "/y", "--nonsense"), "--nonsense"),
        ("an unknown verb", ("predict",), "predict"),
        ("an include that is not there", ("pack", "/x", "--dataset", "folder", "--out", "/y", "--include", "none"), "none|no Ray cluster"),
    ):
        yield Case(f"submit: {name}", lambda ask=ask: ("submit", *ask, *here), says, (1, 2))
    for action in ("logs", "stop", "follow"):
        yield Case(f"jobs {action} of nothing", lambda action=action: ("jobs", action, *here), f"jobs {action} needs a job's id", 2)


def _left() -> Ask:
    Path("mlflow.db").unlink()
    return ("models",)


CASES = [*_addresses(), *_registries(), *_clusters(), Case("models of a new folder", _left, "model", 0)]
