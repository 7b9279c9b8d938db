"""Law 1: an episode is a pure function of (seed, split, step, slot), and is drawn uniformly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import options, patterns, png, same
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from distmeta.data.episodes import EpisodeBatch, Task, compose
from distmeta.data.images import channels_last
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset, members_of_class
from distmeta.data.sources import SourceImage
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError
from distmeta.seeds import generator

TASK = Task(way=3, shot=1, queries=2)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 9))
def test_a_task_has_the_same_place_in_its_chunk_in_any_batch(slots: list[int], size: int) -> None:
    tensors = [torch.tensor(slots, dtype=torch.float32)] * 4
    batch, seen = EpisodeBatch(3, slots, *tensors), []
    for chunk, places in batch.chunks(size):
        assert len(chunk) == size
        assert chunk.support_images.tolist() == chunk.slots
        assert [chunk.slots[place] % size for place in places] == places
        seen += [chunk.slots[place] for place in places]
    assert seen == slots


@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 9))
def test_a_block_of_slots_makes_as_few_chunks_as_can_be(first: int, count: int, size: int) -> None:
    slots = list(range(first, first + count))
    batch = EpisodeBatch(0, slots, *[torch.zeros(count)] * 4)
    assert len(list(batch.chunks(size))) == -(-count // size)


def take(stream: EpisodeStream, slots: list[int], start: int, count: int) -> list[EpisodeBatch]:
    batches = stream.training(slots, start)
    taken = [next(batches) for _ in range(count)]
    batches.close()  # type: ignore[attr-defined]
    return taken


@given(
    way=st.integers(2, 6),
    shot=st.integers(1, 3),
    queries=st.integers(1, 3),
    rotations=st.booleans(),
    step=st.integers(0, 10**6),
    slot=st.integers(0, 63),
)
def test_an_episode_holds_the_images_that_its_task_asks_for(
    way: int, shot: int, queries: int, rotations: bool, step: int, slot: int
) -> None:
    task = Task(way, shot, queries, rotations)
    members = {class_id: np.arange(6) * 10 + class_id for class_id in range(2, 9)}
    episode = compose(task, members, 5, "train episode", step, slot)
    again = compose(task, dict(reversed(members.items())), 5, "train episode", step, slot)
    assert all(np.array_equal(a, b) for a, b in zip(episode[:3] + tuple(episode.spares), again[:3] + tuple(again.spares), strict=True))
    classes = list(zip(episode.class_ids.tolist(), episode.quarter_turns.tolist(), strict=True))
    assert len(set(classes)) == way
    assert episode.members.shape == (way, shot + queries)
    for class_id, row in zip(episode.class_ids, episode.members, strict=True):
        assert len(set(row.tolist())) == shot + queries, "an image is both support and query"
        assert set(row.tolist()) <= set(members[int(class_id)].tolist())
    assert rotations or not episode.quarter_turns.any()


def test_classes_pairs_and_images_are_uniform() -> None:
    members = {class_id: np.arange(5) for class_id in range(8)}
    classes, pairs, images = np.zeros(8), np.zeros((8, 8)), np.zeros((8, 5))
    for step in range(4000):
        episode = compose(TASK, members, 0, "train episode", step, 0)
        classes[episode.class_ids] += 1
        for a in episode.class_ids:
            for b in episode.class_ids:
                pairs[a, b] += a < b
        for class_id, row in zip(episode.class_ids, episode.members, strict=True):
            images[class_id, row] += 1
    upper = pairs[np.triu_indices(8, 1)]
    for counts in (classes, upper, images.ravel()):
        assert chisquare(counts).pvalue > 1e-3


def test_position_in_the_episode_says_nothing_about_the_class() -> None:
    members = {class_id: np.arange(5) for class_id in range(8)}
    at_label = np.zeros((TASK.way, 8))
    for step in range(4000):
        at_label[np.arange(TASK.way), compose(TASK, members, 0, "train episode", step, 0).class_ids] += 1
    assert chisquare(at_label.ravel()).pvalue > 1e-3


@given(start=st.integers(0, 40), slots=st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True))
def test_purity_over_start_step_and_share_of_the_slots(dataset: Dataset, start: int, slots: list[int]) -> None:
    """Any worker that starts anywhere with any slots sees what a worker sees that does everything from the beginning."""
    whole = EpisodeStream(dataset, "train", TASK, seed=3)
    part = EpisodeStream(dataset, "train", TASK, seed=3)
    for all_slots, own in zip(take(whole, list(range(8)), start, 2), take(part, slots, start, 2), strict=True):
        assert same(all_slots.take(slots), own)


def test_seed_split_step_and_slot_all_matter(dataset: Dataset) -> None:
    def first(split: str, seed: int, slot: int, step: int) -> EpisodeBatch:
        return take(EpisodeStream(dataset, split, TASK, seed), [slot], step, 1)[0]  # type: ignore[arg-type]

    reference = first("train", 0, 0, 0)
    for other in (first("val", 0, 0, 0), first("train", 1, 0, 0), first("train", 0, 1, 0), first("train", 0, 0, 1)):
        assert not torch.equal(reference.support_images, other.support_images)


def test_labels_follow_the_images(dataset: Dataset) -> None:
    """Images of one label resemble each other more than those of another: labels and pixels were not shuffled apart."""
    for batch in take(EpisodeStream(dataset, "train", Task(3, 2, 2), seed=0), [0, 1, 2, 3], 0, 5):
        for one in batch.each():
            centres = torch.stack([one.support_images[one.support_labels == label].mean(0) for label in range(3)])
            nearest = torch.cdist(one.query_images[0].flatten(1), centres.flatten(1)).argmin(1)
            assert torch.equal(nearest, one.query_labels[0])


def test_images_lie_in_memory_with_the_channels_innermost(dataset: Dataset) -> None:
    """Also a single channel's stride says so: by it torch chooses the fast convolutions, and with them the bits."""
    batch = take(EpisodeStream(dataset, "train", TASK, seed=0), [0, 1], 0, 1)[0]
    for images in (batch.support_images, batch.query_images):
        assert images.stride() == channels_last(images.clone(memory_format=torch.contiguous_format)).stride()


def test_class_rotations_turn_whole_classes(dataset: Dataset) -> None:
    stream = EpisodeStream(dataset, "train", Task(3, 2, 2, class_rotations=True), seed=0)
    plain = EpisodeStream(dataset, "train", Task(3, 2, 2), seed=0)
    turned = 0
    for step, batch in enumerate(take(stream, [0], 0, 8)):
        episode = stream.training_episode(step, 0)
        shard = plain.dataset.fetch(plain.dataset.shards("train")[stream.window(step, 0)[0]])
        for label, (members, turns) in enumerate(zip(episode.members, episode.quarter_turns, strict=True)):
            from distmeta.data.images import decode

            upright = decode(shard.image(int(members[0])), stream.preprocessing, "test")
            expected = stream.preprocessing.network_input(np.ascontiguousarray(np.rot90(upright, int(turns), axes=(1, 2))))
            assert torch.equal(batch.support_images[0][batch.support_labels[0] == label][0], expected)
            turned += int(turns) > 0
    assert turned > 0


def test_every_training_image_is_used(dataset: Dataset) -> None:
    stream = EpisodeStream(dataset, "train", TASK, seed=0)
    used = {(stream.window(step, 0)[0], m) for step in range(400) for m in stream.training_episode(step, 0).members.ravel().tolist()}
    assert len(used) == sum(info.images for info in dataset.manifest.classes if info.split == "train")


def test_evaluation_episodes_are_fixed_and_visit_every_shard(dataset: Dataset) -> None:
    stream = EpisodeStream(dataset, "test", TASK, seed=0)
    whole = {slot: i for batch in stream.evaluation(range(10)) for slot, i in zip(batch.slots, batch.support_images, strict=True)}
    part = {slot: i for batch in stream.evaluation([7, 2, 5], batch=1) for slot, i in zip(batch.slots, batch.support_images, strict=True)}
    assert sorted(whole) == list(range(10))
    assert sorted(part) == [2, 5, 7]
    assert all(torch.equal(images, whole[slot]) for slot, images in part.items())
    assert len(dataset.shards("test")) == 2
    members = [set(members_of_class(info)) for info in dataset.shards("test")]
    assert members[0] == members[1], "each shard holds all classes"


def hard_patterns() -> Iterator[SourceImage]:
    """Ten test classes so alike, of images so unequal, that the nearest mean picture is wrong half the time."""
    yield from patterns(2, (1, 1, 0))
    for number in range(10):
        base = generator(8, "class", number).normal(0, 1, (16, 16))
        for i in range(48):
            random = generator(8, "image", number, i)
            image = 128 + 25 * base + random.uniform(5, 90) * random.normal(0, 1, (16, 16))
            yield SourceImage(
                split="test",
                class_name=f"test-{number}",
                category="",
                image=png(image.clip(0, 255).astype(np.uint8)),
                origin=f"{number}/{i}",
            )


def nearest_mean_accuracies(stream: EpisodeStream, indices: range) -> list[float]:
    accuracies = []
    for batch in stream.evaluation(indices):
        for one in batch.each():
            centres = one.support_images[0].unflatten(0, (stream.task.way, -1)).mean(1)
            nearest = torch.cdist(one.query_images[0].flatten(1), centres.flatten(1)).argmin(1)
            accuracies.append((nearest == one.query_labels[0]).double().mean().item())
    return accuracies


def test_the_stated_interval_holds_over_packing_seeds(tmp_path: Path) -> None:
    """Packed 20 times with other seeds, the accuracy scatters by at most 1.3 times what each evaluation says of itself."""
    sources, means, stated = list(hard_patterns()), [], []
    for seed in range(20):
        pack(sources, tmp_path / str(seed), options(seed=seed))
        accuracies = nearest_mean_accuracies(EpisodeStream(Dataset(str(tmp_path / str(seed))), "test", Task(5, 1, 5), 0), range(100))
        means.append(np.mean(accuracies))
        stated.append(np.std(accuracies, ddof=1) / 10)
    assert 0.3 < np.mean(means) < 0.7
    assert np.std(means, ddof=1) < 1.3 * np.mean(stated), "it would be twice that if all episodes came from one shard"


def test_impossible_tasks_are_refused_with_value_rule_and_remedy(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"data.way=13 but split 'train' .* has 12 classes\nlower data.way"):
        EpisodeStream(dataset, "train", Task(13, 1, 1), 0)
    with pytest.raises(ConfigError, match=r"data.eval.way=7 but split 'val' .* has 6 classes\nlower data.eval.way"):
        EpisodeStream(dataset, "val", Task(7, 1, 1), 0, section="data.eval")
    with pytest.raises(
        ConfigError, match=r"data.shot \+ data.queries = 7 but class .* has 6 images.*\n.* pack again with --images-per-class 7"
    ):
        EpisodeStream(dataset, "train", Task(3, 3, 4), 0)
    with pytest.raises(ConfigError, match=r"data.shot \+ data.queries = 13 but class .* has 6 images.*\nlower data.shot or data.queries$"):
        EpisodeStream(dataset, "train", Task(3, 3, 10), 0)
    EpisodeStream(dataset, "train", Task(13, 1, 1, class_rotations=True), 0)
