"""A user's own code is kept with the run that began with it, and a run goes on with no other; weights fit the class that reads them."""

import importlib
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmeta.assembly.code import check_code, keep_code, libraries, own_files
from distmeta.assembly.origins import fetch_models
from distmeta.assembly.run import Run
from distmeta.config import Config, validate
from distmeta.errors import ConfigError
from distmeta.inference.model import build
from distmeta.scale.run import check_run_folder
from distmeta.training.sealed import SealedFolder

NET = '''"""A network."""

from own_layers import Scale
from torch import nn


class Net(nn.Module):
    """A hidden layer and a head."""

    def __init__(self, outputs, width=6):
        super().__init__()
        self.hidden = nn.Linear(256, width)  # of 16 x 16 pixels
        self.scale = Scale()
        self.head = nn.Linear(width, outputs)

    def forward(self, images):
        return self.head(self.scale(self.hidden(images.flatten(1)).tanh()))
'''
LAYERS = """import numpy
from torch import nn

FACTOR = 2.0


class Scale(nn.Module):
    def forward(self, hidden):
        return FACTOR * hidden
"""
WIDTH = "width=int(Path(__file__).with_name('width.txt').read_text())"
SAME = {
    "comments": ("  # of 16 x 16 pixels", "  # of an image"),
    "docstrings": ('"""A hidden layer and a head."""', '"""Two layers."""'),
    "a docstring less": ('    """A hidden layer and a head."""\n', ""),
    "layout": ("(self, outputs, width=6)", "(\n        self, outputs, width=6\n    )"),
}
OTHER = {
    "a value": ("width=6", "width=7"),
    "an activation": ("tanh()", "relu()"),
    "a helper": ("FACTOR = 2.0", "FACTOR = 3.0"),
    "a renamed layer": ("self.head", "self.top"),
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's two modules, which a new process would find."""
    (tmp_path / "own_net.py").write_text(NET)
    (tmp_path / "own_layers.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def edit(own: Path, change: tuple[str, str]) -> None:
    """Change a file as an editor does, and forget what was imported, as a new process has.

    Python takes a compiled file for current if the source has its size and, to the second, its time.
    """
    for name in ("own_net", "own_layers"):
        file = own / f"{name}.py"
        file.write_text(file.read_text().replace(*change))
        shutil.rmtree(own / "__pycache__", ignore_errors=True)
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def config(packed: Path, own: Path, **model: object) -> Config:
    content = {
        "run_folder": str(own / "run"),
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"queries": 3, "episodes": 6, "val_episodes": 6}},
        "model": {"name": "own_net.Net"} | model,
        "learner": {"name": "maml", "inner_lr": 0.1, "inner_steps": 1},
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 2},
    }
    return validate(content, "test")


def begun(packed: Path, own: Path) -> Run:
    """A run that has sealed what it begins with."""
    this = Run.of(config(packed, own))
    fetch_models(this, "")
    this.write_description()
    return this


@pytest.mark.parametrize("change", SAME)
def test_what_python_does_not_read_may_change(change: str, packed: Path, own: Path) -> None:
    before = begun(packed, own).learner.initial_params()
    edit(own, SAME[change])
    assert SAME[change][1] in (own / "own_net.py").read_text()
    after = Run.of(config(packed, own)).start()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("change", OTHER)
def test_a_run_does_not_go_on_with_other_code_and_the_remedy_works(change: str, packed: Path, own: Path) -> None:
    this = begun(packed, own)
    edit(own, OTHER[change])
    (file,) = [file for file in own.glob("own_*.py") if OTHER[change][1] in file.read_text()]
    with pytest.raises(ConfigError) as refused:
        Run.of(config(packed, own)).check()
    with pytest.raises(ConfigError, match="has changed since the run in"):  # also of a folder without weights, as a sweep's
        check_run_folder(Run.of(config(packed, own)), resume=True)
    kept = this.folder.code.path / file.name
    assert refused.value.message.startswith(f"{file} has changed since the run in {this.folder} began (SHA-256 ")
    assert refused.value.remedy == f"restore it from {kept}, or give --set run_folder=NEW to train with the changed code"
    assert this.folder.code.is_whole
    shutil.copy(kept, file)
    edit(own, ("", ""))
    Run.of(config(packed, own)).check()


def test_a_package_that_imports_relatively_and_reads_a_file_beside_itself_is_built_anywhere(packed: Path, own: Path) -> None:
    package = own / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .net import Net\n")
    (package / "net.py").write_text(f"from pathlib import Path\n{NET.replace('from own_layers', 'from .layers')}".replace("width=6", WIDTH))
    (package / "layers.py").write_text(LAYERS)
    (package / "width.txt").write_text("5")
    this = Run.of(config(packed, own, name="own_package.Net"))
    this.check()
    assert this.learner.model.hidden.weight.shape == (5, 256)
    assert set(own_files({"model.name": "own_package.Net"})) == {"own_package", "own_package.layers", "own_package.net"}


def test_a_file_of_the_working_folder_is_not_found_by_workers(packed: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "width.txt").write_text("5")
    monkeypatch.chdir(own)
    edit(own, ("def __init__(self, outputs, width=6):", "def __init__(self, outputs):\n        width = int(open('width.txt').read())"))
    with pytest.raises(
        ConfigError, match=r"FileNotFoundError.*, in another working folder than this one, as workers have\nfind its files by"
    ):
        Run.of(config(packed, own)).check()


def test_a_class_of_the_running_program_is_refused(packed: Path, own: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.name='__main__.Net' is in the program that runs now.*\nmove the class to a module"):
        Run.of(config(packed, own, name="__main__.Net")).check()


def test_the_files_of_a_run_are_the_users_own(own: Path) -> None:
    files = own_files({"model.name": "own_net.Net", "learner.name": "torch.nn.Linear"})
    assert files == {"own_layers": own / "own_layers.py", "own_net": own / "own_net.py"}
    assert own_files({"model.name": "distmeta.models.conv4.Conv4"}) == {}


def test_the_packages_that_a_users_files_use_are_named_even_if_only_by_a_function(own: Path) -> None:
    assert libraries({"model.name": "own_net.Net"}) == {"numpy": version("numpy")}


def test_a_run_does_not_go_on_with_another_version_of_a_library(packed: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(packed, own)
    monkeypatch.setattr("distmeta.assembly.code.version", lambda name: "0.1")
    with pytest.raises(ConfigError, match=rf"began with numpy {version('numpy')}; 0.1 is installed now\npip install numpy=="):
        Run.of(config(packed, own)).check()


@given(st.text(alphabet="ab01\n #:=()", max_size=20))
def test_text_that_python_cannot_read_is_compared_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("code")
    module = sys.modules.setdefault("own_text", importlib.util.module_from_spec(importlib.machinery.ModuleSpec("own_text", None)))
    file = folder / "own_text.py"
    module.__file__, module.Net = str(file), object()  # type: ignore[attr-defined]
    file.write_text(text)
    keep_code({"model.name": "own_text.Net"}, SealedFolder(folder / "kept"))
    check_code({"model.name": "own_text.Net"}, SealedFolder(folder / "kept"), "run")
    file.write_text(f"{text}\nchanged = (1")
    with pytest.raises(ConfigError, match="has changed since the run in run began"):
        check_code({"model.name": "own_text.Net"}, SealedFolder(folder / "kept"), "run")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 8}, r"hidden.weight is \(6, 256\) instead of \(8, 256\)"),
        ({"name": "conv4", "filters": 4}, r"blocks.0.conv.weight \(4, 1, 3, 3\) is missing"),
    ],
)
def test_weights_of_another_network_are_named(model: dict[str, object], message: str, packed: Path, own: Path) -> None:
    begun(packed, own)
    with pytest.raises(ConfigError, match=rf"holds a run of another network or learner: {message}\ngive the config"):
        Run.of(config(packed, own, **model)).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("width=6", "width=7"), r"hidden.weight is \(6, 256\) instead of \(7, 256\)"),
        (("self.hidden", "self.body"), r"body.weight \(6, 256\) is missing"),
        (
            ("self.scale = Scale()", "self.scale = Scale(); self.shift = nn.Parameter(self.hidden.bias.detach().clone())"),
            r"shift \(6,\) is missing",
        ),
    ],
)
def test_a_published_model_is_not_read_by_a_class_that_has_changed(change: tuple[str, str], message: str, packed: Path, own: Path) -> None:
    this = begun(packed, own)
    description, weights = this.description, this.folder.initial.load_params()
    edit(own, change)
    with pytest.raises(ConfigError, match=rf"the weights are not those of a Net as it is now: {message}\nif that is your own class, use"):
        build(description, weights, ["own_net.Net"])
