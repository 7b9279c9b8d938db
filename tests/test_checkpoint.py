"""A checkpoint is everything or nothing; metrics name no step twice."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmeta.learners.params import trainable, weights_sha256
from distmeta.models import build_model, redraw
from distmeta.training import checkpoint as checkpoints
from distmeta.training.checkpoint import Checkpoint, CheckpointFolder
from distmeta.training.metrics_folder import MetricsFolder, MetricsWriter
from distmeta.training.outer import OuterUpdate, schedule
from distmeta.training.run_folder import RunFolder


def outer_update(optimizer: str = "adam") -> OuterUpdate:
    model = build_model("conv4", input_shape=(1, 16, 16), outputs=3, filters=4)
    return OuterUpdate(trainable(redraw(model, 0)), optimizer, schedule("cosine", 0.01, 20), momentum=0.9, clip_norm=1.0)


def gradient(step: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(step))


def write(run_folder: Path, step: int) -> CheckpointFolder:
    outer = outer_update()
    size = sum(value.numel() for value in outer.meta_params.values())
    for i in range(step):
        outer.update(gradient(i, size), i)
    folder = RunFolder(run_folder).checkpoint(step)
    checkpoints.save(Checkpoint(step, outer.meta_params, outer.state(), {"best_step": 0}), folder.path, checkpoints.machine(1))
    return folder


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    whole = outer_update(optimizer)
    size = sum(value.numel() for value in whole.meta_params.values())
    for step in range(10):
        if step == 4:
            checkpoints.save(Checkpoint(4, whole.meta_params, whole.state(), {}), tmp_path / "c", checkpoints.machine(1))
        whole.update(gradient(step, size), step)
    found = CheckpointFolder(tmp_path / "c").load()
    resumed = outer_update(optimizer)
    resumed.load(found.meta_params, found.optimizer)
    for step in range(found.step, 10):
        resumed.update(gradient(step, size), step)
    assert weights_sha256(resumed.meta_params) == weights_sha256(whole.meta_params)
    for name, value in resumed.meta_params.items():
        assert value.stride() == whole.meta_params[name].stride(), "another memory layout may mean other bits"


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).newest_checkpoint() is None
    for step in (2, 4, 6):
        write(tmp_path, step)
    for damage in (
        lambda folder: (folder / "checkpoint.json").unlink(),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "progress.json").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text("{"),
    ):
        run_folder = tmp_path / f"damaged-{random.random()}"
        shutil.copytree(tmp_path / "checkpoints", run_folder / "checkpoints")
        damage(run_folder / "checkpoints" / "step-000006")
        newest = RunFolder(run_folder).newest_checkpoint()
        assert newest is not None
        assert newest.name == "step-000004"
        assert newest.load().step == 4


def test_any_flipped_byte_makes_it_no_checkpoint(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert folder.is_whole
    for name in ("meta_params.safetensors", "optimizer.safetensors", "progress.json"):
        content = bytearray((folder.path / name).read_bytes())
        position = random.Random(name).randrange(len(content))
        content[position] ^= 1
        (folder.path / name).write_bytes(content)
        assert not folder.is_whole
        content[position] ^= 1
        (folder.path / name).write_bytes(content)
    assert folder.is_whole


@given(kills=st.lists(st.integers(1, 30), max_size=4), flush_before_kill=st.booleans())
def test_metrics_name_every_step_once_whatever_is_killed(
    kills: list[int], flush_before_kill: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run of 30 steps with a checkpoint every 7, killed after given steps; sometimes after the metrics and before the checkpoint."""
    metrics = MetricsFolder(tmp_path_factory.mktemp("metrics"))
    committed = 0
    for kill in [*sorted(kills), None]:
        writer = MetricsWriter(metrics, committed)
        for step in range(committed + 1, 31):
            writer.add({"step": step})
            if step == kill:
                if flush_before_kill:
                    writer.flush(step)
                break
            if step % 7 == 0 or step == 30:
                writer.flush(step)
                committed = step
    assert [record["step"] for record in metrics.read()] == list(range(1, 31))
    assert [record["step"] for record in metrics.read(after=20)] == list(range(21, 31))
