"""Where shards hold fewer classes than their split, an episode is drawn from two of them, replaced one at a time."""

import copy
import re
from itertools import combinations, pairwise
from pathlib import Path

import handmade
import numpy as np
import pytest
import torch
from conftest import same
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.data.images import decode_packed
from distmeta.data.shards import Dataset, ShardInfo
from distmeta.data.stream import EpisodeStream, _shard_order
from distmeta.errors import ConfigError

TASK = Task(way=3, shot=1, queries=2)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 training classes of 12 images, 4 classes in a shard, three chunks of each class: nine shards of 16 images."""
    return handmade.write(tmp_path_factory.mktemp("data") / "few", handmade.images(), rounds=3, groups=3)


@given(seed=st.integers(0, 100), slot=st.integers(0, 63), shards=st.integers(3, 9))
def test_windows_are_two_shards_replaced_one_at_a_time(seed: int, slot: int, shards: int) -> None:
    visited = [shard for round_ in range(6) for shard in _shard_order(seed, slot, round_, shards, 2)]
    assert all(a != b for a, b in pairwise(visited))
    assert all(set(visited[i : i + shards]) == set(range(shards)) for i in range(0, len(visited), shards))


def test_an_episode_comes_from_its_window(few: Dataset) -> None:
    stream = EpisodeStream(few, "train", TASK, seed=0)
    infos = few.shards("train")
    seen = set()
    batches = stream.training([0])
    for step in range(60):
        window, episode, batch = stream.window(step, 0), stream.training_episode(step, 0), next(batches)
        assert len(set(window)) == 2
        both = [(infos[shard], member) for shard in window for member in range(len(infos[shard].class_ids))]
        for label, members in enumerate(episode.members):
            info, member = both[members[0]]
            assert info.class_ids[member] == episode.class_ids[label]
            image = decode_packed(few.fetch(info).image(member), stream.preprocessing, "test")
            assert torch.equal(batch.support_images[0, label], stream.preprocessing.network_input(image))
        seen.add(window)
        if step:
            assert set(window) & set(stream.window(step - 1, 0))
    assert len(seen) > 3


def test_all_images_and_all_class_pairs_are_used(few: Dataset) -> None:
    """Classes that no shard holds together meet in windows."""
    stream = EpisodeStream(few, "train", TASK, seed=0)
    infos = few.shards("train")
    images, pairs = set(), set()
    for step in range(4000):
        window, episode = stream.window(step, 0), stream.training_episode(step, 0)
        both = [(shard, member) for shard in window for member in range(len(infos[shard].class_ids))]
        images |= {both[member] for member in episode.members.ravel()}
        pairs |= set(combinations(sorted(episode.class_ids.tolist()), 2))
    assert len(images) == 144
    assert pairs == set(combinations(range(12), 2))
    together = {pair for info in infos for pair in combinations(np.unique(info.class_ids).tolist(), 2)}
    assert together < pairs, "single shards would have done"


@settings(max_examples=25)
@given(start=st.integers(0, 60), slots=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
def test_an_episode_over_two_shards_depends_on_step_and_slot_alone(few: Dataset, start: int, slots: list[int]) -> None:
    whole = EpisodeStream(few, "train", TASK, seed=3).training(range(6), start)
    part = EpisodeStream(few, "train", TASK, seed=3).training(slots, start)
    for _ in range(2):
        a, b = next(whole), next(part)
        assert same(a.take(slots), b)


def test_evaluation_reads_every_shard(few: Dataset) -> None:
    stream = EpisodeStream(few, "test", TASK, seed=0)
    whole = {slot: i for batch in stream.evaluation(range(20)) for slot, i in zip(batch.slots, batch.query_images, strict=True)}
    part: list[EpisodeBatch] = list(stream.evaluation([17, 3], batch=1))
    assert [batch.slots for batch in part] == [[3], [17]], "in order of shards"
    assert all(torch.equal(batch.query_images[0], whole[batch.slots[0]]) for batch in part)
    windows = {stream._evaluation_window(i) for i in range(20)}
    assert {shard for window in windows for shard in window} == set(range(9))


@pytest.mark.parametrize(("kind", "width"), [("few", 2), ("dataset", 1)])
def test_resuming_reads_no_more_than_the_windows(
    kind: str, width: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch of a stream that begins at step t reads, for each slot, its window and what comes after it, whatever t is."""
    whole: Dataset = request.getfixturevalue(kind)
    fetched: dict[int, list[str]] = {}  # by dataset: the last stream may still end a read
    streams = []  # kept, so that no two datasets have one id
    fetch = Dataset.fetch
    monkeypatch.setattr("distmeta.data.stream.ahead", map)  # a batch when it is asked for: later batches may read other windows
    monkeypatch.setattr(Dataset, "fetch", lambda self, info: fetched[id(self)].append(info.name) or fetch(self, info))
    for start in (0, 7, 10_000):
        dataset = copy.copy(whole)
        read = fetched[id(dataset)] = []
        stream = EpisodeStream(dataset, "train", TASK, seed=0)
        next(stream.training([0, 5], start))
        streams.append(stream)
        assert len(read) == len(set(read)) <= 2 * (width + 1)


def test_windows_that_cannot_serve_the_task_are_refused(few: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"data.way=9 but \S+\.tar and \S+\.tar hold \d classes\nlower data.way, or pack") as refusal:
        EpisodeStream(few, "train", Task(9, 1, 1), 0)
    named = re.findall(r"\S+\.tar", refusal.value.message)
    held: list[ShardInfo] = [info for info in few.shards("train") if info.name in named]
    assert f"hold {len(np.unique(np.concatenate([info.class_ids for info in held])))} classes" in refusal.value.message
    with pytest.raises(ConfigError, match=r"data.shot \+ data.queries = 5 but class .* has 4 images"):
        EpisodeStream(few, "train", Task(3, 1, 4), 0)
    EpisodeStream(few, "train", Task(4, 2, 2), 0)
    EpisodeStream(few, "train", Task(16, 2, 2, class_rotations=True), 0)


def test_two_shards_are_one_window(tmp_path: Path) -> None:
    two = handmade.write(tmp_path / "two", handmade.images(), rounds=1, groups=2)
    stream = EpisodeStream(two, "train", Task(12, 1, 2), seed=0)
    assert {stream.window(step, slot) for step in range(50) for slot in range(5)} == {(0, 1)}
    assert set(stream.training_episode(0, 0).class_ids) == set(range(12))
