"""Labelled batches: pure functions of (seed, step, slot) that use every image of an epoch once."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.data.images import decode_packed
from distmeta.data.labelled import LabelledStream
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError

IMAGES = 144  # of the training split


@given(images_per_slot=st.integers(1, 150), slots=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_uses_every_image_once_up_to_the_last_slot(dataset: Dataset, images_per_slot: int, slots: int, epoch: int) -> None:
    if images_per_slot > IMAGES:
        with pytest.raises(ConfigError, match=rf"{images_per_slot} images in a slot but split 'train' .* has {IMAGES}\nmake slots smaller"):
            LabelledStream(dataset, "train", images_per_slot, slots, seed=0)
        return
    stream = LabelledStream(dataset, "train", images_per_slot, slots, seed=0)
    in_epoch = IMAGES // images_per_slot
    numbers = range(epoch * in_epoch, (epoch + 1) * in_epoch)
    used = Counter(image for number in numbers for image in stream.images(number // slots, number % slots))
    assert set(used.values()) == {1}
    assert len(used) == in_epoch * images_per_slot > IMAGES - images_per_slot


@settings(max_examples=20)
@given(start=st.integers(0, 60), slots=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
def test_a_batch_depends_on_step_and_slot_alone(dataset: Dataset, start: int, slots: list[int]) -> None:
    whole = LabelledStream(dataset, "train", 10, 4, seed=3).training(range(4), start)
    part = LabelledStream(dataset, "train", 10, 4, seed=3).training(slots, start)
    for step in (start, start + 1):
        a, b = next(whole), next(part)
        assert (b.step, b.slots) == (step, slots)
        assert torch.equal(a.images[slots], b.images)
        assert torch.equal(a.labels[slots], b.labels)


def test_images_and_labels(dataset: Dataset) -> None:
    stream = LabelledStream(dataset, "val", 8, 2, seed=0)
    batch = next(stream.training([1, 0], 5))
    assert batch.images.shape == (2, 8, 1, 16, 16)
    for slot, images, labels in zip(batch.slots, batch.images, batch.labels, strict=True):
        for (shard, member), image, label in zip(stream.images(5, slot), images, labels, strict=True):
            info = dataset.shards("val")[shard]
            assert dataset.class_ids("val")[label] == info.class_ids[member]
            expected = decode_packed(dataset.fetch(info).image(member), stream.preprocessing, "test")
            assert torch.equal(image, stream.preprocessing.network_input(expected))
    double = batch.like(torch.zeros(1, dtype=torch.float64))
    assert (double.images.dtype, double.labels.dtype) == (torch.float64, torch.int64)


def test_epochs_and_seeds_differ_and_slots_read_one_shard_for_a_while(dataset: Dataset) -> None:
    stream = LabelledStream(dataset, "train", 6, 2, seed=0)  # 24 slots in an epoch, 12 steps
    epochs = [[image for step in range(12 * e, 12 * e + 12) for image in stream.images(step, 0)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [image for step in range(12) for image in LabelledStream(dataset, "train", 6, 2, seed=1).images(step, 0)]
    for images in epochs:
        shards = [shard for shard, _ in images]
        assert np.count_nonzero(np.diff(shards)) == 0, "two slots, two shards: one each"
