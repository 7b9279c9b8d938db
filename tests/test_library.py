"""What `import distmeta` gives: the example of docs/python.md, run as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import options, patterns
from registered import DESCRIPTION, PROTONET, finished_run

import distmeta
from distmeta.data.pack import pack
from distmeta.errors import ConfigError, DataError
from distmeta.registry import versions

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
TWO = """
import distmeta
import torch


class Two(distmeta.Metric):
    name = "two"
    axis = None

    def columns(self, learner):
        return ["only"]

    def score(self, learner, meta_params, episode):
        return torch.tensor([2.0])
"""
FIVE_WAY = {"model": DESCRIPTION["model"] | {"outputs": 5}, "task": {"way": 5, "shot": 1, "queries": 5}}


def examples(language: str = "python") -> list[str]:
    """Those of the page on Python in a language; none is that of the command line."""
    section = PAGE.read_text()
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE) if name == language]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Path:
    """A working folder with what the example names: data/glyphs, a registered glyphs-5way-1shot."""
    home = tmp_path_factory.mktemp("library")
    (home / "data").mkdir()
    (home / "data" / "glyphs").symlink_to(packed)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    versions.publish(uri, finished_run(home / "run", uri, description=DESCRIPTION | FIVE_WAY), "glyphs-5way-1shot")
    versions.publish(uri, finished_run(home / "other", uri, description=PROTONET), "protonet")
    return home


def test_the_pages_example_runs(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(home)
    exec(compile(examples()[0].replace(", …]", "]"), str(PAGE), "exec"), {"__name__": "page"})
    losses = [float(found) for found in re.findall(r"meta-loss: tensor\(([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert all(np.isfinite(losses))
    state = torch.load("adapted.pt", weights_only=True)
    assert any(name.endswith("running_mean") for name in state)


def test_evaluate_is_the_runs_own_evaluation(home: Path) -> None:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    model = distmeta.load("models:/protonet@champion", uri)
    found = distmeta.evaluate(model, home / "data" / "glyphs", way=6, shot=2, queries=3, episodes=10, seed=4)
    asked = {key: found[key] for key in ("way", "shot", "queries", "episodes", "seed", "norm", "inner_steps")}
    assert asked == {"way": 6, "shot": 2, "queries": 3, "episodes": 10, "seed": 4, "norm": "batch", "inner_steps": 0}
    # By hand, from the images: each query by itself.
    stream = distmeta.EpisodeStream(distmeta.Dataset(str(home / "data" / "glyphs")), "test", distmeta.Task(6, 2, 3), 4)
    stream.preprocessing = model.preprocessing
    right = 0
    for batch in stream.evaluation(range(10)):
        for one in batch.each():
            said = model.adapt(one.support_images[0], one.support_labels[0]).predict(one.query_images[0]).argmax(1)
            right += int((said == one.query_labels[0]).sum())
    assert found["accuracy_inductive"] == pytest.approx(right / 180)


def test_evaluate_refuses_what_the_model_cannot_do(home: Path, tmp_path: Path) -> None:
    model = distmeta.load("models:/glyphs-5way-1shot@champion", f"sqlite:///{home / 'mlflow.db'}")
    with pytest.raises(DataError, match="has 3 classes but the model was trained for 5-way"):
        distmeta.evaluate(model, home / "data" / "glyphs", way=3)
    with pytest.raises(ConfigError, match=r"evaluate.shot \+ evaluate.queries = 101"):
        distmeta.evaluate(model, home / "data" / "glyphs", queries=100)
    pack(patterns(), tmp_path / "cropped", options(resize="center-crop"))
    with pytest.raises(ConfigError, match="holds images resized by center-crop; the model reads squash"):
        distmeta.evaluate(model, tmp_path / "cropped", queries=3)


def test_a_model_with_a_metric_of_its_owners_is_evaluated_by_what_the_user_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distmeta.load("models:/protonet@champion", f"sqlite:///{home / 'mlflow.db'}")
    model = model._replace(description=model.description | {"metric": "this.Loss"})
    shards, few = home / "data" / "glyphs", {"way": 3, "queries": 3, "episodes": 2}
    with pytest.raises(ConfigError, match=r"validated by the metric 'this.Loss', .*\n.*--metric this.Loss .* else give --metric accuracy"):
        distmeta.evaluate(model, shards, **few)
    assert distmeta.evaluate(model, shards, **few, metric="accuracy")["measurement"]["name"] == "accuracy"
    (tmp_path / "constant_two.py").write_text(TWO)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert distmeta.evaluate(model, shards, **few, metric="constant_two.Two")["measurement"]["values"] == [2.0]
    with pytest.raises(ConfigError, match=r"^--metric=distmeta\.config\.Config is \w+, not a Metric\n"):
        distmeta.evaluate(model, shards, **few, metric="distmeta.config.Config")


def test_evaluate_shows_coloured_images_to_a_model_of_grey_ones_in_grey(home: Path, tmp_path: Path) -> None:
    model = distmeta.load("models:/glyphs-5way-1shot@champion", f"sqlite:///{home / 'mlflow.db'}")
    pack(patterns(), tmp_path / "coloured", options(channels=3))
    coloured, grey = (distmeta.evaluate(model, place, queries=3, episodes=5) for place in (tmp_path / "coloured", home / "data" / "glyphs"))
    assert coloured == grey


def test_import_is_fast_and_every_name_is_there() -> None:
    program = (
        "import sys, json, distmeta; print(json.dumps([m for m in ('torch', 'mlflow', 'ray', 'numpy', 'pandas') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PAGE.parent.parent, check=True)
    assert json.loads(done.stdout) == []
    for name in distmeta.__all__:
        assert getattr(distmeta, name) is not None
    assert set(distmeta.__all__) <= set(dir(distmeta))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = distmeta.nonsense


IN_EVERY_ORDER = """
import itertools, os, sys
import mlflow, ray, torch  # once, for each takes seconds; what follows has imported nothing of distmeta
assert "distmeta" not in sys.modules

def twice(names):
    import distmeta
    calls = {"train": ("absent.yaml",), "load": ("not an address", "sqlite:///absent.db"), "evaluate": (None, "absent")}
    for name in [*names, *names]:
        try:
            getattr(distmeta, name)(*calls[name])
        except (distmeta.errors.ConfigError, AttributeError) as error:
            expected = "'NoneType' object has no attribute 'description'" if name == "evaluate" else ""
            assert isinstance(error, distmeta.errors.ConfigError) or str(error) == expected, (names, name, error)

for names in itertools.permutations(["train", "load", "evaluate"]):
    child = os.fork()
    if child == 0:
        try:
            twice(names)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, names
print("six orders")
"""


def test_train_load_and_evaluate_are_functions_in_every_order_of_their_first_use(tmp_path: Path) -> None:
    """A module of a function's name, imported on the way, would take its place in the package."""
    environment = os.environ | {"PYTHONPATH": str(PAGE.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", IN_EVERY_ORDER], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("six orders\n")
