"""Augmentations: each does what its name says to whole images, and is a function of (seed, step, slot)."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from distmeta.data.augment import augment
from distmeta.data.episodes import Task
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.seeds import generator

TASK = Task(way=3, shot=1, queries=2)
ALL = partial(augment, rotation=0.4, flip=0.5, crop=2, jitter=0.3)


def pixels(count: int = 6, channels: int = 3, size: int = 8) -> np.ndarray:
    return generator(0, "test pixels").integers(0, 256, (count, channels, size, size)).astype(np.uint8)


def test_a_rotation_turns_all_images_alike_by_a_quarter_or_three() -> None:
    images, seen = pixels(), {0: 0, 1: 0, 3: 0}
    for i in range(400):
        changed = augment(images, generator(i, "test"), rotation=0.4)
        (turns,) = (turns for turns in range(4) if np.array_equal(changed, np.rot90(images, turns, axes=(2, 3))))
        seen[turns] += 1
    assert binomtest(seen[1] + seen[3], 400, 0.4).pvalue > 1e-3
    assert binomtest(seen[1], seen[1] + seen[3], 0.5).pvalue > 1e-3


def test_a_flip_mirrors_each_image_by_itself() -> None:
    images, mirrored = pixels(), 0
    for i in range(200):
        for before, after in zip(images, augment(images, generator(i, "test"), flip=0.25), strict=True):
            assert np.array_equal(after, before) or np.array_equal(after, before[..., ::-1])
            mirrored += np.array_equal(after, before[..., ::-1])
    assert binomtest(mirrored, 200 * len(images), 0.25).pvalue > 1e-3


def test_a_crop_moves_each_image_by_up_to_its_pixels() -> None:
    images, moves = pixels(), set()
    padded = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    for i in range(60):
        for n, after in enumerate(augment(images, generator(i, "test"), crop=2)):
            moves |= {(y, x) for y in range(5) for x in range(5) if np.array_equal(after, padded[n, :, y : y + 8, x : x + 8])}
    assert moves == {(y, x) for y in range(5) for x in range(5)}


def test_jitter_changes_brightness_contrast_and_saturation_and_nothing_else() -> None:
    grey = np.full((50, 3, 4, 4), 100, np.uint8)
    after = augment(grey, generator(0, "test"), jitter=0.2)
    assert (after == after[:, :1, :1, :1]).all(), "an even grey stays even and grey"
    assert 80 <= after.min() < 85
    assert 115 < after.max() <= 120
    images = np.broadcast_to(np.array([90, 100, 110], np.uint8)[:, None, None], (50, 3, 4, 4))
    spread = np.ptp(augment(images, generator(0, "test"), jitter=0.2).astype(int), axis=1)
    assert spread.min() < 18 < 22 < spread.max(), "colours grow paler and stronger"
    halves = np.repeat(np.array([90, 110], np.uint8), 8).reshape(1, 1, 4, 4).repeat(50, 0)
    contrast = np.ptp(augment(halves, generator(0, "test"), jitter=0.2).astype(int), axis=(1, 2, 3))
    assert contrast.min() < 18 < 22 < contrast.max()


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_input_are_kept(channels: int) -> None:
    images = pixels(channels=channels)
    before = images.copy()
    changed = ALL(images, generator(0, "test"))
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    assert not np.array_equal(changed, before)
    assert np.array_equal(images, before)
    assert np.array_equal(augment(images, generator(0, "test")), images)


@settings(max_examples=20)
@given(start=st.integers(0, 40), slots=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
def test_augmented_episodes_are_pure(dataset: Dataset, start: int, slots: list[int]) -> None:
    whole = EpisodeStream(dataset, "train", TASK, seed=3, augment=ALL).training(range(6), start)
    part = EpisodeStream(dataset, "train", TASK, seed=3, augment=ALL).training(slots, start)
    plain = EpisodeStream(dataset, "train", TASK, seed=3).training(slots, start)
    a, b, c = next(whole), next(part), next(plain)
    assert same(a.take(slots), b)
    assert not torch.equal(b.query_images, c.query_images)
    assert torch.equal(b.query_labels, c.query_labels)


def test_evaluation_is_never_augmented(dataset: Dataset) -> None:
    plain, changed = (EpisodeStream(dataset, "test", TASK, 0, augment=changes).evaluation(range(4)) for changes in (None, ALL))
    assert torch.equal(next(plain).support_images, next(changed).support_images)


@given(st.integers(0, 200), st.floats(0.08, 1))
def test_a_resized_crop_is_a_part_as_large_and_as_square_as_promised(seed: int, least: float) -> None:
    """Pixels that say where they lie tell which part of the image was taken."""
    side = 64
    ramp = np.broadcast_to(np.arange(side, dtype=np.uint8) * 4, (side, side))
    image = np.stack([ramp, ramp.T, ramp])[None]
    (found,) = augment(image, generator(seed, "test"), resized_crop=least)
    assert (found.shape, found.dtype) == (image.shape[1:], np.uint8)
    across, down = (np.ptp(found[axis].astype(float)) / 4 + 1 for axis in (0, 1))
    blur = 4.0  # pixels by which scaling may soften both ends
    assert (across + blur) * (down + blur) >= least * side**2
    assert (across + blur) / max(down - blur, 1) >= 3 / 4
    assert (across - blur) / (down + blur) <= 4 / 3


def test_a_resized_crop_of_the_whole_area_leaves_a_square_image_almost_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8)
    assert np.array_equal(augment(image, generator(1, "test"), resized_crop=0.0), image)
    assert not np.array_equal(augment(image, generator(1, "test"), resized_crop=0.2), image)
