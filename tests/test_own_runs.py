"""Whole runs of a learner and a network that are a user's own, in files beside the config, from the command line to the prediction."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from test_cli import call

from distmeta.training.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("ray")

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
    """The command line in an empty folder; gives what --json prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def run(*arguments: str) -> Any:
        code, out, err = call(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return json.loads(out.splitlines()[-1]) if "--json" in arguments else out

    return run


def write_config(packed: Path, folder: Path, **sections: Any) -> None:
    common = {
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"queries": 3, "episodes": 6, "val_episodes": 6}},
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 4},
        "train": {"workers": 2, "cpus_per_worker": 0.5, "checkpoint_every": 2, "validate_every": 2, "device": "cpu"},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(common | sections))


def test_a_learner_and_a_metric_in_files_beside_the_config_train_sweep_register_and_predict(
    main: Main, address: str, packed: Path, tmp_path: Path
) -> None:
    blocks = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "(distmeta.LEARNERS" in code or "(BothEnds" in code]
    (tmp_path / "both_ends.py").write_text("\n".join(blocks))
    (metric,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class LogLoss" in code]
    (tmp_path / "log_loss.py").write_text(metric)
    learner = {"name": "both_ends.Watched", "before": 0.3, "inner_lr": 0.1, "inner_steps": 1}
    space = {"space": {"learner.before": {"choice": [0.2, 0.8]}}, "trials": 2, "scheduler": "none", "promote": "none"}
    write_config(packed, tmp_path, model={"filters": 4}, learner=learner, sweep=space)
    uri = ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]

    named = ["--set", "data.eval.metric=log_loss.LogLoss"]
    result = main("train", "own.yaml", *named, "--address", address, "--json")
    assert result["test"]["measurement"]["name"] == "log loss"
    run_folder = RunFolder(result["run_folder"])
    records = list(run_folder.metrics.read())
    # The mean of a convex function is no less than that of the mean.
    assert all(record["learner/perplexity"] >= math.exp(record["meta_loss"]) - 1e-6 for record in records)
    sent = MlflowClient(uri[1]).get_metric_history(result["run_id"], "learner/perplexity")
    assert [point.value for point in sent] == [record["learner/perplexity"] for record in records]
    assert "perplexity" in (Path(result["run_folder"]) / "report.html").read_text()
    assert run_folder.best.read_description()["learner"]["before"] == 0.3

    swept = main("sweep", "own.yaml", "--set", "run_folder=runs/sweep", *named, "--address", address, "--json")
    assert len(swept["trials"]) == 2
    main("inspect", str(packed), "--export", "episode", "--way", "3")
    asked = ["--model", result["model"], "--support", "episode/support", "--query", "episode/query", *uri, "--json"]
    assert len(main("predict", *asked, "--learner", "both_ends.Watched")) == 9


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
