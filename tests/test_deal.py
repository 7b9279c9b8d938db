"""How images are dealt to shards: every image once, each class once in a partition, sizes even, and no pair of classes kept apart."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.data.deal import deal

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=200)
@given(sizes=SIZES, data=st.data(), seed=st.integers(0, 2**32))
def test_the_partition_law(sizes: list[int], data: st.DataObject, seed: int) -> None:
    chunks = data.draw(st.integers(1, min(sizes)))
    groups = data.draw(st.integers(1, len(sizes)))
    shards = deal(sizes, chunks, groups, seed, "train")
    assert len(shards) == chunks * groups
    dealt = Counter((c, i) for shard in shards for c, i in zip(shard.classes.tolist(), shard.images.tolist(), strict=True))
    assert dealt == Counter((c, i) for c, size in enumerate(sizes) for i in range(size))  # every image exactly once
    for partition in range(chunks):
        group_classes = [sorted(set(shard.classes.tolist())) for shard in shards[partition * groups : (partition + 1) * groups]]
        assert sorted(c for group in group_classes for c in group) == list(range(len(sizes)))  # every class exactly once
        assert max(map(len, group_classes)) - min(map(len, group_classes)) <= 1
    for c, size in enumerate(sizes):
        parts = [int((shard.classes == c).sum()) for shard in shards if c in shard.classes]
        assert sum(parts) == size
        assert len(parts) == chunks
        assert max(parts) - min(parts) <= 1


@settings(max_examples=50)
@given(sizes=SIZES, seed=st.integers(0, 2**32), first_id=st.integers(0, 1000))
def test_dealing_is_a_pure_function(sizes: list[int], seed: int, first_id: int) -> None:
    one, two = (deal(sizes, 1, len(sizes), seed, "val", first_id) for _ in range(2))
    assert all(np.array_equal(a.classes, b.classes) and np.array_equal(a.images, b.images) for a, b in zip(one, two, strict=True))


def test_over_seeds_every_pair_of_classes_meets_as_often_as_any_other() -> None:
    """Chi-square over the pairs of 9 classes in 3 groups of 3: a pair meets with probability 1/4. Pairs of one partition are dependent,
    which can only make the statistic of a fair deal smaller than its 35 degrees of freedom allow; a pair kept apart would add 500."""
    seeds = 2000
    meetings = np.zeros((9, 9))
    for seed in range(seeds):
        for shard in deal([1] * 9, 1, 3, seed, "train"):
            present = np.bincount(shard.classes, minlength=9)
            meetings += np.outer(present, present)
    counts = meetings[np.triu_indices(9, 1)]
    assert counts.sum() == seeds * 9
    assert ((counts - seeds / 4) ** 2 / (seeds / 4)).sum() < 70


def test_over_seeds_any_two_images_of_a_class_may_share_a_shard() -> None:
    together = np.zeros((6, 6))
    for seed in range(500):
        for shard in deal([6], 3, 1, seed, "train"):
            present = np.bincount(shard.images, minlength=6)
            together += np.outer(present, present)
    counts = together[np.triu_indices(6, 1)]  # 3 of 15 pairs each time
    assert counts.min() > 60
    assert counts.max() < 140
