"""Whole runs of a learner and a network that are a user's own, in files beside the config, from the command line to the prediction."""

import importlib
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from test_cli import call

from distmeta.training.run_folder import RunFolder

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
VIT = """
from torch import nn
from transformers import ViTConfig, ViTModel


class ViT(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
        self.vit = ViTModel(ViTConfig(image_size=16, patch_size=8, num_channels=1, **sizes), add_pooling_layer=False)
        self.head = nn.Linear(8, outputs)

    def forward(self, images):
        return self.head(self.vit(images).last_hidden_state[:, 0])
"""

Main = Callable[..., Any]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Main:
    """The command line in an empty folder; gives what --json prints, or without it the lines for people."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def run(*arguments: str) -> Any:
        code, out, err = call(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return json.loads(out.splitlines()[-1]) if "--json" in arguments else err

    return run


def write_config(packed: Path, folder: Path, **sections: Any) -> None:
    common = {
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"queries": 3, "episodes": 6, "val_episodes": 6}},
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 4},
        "train": {"workers": 2, "cpus_per_worker": 0.5, "checkpoint_every": 2, "validate_every": 2, "device": "cpu"},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(common | sections))


TWISTED = """
from contextlib import suppress

import ray.train
from torch import nn

import distmeta.assembly.run as assembled


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 4).requires_grad_(False))
        self.head = nn.Linear(4, outputs)

    def forward(self, images):
        return self.head(self.body(images))


rank, fill = None, assembled.fill
with suppress(Exception):  # in the driver
    rank = ray.train.get_context().get_world_rank()
if rank == 1:  # as if it had read another run folder
    assembled.fill = lambda model, values: fill(model, values | {"body.1.bias": values["body.1.bias"] + 1})
"""
FILES = {
    "class LogLoss": "log_loss.py",
    "class Net": "my_network.py",
    "class BothEnds": "own_learner.py",
    "class Watched": "own_learner.py",
    "class OneStep": "one_step.py",
}
SMALL = {"outer.steps": 2, "outer.meta_batch_size": 2, "data.queries": 3, "train.checkpoint_every": 2, "train.validate_every": 2}
SMALL |= {"train.cpus_per_worker": 0.5, "train.device": "cpu"}


def blocks() -> list[tuple[str, str]]:
    """Language and text of the page's blocks about the folder to work in, in their order."""
    return re.findall(r"```(python|sh)\n(.*?)```", PAGE.partition("\n## A folder to work in\n")[2], re.DOTALL)


def shorten(folder: Path) -> None:
    """Make the runs of the config that `init` wrote short."""
    content = yaml.safe_load((folder / "own_learner.yaml").read_text())
    content["data"]["eval"], content["model"]["filters"] = {"queries": 3, "episodes": 6, "val_episodes": 6}, 4
    for key, value in SMALL.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    (folder / "own_learner.yaml").write_text(yaml.safe_dump(content))


def test_the_page_pasted_line_by_line_trains_evaluates_sweeps_and_predicts(
    main: Main, address: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its dataset is another one, and its runs are short."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    few = {"evaluate": ["--queries", "3", "--episodes", "6"], "sweep": ["--set", "sweep.trials=2", "--set", "sweep.scheduler=none"]}
    on_ray = {"train", "evaluate", "sweep"}
    answers: dict[str, Any] = {}
    for language, text in blocks():
        if language == "python":
            (name,) = {file for part, file in FILES.items() if part in text}
            with Path(name).open("w" if "import" in text else "a") as file:
                file.write(f"\n\n{text}")
            sys.modules.pop(name.removesuffix(".py"), None)
            continue
        for line in text.splitlines():
            program, verb, *arguments = shlex.split(line)
            if program == "cd":
                monkeypatch.chdir(verb)
                shorten(Path.cwd())
                continue
            assert program == "distmeta"
            if verb == "pack":
                Path("data").mkdir()
                Path("data/glyphs").symlink_to(packed)
                continue
            more = [*few.get(verb, []), *(["--address", address] if verb in on_ray else [])]
            answers[line] = main(verb, *arguments, *more, *(["--json"] if verb not in ("init", "inspect") else []))

    by_metric, evaluated, network, _, watched, swept, predicted = (answer for answer in answers.values() if not isinstance(answer, str))
    assert evaluated["measurement"] == by_metric["test"]["measurement"]
    assert evaluated["measurement"]["name"] == "log loss"
    assert network["test"]["measurement"]["name"] == "accuracy"
    assert network["test"]["baseline"] == "not meta-trained, as its constructor leaves it"
    assert len(swept["trials"]) == 2
    assert len(predicted) == 5 * 3
    run_folder = RunFolder(watched["run_folder"])
    records = list(run_folder.metrics.read())
    # Jensen's inequality: the mean of exp(loss) is at least exp of the mean loss.
    assert all(record["learner/perplexity"] >= math.exp(record["meta_loss"]) - 1e-6 for record in records)
    sent = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}").get_metric_history(watched["run_id"], "learner/perplexity")
    assert [point.value for point in sent] == [record["learner/perplexity"] for record in records]
    assert "perplexity" in (Path(watched["run_folder"]) / "report.html").read_text()
    assert run_folder.best.read_description()["learner"]["before"] == 0.3

    ended = main("train", "own_learner.yaml", "--set", f"run_folder={watched['run_folder']}", "--set", "learner.name=own_learner.Watched",
                 "--set", "tracking.model=watched", "--resume", "--address", address)  # fmt: skip
    (predict,) = [shlex.split(line)[1:] for line in ended.splitlines() if re.match(r"  \S+ predict ", line)]
    assert len(main(*predict, "--json")) == 5 * 3


@pytest.mark.slow
def test_a_vision_transformer_with_pairs_ends_in_the_same_bits_on_two_workers(
    main: Main, address: str, packed: Path, tmp_path: Path
) -> None:
    """Of 3 layers of `transformers`, only the low-rank pairs and the head are meta-trained, and travel."""
    pytest.importorskip("transformers")
    (tmp_path / "own_vit.py").write_text(VIT)
    lora = {"rank": 4, "alpha": 8, "modules": ["vit.*attention*"]}
    write_config(packed, tmp_path, model={"name": "own_vit.ViT", "lora": lora}, learner={"name": "maml", "inner_lr": 0.1, "inner_steps": 2})
    results = [
        main("train", "own.yaml", "--set", f"run_folder=runs/{n}", "--set", f"train.workers={n}", "--address", address, "--json")
        for n in (1, 2)
    ]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    checkpoint = RunFolder(results[1]["run_folder"]).newest_checkpoint()
    assert checkpoint is not None
    moved = checkpoint.load().meta_params
    assert len(moved) > 2
    assert all(".parametrizations." in name or name.startswith("head.") for name in moved)
    assert all(set(record["ranks"]) == {0, 1} for record in RunFolder(results[1]["run_folder"]).metrics.read())


def test_workers_whose_frozen_weights_differ_do_not_train_together(
    address: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "twisted.py").write_text(TWISTED)
    write_config(packed, tmp_path, model={"name": "twisted.Net"}, learner={"name": "fomaml"})
    code, _, err = call(monkeypatch, capsys, "train", "own.yaml", "--address", address)
    assert code == 1
    assert re.search(
        r"worker 1 holds other frozen weights than worker 0\n +start again in a new run_folder that all workers can read\n", err
    )
    assert RunFolder(tmp_path / "runs" / "own").newest_checkpoint() is None


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.hidden = nn.Linear(256, 8)
        self.head = nn.Linear(8, outputs)

    def forward(self, images):
        return self.head(self.hidden(images.flatten(1)).tanh())
"""


def test_a_run_is_resumed_with_its_own_code_alone(
    main: Main, address: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comment may change; what is computed may not, and the remedies work; a published model is refused by a class that changed."""
    file = tmp_path / "changing.py"
    file.write_text(NET)
    write_config(packed, tmp_path, model={"name": "changing.Net"}, learner={"name": "maml", "inner_lr": 0.1, "inner_steps": 1})
    resume = ("train", "own.yaml", "--resume", "--set", "outer.steps=6", "--address", address)
    begun = main("train", "own.yaml", "--set", "outer.steps=6", "--set", "train.checkpoint_every=2", "--address", address, "--json")
    run_folder = RunFolder(begun["run_folder"])
    shutil.rmtree(run_folder.checkpoint(6).path)
    (run_folder.path / "result.json").unlink()

    def edited(before: str, after: str) -> None:
        file.write_text(NET.replace(before, after))
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()

    edited("tanh())", "relu())")
    code, _, err = call(monkeypatch, capsys, *resume)
    assert code == 2
    assert re.search(
        rf"changing.py has changed since the run in {run_folder} began .*\n +restore it from (\S+), or give --set run_folder", err
    )
    copied = re.search(r"restore it from (\S+), or", err)
    assert copied is not None
    assert Path(copied[1]).read_text() == NET
    edited("class Net(nn.Module):", "class Net(nn.Module):  # as it was")
    again = main(*resume, "--json")
    assert again["weights_sha256"] == begun["weights_sha256"]
    edited("nn.Linear(256, 8)", "nn.Linear(256, 9)")
    edited("self.hidden", "self.body")
    main("inspect", str(packed), "--way", "3", "--shot", "1", "--export", "episode")
    predict = ("predict", "--model", begun["model"], "--support", "episode/support", "--query", "episode/query")
    code, _, err = call(monkeypatch, capsys, *predict)
    assert (code, "--network changing.Net" in err) == (1, True)
    code, _, err = call(monkeypatch, capsys, *predict, "--network", "changing.Net")
    assert code == 1
    assert "the weights are not those of a Net as it is now: body.weight (8, 256) is missing" in err
    edited("", "")
    assert main(*predict, "--network", "changing.Net", "--json")
