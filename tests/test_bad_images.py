"""An image that does not decode is replaced by another of its class, in every worker by the same one, and never in silence."""

from itertools import islice
from pathlib import Path

import handmade
import pytest
import torch
from conftest import same
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.data.episodes import Task
from distmeta.data.labelled import LabelledStream
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DataError

TASK = Task(way=3, shot=1, queries=2)
BAD = [(0, 1), (3, 4), (3, 5), (7, 0)]  # class, image


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """144 training images in two shards of all 12 classes; four of them are no images."""
    content = handmade.images()
    for class_, image in BAD:
        content["train"][class_][image] = b"\x89PNG but nothing more"
    return handmade.write(tmp_path_factory.mktemp("data") / "damaged", content, rounds=2, groups=1)


def test_by_default_the_first_one_ends_it_by_name(damaged: Dataset) -> None:
    batches = EpisodeStream(damaged, "train", TASK, seed=0).training([0])
    with pytest.raises(
        DataError, match=r"train-00000\d.tar/0000\d{4} does not decode .*\nraise data.max_bad_fraction, with which --resume"
    ):
        list(islice(batches, 100))


@settings(max_examples=25)
@given(start=st.integers(0, 40), slots=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
def test_the_replacement_is_the_same_everywhere(damaged: Dataset, start: int, slots: list[int]) -> None:
    whole = EpisodeStream(damaged, "train", TASK, seed=3, max_bad_fraction=0.1).training(range(6), start)
    part = EpisodeStream(damaged, "train", TASK, seed=3, max_bad_fraction=0.1).training(slots, start)
    a, b = next(whole), next(part)
    assert same(a.take(slots), b)


def test_images_stay_different_and_of_their_class_and_the_bad_are_listed(damaged: Dataset) -> None:
    stream = EpisodeStream(damaged, "train", TASK, seed=0, max_bad_fraction=0.1)
    batches = stream.training([0])
    for _ in range(150):
        batch = next(batches)
        for support, queries in zip(batch.support_images[0], batch.query_images[0].split(TASK.queries), strict=True):
            distances = torch.pdist(torch.stack([support, *queries]).flatten(1))
            assert distances.min() > 0, "the same image twice"
            assert distances.max() < 0.5 * (batch.support_images[0, 0] - batch.support_images[0, 1]).norm(), "another class"
    infos = {info.name: info for info in damaged.shards("train")}
    assert len(stream.bad) == len(BAD)
    classes = [int(infos[name].class_ids[int(member)]) for name, member in (key.split("/") for key in stream.bad)]
    assert sorted(classes) == sorted(class_ for class_, _ in BAD)


def test_more_than_the_fraction_ends_it(damaged: Dataset) -> None:
    batches = EpisodeStream(damaged, "train", TASK, seed=0, max_bad_fraction=0.02).training([0])  # two of 144
    with pytest.raises(
        DataError, match=r"tar/\d+ does not decode .*; [23] of (72|144) images do not decode, more than data.max_bad_fraction"
    ):
        list(islice(batches, 200))


def test_a_class_without_a_whole_image_ends_it(tmp_path: Path) -> None:
    content = handmade.images(4)
    content["train"][5] = [b"no image"] * 4
    damaged = handmade.write(tmp_path / "class", content, rounds=1, groups=1)
    with pytest.raises(DataError, match=r"does not decode.*, and no image of its class is left to replace it"):
        next(EpisodeStream(damaged, "train", Task(12, 1, 2), 0, max_bad_fraction=1.0).training([0]))


def test_in_labelled_batches_too(damaged: Dataset) -> None:
    stream = LabelledStream(damaged, "train", 16, 1, seed=0, max_bad_fraction=0.1)
    batches = stream.training([0])
    for _ in range(9):
        next(batches)
    assert len(stream.bad) == len(BAD)
    batches = LabelledStream(damaged, "train", 144, 1, seed=0).training([0])
    with pytest.raises(DataError, match="does not decode"):
        next(batches)
