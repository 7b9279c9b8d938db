"""Remedies work as they are printed: what they name is there, and whoever follows them gets on."""

import ast
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import patterns
from pictures import png_16_bit, tiff
from PIL import Image

import distmeta
from distmeta import cli, errors
from distmeta.config import known_keys, load_config, validate
from distmeta.data.datasets import PackRequest, open_source, pack_options
from distmeta.data.pack import pack
from distmeta.errors import ConfigError, DistmetaError
from distmeta.training.checkpoint import CheckpointFolder
from distmeta.training.run_folder import RunFolder

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DistmetaError)}
SECTIONS = {"model", "learner", "outer", "train", "data", "tracking", "sweep"}
# Sections whose further keys are the arguments of a network, a learner or an environment.
OPEN = ("model.", "learner.", "data.settings.")
OTHERS = {"--debug", "--experiment-id", "--artifacts-destination"}  # of every verb, and of MLflow's commands


def remedies() -> Iterator[tuple[str, str]]:
    """(where, text) of every remedy that is written in the source; what is filled in is left out."""
    for path in sorted(Path(distmeta.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and len(node.args) == 2:
                for part in ast.walk(node.args[1]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"{path.name}:{node.lineno}", part.value


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


def test_every_remedy_names_what_there_is() -> None:
    """Options, verbs and config keys in a remedy exist; whoever renames one hears of it here."""
    verbs = commands()
    options = {option for command in verbs.values() for parameter in command.params for option in parameter.opts} | {"--help"} | OTHERS
    keys = set(known_keys())
    count = 0
    for where, text in remedies():
        count += 1
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text):
            assert option in options, f"{where}: {text!r} names {option}"
        for verb in re.findall(r"\bdistmeta ([a-z]+) ?(?:[A-Z]|--|\{|$)", text):
            assert verb in verbs, f"{where}: {text!r} names the verb {verb}"
        for key in re.findall(rf"\b(?:{'|'.join(SECTIONS)})\.(?!csv)[a-z_.]*[a-z_]", text):
            assert key in keys or key.startswith(OPEN), f"{where}: {text!r} names the key {key}"
    assert count > 250, "remedies are no longer found"


def folder_of(tmp_path: Path, content: Callable[[bytes], bytes] = lambda image: image) -> Path:
    for number, image in enumerate(patterns(images_per_class=4, classes=(6, 3, 3))):
        place = tmp_path / "pictures" / image.split / image.class_name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.tif").write_bytes(content(image.image))
    return tmp_path / "pictures"


def packed(source: Path, out: Path, **options: Any) -> None:
    request = PackRequest("folder", source, **{"images_per_class": 2, "image_size": 16} | options)
    opened = open_source(request, lambda text: None)
    pack(opened.images, out, pack_options(request, opened), 1, opened.total)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(DistmetaError) as found:
        act()
    return found.value.remedy


def pixels(image: bytes) -> "np.ndarray[Any, Any]":
    import io

    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.mark.parametrize(
    ("content", "suggested"),
    [
        (lambda image: png_16_bit(pixels(image).astype(np.uint16)), "0,255"),
        (lambda image: tiff((pixels(image) / 255).astype(np.float32)), "0,1"),
    ],
    ids=["8 bits in 16", "floats"],
)
def test_pack_suggests_a_range_that_it_takes(content: Callable[[bytes], bytes], suggested: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path, content)
    with pytest.raises(DistmetaError, match=r"--value-range (LOW,HIGH|0,255)"):
        packed(source, tmp_path / "out", max_bad_fraction=0.0)
    packed(source, tmp_path / "new", value_range=suggested)


def test_a_range_that_does_not_fit_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    source = folder_of(tmp_path, lambda image: tiff(pixels(image).astype(np.float32)))
    for wrong in ("0,65535", "1000,2000"):
        remedy = refused(lambda wrong=wrong: packed(source, tmp_path / "out", value_range=wrong, allow_copies=True))
        assert "--value-range LOW,HIGH" in remedy
    packed(source, tmp_path / "out", value_range="0,255")


def test_copies_and_bad_images_are_taken_by_the_option_that_is_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    (source / "val" / "val-0" / "copy.tif").write_bytes(next((source / "train" / "train-0").iterdir()).read_bytes())
    assert "--allow-copies" in refused(lambda: packed(source, tmp_path / "out"))
    packed(source, tmp_path / "out", allow_copies=True)
    (source / "train" / "train-0" / "bad.tif").write_bytes(b"bad")
    assert "--max-bad-fraction" in refused(lambda: packed(source, tmp_path / "bad", allow_copies=True, max_bad_fraction=0.0))
    packed(source, tmp_path / "bad", allow_copies=True, max_bad_fraction=0.5)


def test_a_task_that_a_source_cannot_serve_is_served_when_lowered(tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    assert "lower --way" in refused(lambda: packed(source, tmp_path / "out", way=5, shot=1, queries=1))
    assert "lower --shot or --queries" in refused(lambda: packed(source, tmp_path / "out", way=3, shot=5, queries=5))
    packed(source, tmp_path / "out", way=3, shot=1, queries=1)


@pytest.mark.parametrize("typed", ["outer.ls=1", "data.shard=x", "learner_lr=1", "train.worker=2", "steps=5", "model.nam=x", "sede=1"])
def test_a_key_that_is_suggested_for_an_unknown_one_is_valid(typed: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {shards: x}\n")
    try:
        load_config(tmp_path / "c.yaml", [typed])
    except ConfigError as error:
        suggested = error.remedy.removeprefix("nearest valid keys: ").split(", ")
        assert suggested
        assert set(suggested) <= set(known_keys())
    else:
        assert typed.startswith("model."), "the arguments of a network are checked when it is built"


def test_what_a_remedy_writes_out_is_taken(tmp_path: Path) -> None:
    """Remedies that give a whole --set or option: it is valid as printed."""
    (tmp_path / "c.yaml").write_text("data: {shards: x}\n")
    settings = {match for _, text in remedies() for match in re.findall(r"(?:--set |\bset )([a-z_.]+=[A-Za-z0-9./*-]+)", text)} - {
        "dotted.key=value"
    }
    assert len(settings) > 8
    for setting in sorted(settings):
        key, _, value = setting.partition("=")
        if value in ("NEW", "NAME"):
            value = "something"
        load_config(tmp_path / "c.yaml", [f"{key}={value}"])


def test_a_damaged_checkpoint_that_is_removed_leaves_the_one_before(tmp_path: Path) -> None:
    import torch

    from distmeta.training.checkpoint import Checkpoint, save

    run = RunFolder(tmp_path / "run")
    for step in (10, 20):
        save(Checkpoint(step, {"w": torch.zeros(2)}, {}, {"best_step": 0}), run.checkpoint(step).path, {})
    (run.checkpoint(20).path / "progress.json").write_text("{}")
    assert run.newest_checkpoint() is not None
    remedy = refused(run.checkpoint(20).load)
    assert remedy == "remove it; --resume then uses the checkpoint before it"
    shutil.rmtree(run.checkpoint(20).path)
    newest = run.newest_checkpoint()
    assert isinstance(newest, CheckpointFolder)
    assert newest.load().step == 10


def test_a_run_folder_that_names_another_server_is_synced_as_the_remedy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import registered
    from registered import finished_run

    from distmeta.assembly.sync import sync
    from distmeta.registry import tracking

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = finished_run(tmp_path / "run", uri)
    run.write_description(registered.config(tmp_path / "run", uri), {"dataset": "x", "fingerprint": "y"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tracking.recorded_uri(run) == uri
    elsewhere = run.read_mlflow() | {"uri": "http://127.0.0.1:9"}
    run.write_mlflow(elsewhere)
    assert tracking.recorded_uri(run) == "http://127.0.0.1:9", "nothing of this machine would be shown"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    with pytest.raises(DistmetaError, match=r"its MLflow server, which would be shown MLFLOW_TRACKING_TOKEN") as found:
        sync(run)
    _, command = found.value.remedy.split(": ", 1)
    verb = shlex.split(command)
    assert verb[:4] == ["distmeta", "sync", str(run), "--tracking-uri"]
    run.write_mlflow(elsewhere | {"uri": "sqlite:////nowhere/else.db"})
    assert f"--tracking-uri {uri}".replace(uri, "sqlite:////nowhere/else.db") in refused(lambda: sync(run))


def test_workers_without_a_task_are_as_many_as_the_remedy_says() -> None:
    content = {"data": {"functions": "sinusoid", "way": 1, "shot": 5, "queries": 5}, "model": {"name": "mlp", "norm": "none"}}
    content |= {"run_folder": "x", "outer": {"meta_batch_size": 4}}
    from distmeta.assembly.run import Run

    remedy = refused(Run.of(validate(content | {"train": {"workers": 64}}, "test")).check)
    (workers,) = re.findall(r"train.workers=(\d+)", remedy)
    Run.of(validate(content | {"train": {"workers": int(workers)}}, "test")).check()


def test_a_class_that_is_too_small_is_taken_out_and_the_same_command_packs(tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    for file in sorted((source / "train" / "train-0").iterdir())[2:]:
        file.unlink()
    remedy = refused(lambda: packed(source, tmp_path / "out", way=3, shot=1, queries=2))
    assert remedy == "lower --shot or --queries, or remove that class from the source"
    shutil.rmtree(source / "train" / "train-0")
    packed(source, tmp_path / "out", way=3, shot=1, queries=2)


def test_a_class_without_a_whole_image_is_mended_and_the_same_command_packs(tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    files = sorted((source / "train" / "train-0").iterdir())
    whole = [file.read_bytes() for file in files]
    for file in files:
        file.write_bytes(b"bad")
    assert refused(lambda: packed(source, tmp_path / "out", max_bad_fraction=1.0)) == "fix the source"
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content)
    packed(source, tmp_path / "out", max_bad_fraction=0.0)


WRONG: dict[str, dict[str, Any]] = {
    "one class": {"data.way": 1},
    "one class to be tested on": {"data.eval.way": 1},
    "a test of another width": {"data.eval.way": 4},
    "more classes than there are": {"data.way": 40, "data.eval.way": 40},
    "more images than there are": {"data.shot": 12},
    "more workers than tasks": {"train.workers": 64},
    "an update for policies": {"outer.update": "trpo"},
    "another update for policies": {"outer.update": "promp"},
    "images that a network halves too often": {"model.name": "vgg"},
    "a setting of another learner": {"learner.temperature": 2.0},
    "an argument of another network": {"model.filtres": 3},
    "a misspelled last layer": {"model.head": "haed"},
    "a learner that is misspelled": {"learner.name": "mamll"},
    "a network that is misspelled": {"model.name": "conv5"},
    "ranks that are too large": {"model.lora": {"rank": 500, "modules": ["blocks.0.conv"]}},
    "a pattern that matches nothing": {"outer.train": ["nothing.*"]},
    "parts of an image for a regression": {"data.shards": None, "data.functions": "sinusoid", "data.image_size": 8},
}


def changed(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    if value is None:
        content.pop(last, None)
    else:
        content[last] = value


def followed(content: dict[str, Any], message: str, remedy: str) -> None:
    """Do in a config what a remedy says: the first thing that it names."""
    key = r"((?:data|model|learner|outer|train)(?:\.[a-z_]+)+)"
    about = re.findall(key, message)
    if found := re.search(rf"(?:set|choose) {key}=([\w./-]+)", remedy) or re.search(rf"set {key} to (\d+)", remedy):
        changed(content, found[1], int(found[2]) if found[2].isdigit() else found[2])
    elif found := re.search(r"such as (\w+)", remedy) or re.search(r"(?:choose one of|similar names:) ([\w.]+)", remedy):
        changed(content, about[0], [found[1]] if "similar names" in remedy else found[1])
    elif found := re.search(rf"lower {key}", remedy):
        changed(content, found[1], 2)
    elif "set a smaller model.lora.rank" in remedy:
        changed(content, "model.lora.rank", 1)
    else:
        keys = re.findall(key, re.split(", or | out", remedy)[0]) or about[:1]
        assert remedy.startswith(("leave ", "remove ")) or "its arguments" in remedy, remedy
        for each in keys:
            changed(content, each, None)


@pytest.mark.parametrize("name", WRONG)
def test_a_config_whose_remedies_are_followed_is_taken(name: str, packed: Path, tmp_path: Path) -> None:
    from distmeta.assembly.run import Run

    content: dict[str, Any] = {
        "run_folder": str(tmp_path / "run"),
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"episodes": 2}},
        "model": {"name": "conv4", "filters": 4},
    }
    for key, value in WRONG[name].items():
        changed(content, key, value)
    for attempt in range(4):
        try:
            Run.of(validate(content, "test")).check()
        except DistmetaError as error:
            followed(content, error.message, error.remedy)
        else:
            assert attempt > 0, "nothing was wrong"
            return
    pytest.fail(f"its remedies lead nowhere: {content}")
