"""What `distmeta init` writes can be used as it is."""

import shlex
from pathlib import Path

import pytest

from distmeta.assembly.run import Run
from distmeta.cli import VERBS
from distmeta.config import load_config, origins
from distmeta.errors import ConfigError
from distmeta.templates import TEMPLATES, write

SHARDS = {"omniglot", "own-learner"}


@pytest.fixture(params=sorted(TEMPLATES))
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A template's name, and the folder it was written into, which is the working folder."""
    write(request.param, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    return request.param, tmp_path / "mine"


def test_a_template_describes_a_run_that_can_begin(written: tuple[str, Path], packed: Path) -> None:
    name, folder = written
    (path,) = folder.glob("*.yaml")
    if name == "photos":  # its dataset is the user's own
        assert load_config(path).outer.steps == 0
        return
    run = Run.of(load_config(path, [f"data.shards={packed}", "data.eval.queries=2"] if name in SHARDS else []))
    run.check()
    assert run.learner.initial_params()


def test_the_next_commands_name_verbs_and_files_that_exist(written: tuple[str, Path]) -> None:
    name, folder = written
    verbs = {verb.__name__ for verb in VERBS}
    for command in TEMPLATES[name]:
        program, verb, *arguments = shlex.split(command)
        assert program in ("distmeta", "pip", "cp")
        assert program != "distmeta" or verb in verbs
        assert [file for file in arguments if file.endswith(".yaml") and not (folder / file).exists()] == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "own_learner.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"own_learner.yaml exists already\nchoose another folder"):
        write("own-learner", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own_learner.yaml"]


def test_config_says_where_each_value_comes_from() -> None:
    path = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    overrides = ["outer.lr=0.002", "data.augment={flip: 0.5}"]
    sources = origins(load_config(path, overrides), path, overrides)
    expected = {"outer.lr": "--set", "data.augment.flip": "--set", "data.way": "quickstart.yaml", "train.max_failures": "default"}
    assert {key: sources[key] for key in expected} == expected
