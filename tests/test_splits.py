"""Splitting: whole groups, every class in every part, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnaeus.data.splits import count_straddling, group_identical, split
from linnaeus.errors import DataError, SettingError

FRACTIONS = st.sampled_from([(0.1, 0.2), (0.15, 0.15), (0.5, 0.25), (0.3, 0.0), (0.0, 0.4), (0.01, 0.01)])


def test_identical_pictures_are_one_group() -> None:
    """The same digest joins, and so does a group; numbers follow the first picture of each."""
    digests = [b"a", b"b", b"a", b"c", b"d", b""]
    assert group_identical(digests).tolist() == [0, 1, 0, 2, 3, 4]
    assert group_identical(digests, np.array([7, 8, 9, 9, 8, 6])).tolist() == [0, 1, 0, 0, 1, 2]
    assert group_identical([b"", b""]).tolist() == [0, 1]
    assert group_identical([]).shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60))
def test_joining_is_the_finest_that_respects_both(pairs: list[tuple[int, int]]) -> None:
    """Pictures alike in digest or group share a number, and each number is reached by such steps alone."""
    digests = [bytes([65 + d]) for d, _ in pairs]
    groups = np.array([g for _, g in pairs])
    joined = group_identical(digests, groups)
    reach = np.array([[a[0] == b[0] or a[1] == b[1] for a in pairs] for b in pairs])
    for _ in range(6):
        reach = reach @ reach
    assert np.array_equal(joined[:, None] == joined[None, :], reach)
    assert joined[0] == 0


@given(counts=st.lists(st.integers(3, 80), min_size=2, max_size=6), fractions=FRACTIONS, seed=st.integers(0, 2**32 - 1))
def test_single_pictures_meet_their_fractions(counts: list[int], fractions: tuple[float, float], seed: int) -> None:
    """Without groups each class has its fraction to within one picture, and at least one in each part."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = split(labels, None, fractions=fractions, seed=seed)
    assert parts.dtype == np.int8
    for k, count in enumerate(counts):
        found = np.bincount(parts[labels == k], minlength=3)
        assert found[0] >= 1
        for code, share in ((1, fractions[0]), (2, fractions[1])):
            assert abs(found[code] - share * count) <= 1
            assert (found[code] >= 1) == (share > 0)


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7)), min_size=4, max_size=60),
    fractions=FRACTIONS,
    seed=st.integers(0, 99),
)
def test_no_group_straddles(sizes: list[tuple[int, int]], fractions: tuple[float, float], seed: int) -> None:
    """Groups of one class and any size stay whole, and every part has every class."""
    sizes = [(k, 2) for k in range(4) for _ in range(3)] + sizes
    labels = np.repeat([k for k, _ in sizes], [n for _, n in sizes])
    groups = np.repeat(np.arange(len(sizes)), [n for _, n in sizes])
    parts = split(labels, groups, fractions=fractions, seed=seed)
    assert count_straddling(parts, groups) == 0
    for code in np.unique(parts):
        assert set(labels[parts == code]) == {0, 1, 2, 3}
    assert np.array_equal(parts, split(labels, groups * 1000 + 5, fractions=fractions, seed=seed))


@settings(deadline=None)
@given(seed=st.integers(0, 200), per_group=st.integers(2, 9))
def test_groups_of_several_classes(seed: int, per_group: int) -> None:
    """Photographs with pictures of several classes are dealt out whole and near to the fractions."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(120), per_group)
    labels = rng.choice(3, size=len(groups), p=[0.8, 0.15, 0.05])
    labels[: 12 * per_group : per_group] = np.arange(12) % 3
    parts = split(labels, groups, fractions=(0.2, 0.2), seed=seed)
    assert count_straddling(parts, groups) == 0
    shares = np.array([np.bincount(parts[labels == k], minlength=3) / (labels == k).sum() for k in range(3)])
    assert shares.min() > 0
    assert np.abs(shares[0] - [0.6, 0.2, 0.2]).max() < 0.08


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 200), grouped=st.booleans())
def test_several_labels_a_picture(seed: int, grouped: bool) -> None:
    """Each label has its share of each part to within a picture, in groups a tenth; so do pictures without any."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((400, 4)) < [0.5, 0.25, 0.1, 0.04]).astype(np.uint8)
    targets[:6, 3] = 1
    groups = np.arange(400) // 2 if grouped else np.arange(400)
    parts = split(targets, groups, fractions=(0.2, 0.2), seed=seed)
    assert count_straddling(parts, groups) == 0
    shares = np.array([targets[parts == code].sum(axis=0) / targets.sum(axis=0) for code in range(3)])
    off = np.abs(shares - np.array([[0.6], [0.2], [0.2]])) * targets.sum(axis=0)
    assert (off <= (2 + 0.12 * targets.sum(axis=0) if grouped else 1.5)).all()
    assert (shares > 0).all()
    assert (
        np.abs(np.bincount(parts[~targets.any(axis=1)]) / (~targets.any(axis=1)).sum() - [0.6, 0.2, 0.2]).max() < 0.06
    )
    assert np.array_equal(parts, split(targets, groups, fractions=(0.2, 0.2), seed=seed))


def test_a_label_of_too_few_pictures() -> None:
    """A label that fewer pictures have than there are parts is named; pictures without a label need no part."""
    targets = np.zeros((30, 2), np.uint8)
    targets[:28, 0] = 1
    targets[:2, 1] = 1
    with pytest.raises(DataError, match="'owl' has 2"):
        split(targets, None, fractions=(0.2, 0.2), seed=0, classes=("cat", "owl"))
    targets[2, 1] = 1
    assert set(split(targets, None, fractions=(0.2, 0.2), seed=0)[:3]) == {0, 1, 2}


def test_the_seed_decides() -> None:
    """One seed gives one split, another gives another."""
    labels = np.arange(200) % 4
    first = split(labels, None, fractions=(0.2, 0.2), seed=1)
    assert np.array_equal(first, split(labels, None, fractions=(0.2, 0.2), seed=1))
    assert not np.array_equal(first, split(labels, None, fractions=(0.2, 0.2), seed=2))


def test_a_known_split() -> None:
    """The split of twelve pictures by seed 0 is the same on every machine and in every version."""
    assert split(np.arange(12) % 2, None, fractions=(0.2, 0.2), seed=0).tolist() == KNOWN


KNOWN = [2, 0, 0, 0, 0, 2, 0, 0, 0, 1, 1, 0]


def test_given_parts_stay() -> None:
    """Val is taken from train by class and group; the test part that was given is not touched."""
    labels = np.arange(60) % 3
    groups = np.arange(60) // 2
    taken = np.where(np.arange(60) < 12, 2, 0).astype(np.int8)
    parts = split(labels, groups, fractions=(0.25, 0.5), seed=3, taken=taken)
    assert np.array_equal(parts == 2, taken == 2)
    assert 9 <= (parts == 1).sum() <= 15
    assert set(labels[parts == 1]) == {0, 1, 2}
    assert count_straddling(parts, groups) == 0
    assert taken.max() == 2


def test_complete_parts_are_left_alone() -> None:
    """Data with all three parts come back as they are, as a copy."""
    taken = np.array([0, 0, 1, 1, 2, 2], np.int8)
    parts = split(np.array([0, 1] * 3), None, fractions=(0.3, 0.3), seed=0, taken=taken)
    assert np.array_equal(parts, taken)
    assert parts is not taken


def test_classes_that_are_too_small() -> None:
    """A class with fewer groups than parts is named with what it has and what it needs."""
    labels = np.array([0] * 9 + [1] * 4)
    groups = np.array([*range(9), 9, 9, 10, 10])
    with pytest.raises(DataError, match=r"at least 3.*'owl' has 2"):
        split(labels, groups, fractions=(0.2, 0.2), seed=0, classes=("cat", "owl"))
    with pytest.raises(DataError, match="'class 1' has 2"):
        split(labels, groups, fractions=(0.2, 0.2), seed=0)
    assert split(labels, groups, fractions=(0.2, 0.0), seed=0).tolist().count(1) >= 3


def test_groups_that_cannot_be_dealt_out() -> None:
    """Where the groups make it impossible to have every class in each part, the error says which is lacking."""
    groups = np.array([0, 0, 1, 1, 2, 2])
    labels = np.array([0, 1, 0, 2, 1, 2])
    with pytest.raises(DataError, match="without"):
        split(labels, groups, fractions=(0.5, 0.0), seed=0)


def test_no_part_to_train_with() -> None:
    """Given parts without train are refused."""
    with pytest.raises(DataError, match="train"):
        split(np.array([0, 1]), None, fractions=(0.5, 0.0), seed=0, taken=np.array([2, 2], np.int8))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.2), (1.0, 0.0), (float("nan"), 0.1)])
def test_fractions_out_of_range(fractions: tuple[float, float]) -> None:
    """Fractions that leave nothing to train with, or are no fractions, are a SettingError."""
    with pytest.raises(SettingError):
        split(np.arange(9) % 3, None, fractions=fractions, seed=0)


def test_straddling_groups_are_counted() -> None:
    """A group with pictures in two or three parts counts once."""
    groups = np.array([0, 0, 1, 1, 2, 2, 2])
    assert count_straddling(np.array([0, 2, 0, 0, 0, 1, 2], np.int8), groups) == 2
