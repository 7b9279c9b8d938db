"""The outer loop in one process, without Ray: skipping, stopping, validating, and continuing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from distmeta.data.episodes import Batch, EpisodeBatch, Task
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DataError, RunError
from distmeta.learners.learner import SlotMetrics
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, trainable, weights_sha256
from distmeta.models import build_model, redraw
from distmeta.training.accuracy import Accuracy
from distmeta.training.checkpoint import Checkpoint, CheckpointFolder, save
from distmeta.training.evaluate import Evaluation, Setting, block, evaluate
from distmeta.training.loop import Plan, Progress, train
from distmeta.training.metrics_folder import Record
from distmeta.training.outer import OuterUpdate, schedule
from distmeta.training.reduce import Request

TASK = Task(3, 1, 2)
PLAN = Plan(steps=12, checkpoint_every=5, validate_every=4, max_bad_steps=3, meta_batch_size=2, rank=0, workers=1, slots=[0, 1])


class Recorder:
    """Hooks that remember."""

    def __init__(
        self, accuracies: dict[int, float] | None = None, stop_at: int | None = None, asked: dict[int, Request] | None = None
    ) -> None:
        self.accuracies, self.stop_at, self.asked = accuracies or {}, stop_at, asked or {}
        self.records: list[Record] = []
        self.checkpoints: list[Checkpoint] = []
        self.best: list[int] = []
        self.validations = 0

    def log(self, record: Record) -> None:
        self.records.append(record)

    def validate(self, meta_params: Params) -> Evaluation:
        self.validations += 1
        inductive = self.accuracies.get(self.validations, 0.0)
        measurement = Accuracy().measure(learner(), TASK, torch.tensor([[0.0, inductive]] * 10, dtype=torch.float64))
        return Evaluation(
            measurement, {}, Setting(episodes=10, way=3, shot=1, queries=2, seed=0, inner_steps=1, norm="batch"), torch.zeros(10, 2)
        )

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        self.best.append(step)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        copies = ({name: value.clone() for name, value in params.items()} for params in (checkpoint.meta_params, checkpoint.optimizer))
        self.checkpoints.append(Checkpoint(checkpoint.step, *copies, dict(checkpoint.progress)))

    def episode(self, step: int, slot: int) -> str:
        return f"episode {step}/{slot}"

    def request(self) -> Request:
        asked = self.stop_at is not None and len(self.records) + 1 >= self.stop_at
        return Request.STOP if asked else self.asked.get(len(self.records) + 1, Request.NOTHING)

    def node_going(self) -> bool:
        return True


class Poisoned(MAML):
    """MAML whose meta-gradient is not finite at the given calls."""

    bad_calls: frozenset[int] = frozenset()
    calls = 0

    def each_slot(self, meta_params: Params, batch: Batch) -> Iterator[tuple[torch.Tensor, SlotMetrics]]:
        self.calls += 1
        for slot, (gradients, metrics) in enumerate(super().each_slot(meta_params, batch)):
            if self.calls in self.bad_calls and slot == 1:
                gradients[0, 0] = float("nan")
            yield gradients, metrics


def learner(bad_calls: Any = ()) -> Poisoned:
    made = Poisoned(build_model("conv4", (1, 16, 16), 3, filters=4), inner_lr=0.1, inner_steps=1)
    made.bad_calls = frozenset(bad_calls)
    return made


def outer_update() -> OuterUpdate:
    return OuterUpdate(trainable(redraw(learner().model, 0)), "adam", schedule("cosine", 0.01, PLAN.steps))


def batches(dataset: Dataset, start: int = 0) -> Iterator[EpisodeBatch]:
    return EpisodeStream(dataset, "train", TASK, 0).training(PLAN.slots, start)


def test_checkpoints_validations_and_the_best(dataset: Dataset) -> None:
    hooks = Recorder(accuracies={1: 0.5, 2: 0.4, 3: 0.6})
    assert train(learner(), outer_update(), batches(dataset), Progress(), PLAN, hooks)
    assert [record["step"] for record in hooks.records] == list(range(1, 13))
    assert [checkpoint.step for checkpoint in hooks.checkpoints] == [5, 10, 12]
    assert [record["step"] for record in hooks.records if "validation" in record] == [4, 8, 12]
    assert hooks.best == [4, 12]
    progress = hooks.checkpoints[-1].progress
    assert {key: progress[key] for key in ("best_step", "best_score", "bad_steps")} == {
        "best_step": 12,
        "best_score": pytest.approx(0.6),
        "bad_steps": 0,
    }


def test_stopping_and_going_on_gives_the_same_weights(dataset: Dataset) -> None:
    whole = outer_update()
    train(learner(), whole, batches(dataset), Progress(), PLAN, Recorder())
    hooks = Recorder(stop_at=7)
    assert not train(learner(), outer_update(), batches(dataset), Progress(), PLAN, hooks)
    last = hooks.checkpoints[-1]
    assert last.step == 7
    resumed = outer_update()
    resumed.load(last.meta_params, last.optimizer)
    assert train(learner(), resumed, batches(dataset, 7), Progress(7, **last.progress), PLAN, Recorder())
    assert weights_sha256(resumed.meta_params) == weights_sha256(whole.meta_params)


def test_a_checkpoint_out_of_turn_and_on(dataset: Dataset) -> None:
    hooks = Recorder(asked={3: Request.CHECKPOINT, 7: Request.LOOK})
    assert train(learner(), outer_update(), batches(dataset), Progress(), PLAN, hooks)
    assert [checkpoint.step for checkpoint in hooks.checkpoints] == [3, 5, 7, 10, 12]


def test_a_meta_batch_too_large_to_hold_and_resumed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scale comes from the step before, which the checkpoint keeps: the same bits, and only the first step is computed twice."""
    monkeypatch.setattr("distmeta.training.reduce.HELD_BYTES", 0)
    whole, hooks, maml = outer_update(), Recorder(), learner()
    train(maml, whole, batches(dataset), Progress(), PLAN, hooks)
    assert maml.calls == PLAN.steps + 1
    middle = next(checkpoint for checkpoint in hooks.checkpoints if checkpoint.step == 5)
    resumed = outer_update()
    resumed.load(middle.meta_params, middle.optimizer)
    assert train(learner(), resumed, batches(dataset, 5), Progress(5, **middle.progress), PLAN, Recorder())
    assert weights_sha256(resumed.meta_params) == weights_sha256(whole.meta_params)


def test_a_non_finite_meta_gradient_is_skipped_and_logged(dataset: Dataset) -> None:
    hooks, outer = Recorder(), outer_update()
    before = weights_sha256(outer.meta_params)
    assert train(learner([1, 2, 5]), outer, batches(dataset), Progress(), PLAN._replace(steps=6), hooks)
    assert [record.get("bad_slot") for record in hooks.records] == [1, 1, None, None, 1, None]
    assert weights_sha256(outer.meta_params) != before
    assert all(value.isfinite().all() for value in outer.meta_params.values())


def test_too_many_in_a_row_stop_the_run(dataset: Dataset) -> None:
    hooks, outer = Recorder(), outer_update()
    before = weights_sha256(outer.meta_params)
    with pytest.raises(RunError, match=r"not finite for 3 steps in a row, last at step 3, slot 1 \(episode 2/1\)\nlower learner.inner_lr"):
        train(learner(range(1, 99)), outer, batches(dataset), Progress(), PLAN, hooks)
    assert weights_sha256(outer.meta_params) == before


def test_float64_from_float32_images(dataset: Dataset) -> None:
    maml = learner()
    maml.model.double()
    outer = OuterUpdate(trainable(redraw(maml.model, 0)), "adam", schedule("constant", 0.01, 2))
    assert train(maml, outer, batches(dataset), Progress(), PLAN._replace(steps=2), Recorder())
    assert {value.dtype for value in outer.meta_params.values()} == {torch.float64}


def test_a_failing_stream_is_the_runs_failure(dataset: Dataset) -> None:
    def failing() -> Iterator[EpisodeBatch]:
        yield next(batches(dataset))
        raise DataError("shard x is missing", "copy it again")

    hooks = Recorder()
    with pytest.raises(DataError, match="shard x is missing"):
        train(learner(), outer_update(), failing(), Progress(), PLAN, hooks)
    assert len(hooks.records) == 1


def test_evaluation_counts_what_it_says(dataset: Dataset) -> None:
    """By hand, over the same episodes."""
    stream, maml = EpisodeStream(dataset, "test", TASK, 0), learner()
    theta = trainable(redraw(maml.model, 0))
    result = evaluate(Accuracy(), maml, theta, stream, 10, "batch").as_dict()
    accuracies = []
    for batch in stream.evaluation(range(10)):
        for one in batch.each():
            logits = maml.predict(maml.adapt(theta, one), one.query_images[0])
            accuracies.append([(kind.argmax(1) == one.query_labels[0]).double().mean().item() for kind in logits])
    by_hand = torch.tensor(accuracies)
    assert result["accuracy"] == pytest.approx(by_hand[:, 0].mean().item())
    assert result["accuracy_inductive"] == pytest.approx(by_hand[:, 1].mean().item())
    assert result["ci95"] == pytest.approx(stats.t.ppf(0.975, 9) * by_hand[:, 0].std().item() / 10**0.5, rel=1e-5)


def test_blocks_cover_everything_once() -> None:
    for count in range(20):
        for workers in range(1, 7):
            blocks = [block(count, rank, workers) for rank in range(workers)]
            assert [index for share in blocks for index in share] == list(range(count))
            assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.mark.parametrize("course", ["constant", "linear", "cosine"])
def test_without_steps_the_start_is_validated_kept_and_committed(course: str, tmp_path: Path) -> None:
    """Also by a resumed run, which has nothing left to do; a checkpoint of step 0 can be written and read."""
    outer = OuterUpdate(trainable(redraw(learner().model, 0)), "adam", schedule(course, 0.01, 0))
    progress, hooks = Progress(), Recorder({1: 0.5})
    assert train(learner(), outer, iter(()), progress, PLAN._replace(steps=0), hooks)
    assert (progress.step, progress.best_step, progress.best_score) == (0, 0, 0.5)
    assert (hooks.best, hooks.records, [kept.step for kept in hooks.checkpoints]) == ([0], [], [0])
    save(hooks.checkpoints[0], tmp_path / "step-000000", {})
    found = CheckpointFolder(tmp_path / "step-000000").load()
    assert weights_sha256(found.meta_params) == weights_sha256(outer.meta_params)
    again = Recorder()
    assert train(learner(), outer, iter(()), Progress(found.step, **found.progress), PLAN._replace(steps=0), again)
    assert (again.validations, again.checkpoints) == (0, [])
