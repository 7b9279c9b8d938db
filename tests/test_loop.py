"""The outer loop in one process, without Ray: skipping, stopping, validating, and going on."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DataError, RunError
from distmeta.learners.maml import MAML, SlotMetrics
from distmeta.learners.params import Params, initial_params, weights_sha256
from distmeta.models import build_model
from distmeta.train.checkpoint import Checkpoint
from distmeta.train.evaluate import Evaluation, block, evaluate
from distmeta.train.loop import Plan, Progress, train
from distmeta.train.metrics import Record
from distmeta.train.outer import OuterUpdate, schedule

TASK = Task(3, 1, 2)
PLAN = Plan(steps=12, checkpoint_every=5, validate_every=4, max_bad_steps=3, meta_batch_size=2, rank=0, slots=[0, 1])


class Recorder:
    """Hooks that remember."""

    def __init__(self, accuracies: dict[int, float] | None = None, stop_at: int | None = None) -> None:
        self.accuracies, self.stop_at = accuracies or {}, stop_at
        self.records: list[Record] = []
        self.checkpoints: list[Checkpoint] = []
        self.best: list[int] = []
        self.validations = 0

    def log(self, record: Record) -> None:
        self.records.append(record)

    def validate(self, meta_params: Params) -> Evaluation:
        self.validations += 1
        return Evaluation(0.0, 0.0, self.accuracies.get(self.validations, 0.0), 0.0, 10, 3, 1, 2, 0, 1)

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        self.best.append(step)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        copies = ({name: value.clone() for name, value in params.items()} for params in (checkpoint.meta_params, checkpoint.optimizer))
        self.checkpoints.append(Checkpoint(checkpoint.step, *copies, dict(checkpoint.progress)))

    def stop_requested(self) -> bool:
        return self.stop_at is not None and len(self.records) + 1 >= self.stop_at


class Poisoned(MAML):
    """MAML whose meta-gradient is not finite at the given calls."""

    bad_calls: frozenset[int] = frozenset()
    calls = 0

    def slot_gradients(self, meta_params: Params, episodes: EpisodeBatch) -> tuple[torch.Tensor, SlotMetrics]:
        gradients, metrics = super().slot_gradients(meta_params, episodes)
        self.calls += 1
        if self.calls in self.bad_calls:
            gradients[1, 0] = float("nan")
        return gradients, metrics


def learner(bad_calls: Any = ()) -> Poisoned:
    made = Poisoned(build_model("conv4", way=3, channels=1, image_size=16, filters=4), 0.1, 1, 1)
    made.bad_calls = frozenset(bad_calls)
    return made


def outer_update() -> OuterUpdate:
    return OuterUpdate(initial_params(learner().model, 0), "adam", schedule("cosine", 0.01, PLAN.steps))


def batches(dataset: Dataset, start: int = 0) -> Iterator[EpisodeBatch]:
    return EpisodeStream(dataset, "train", TASK, 0).training(PLAN.slots, start)


def test_checkpoints_validations_and_the_best(dataset: Dataset) -> None:
    hooks = Recorder(accuracies={1: 0.5, 2: 0.4, 3: 0.6})
    assert train(learner(), outer_update(), batches(dataset), Progress(), PLAN, hooks)
    assert [record["step"] for record in hooks.records] == list(range(1, 13))
    assert [checkpoint.step for checkpoint in hooks.checkpoints] == [5, 10, 12]
    assert [record["step"] for record in hooks.records if "validation" in record] == [4, 8, 12]
    assert hooks.best == [4, 12]
    assert hooks.checkpoints[-1].progress == {"best_step": 12, "best_accuracy": 0.6, "bad_steps": 0}


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
    with pytest.raises(RunError, match=r"not finite for 3 steps in a row, last at step 3, slot 1\nlower learner.inner_lr"):
        train(learner(range(1, 99)), outer, batches(dataset), Progress(), PLAN, hooks)
    assert weights_sha256(outer.meta_params) == before


def test_float64_from_float32_images(dataset: Dataset) -> None:
    maml = learner()
    maml.model.double()
    outer = OuterUpdate(initial_params(maml.model, 0), "adam", schedule("constant", 0.01, 2))
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
    theta = initial_params(maml.model, 0)
    result = evaluate(maml, theta, stream, 10, 0, 1)
    accuracies = []
    for batch in stream.evaluation(range(10)):
        for support, labels, queries, query_labels in zip(*batch[2:], strict=True):
            logits = maml.predict(maml.adapt(theta, support, labels), queries)
            accuracies.append([(kind.argmax(1) == query_labels).double().mean().item() for kind in logits])
    by_hand = torch.tensor(accuracies)
    assert result.accuracy == pytest.approx(by_hand[:, 0].mean().item())
    assert result.accuracy_inductive == pytest.approx(by_hand[:, 1].mean().item())
    assert result.ci95 == pytest.approx(1.96 * by_hand[:, 0].std().item() / 10**0.5, rel=1e-5)


def test_blocks_cover_everything_once() -> None:
    for count in range(20):
        for workers in range(1, 7):
            blocks = [block(count, rank, workers) for rank in range(workers)]
            assert [index for share in blocks for index in share] == list(range(count))
            assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
