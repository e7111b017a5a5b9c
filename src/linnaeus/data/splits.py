"""Who trains and who judges: parts that never share a group and hold every class.

Pure functions on arrays. The same labels, groups and seed give the same parts on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import DataError, SettingError
from linnaeus.results import SPLITS

_TRAIN, _VAL, _TEST = range(3)


def group_identical(digests: Sequence[bytes], groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Join pictures that are identical or in one group already.

    Args:
        digests: N digests of the pixels or files; an empty one says nothing and joins nothing.
        groups: int64 (N,) or None.

    Returns:
        int64 (N,): group numbers from 0, in the order of each group's first picture.
    """
    parent = np.arange(len(digests)).tolist()
    first: dict[object, int] = {}
    for i, digest in enumerate(digests):
        if digest:
            _join(parent, first.setdefault(digest, i), i)
    for i, group in enumerate([] if groups is None else groups.tolist()):
        _join(parent, first.setdefault(("group", group), i), i)
    roots = np.array([_root(parent, i) for i in range(len(parent))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def split(
    labels: NDArray[np.int64] | NDArray[np.uint8],
    groups: NDArray[np.int64] | None,
    *,
    fractions: tuple[float, float],
    seed: int,
    taken: NDArray[np.int8] | None = None,
    classes: Sequence[str] = (),
) -> NDArray[np.int8]:
    """Deal pictures out to train, val and test, class by class and never parting a group.

    Args:
        labels: int64 (N,), or uint8 (N, K) with 1 where a picture has a label. A picture of several classes is dealt
            out like a group of such: those of the rarest class first, to the part that lacks most of its classes
            (iterative stratification, Sechidis et al. 2011).
        groups: int64 (N,), or None where each picture stands alone.
        fractions: of val and test, each in [0, 1), together below 1. 0 makes no such part.
        seed: 0 or more.
        taken: int8 (N,), the parts that were given. They stay; a part that it lacks, with a fraction above 0, is
            taken from its train, of which it is then that fraction.
        classes: names for the messages.

    Returns:
        int8 (N,) with places in results.SPLITS. Where groups are single pictures of one class, each class has its
        fractions to within one picture. Each part has at least one picture of every class.

    Raises:
        SettingError: on fractions out of their range.
        DataError: a class has fewer groups than there are parts, or groups that cannot be dealt out so.
    """
    _check_fractions(fractions)
    result = np.zeros(len(labels), np.int8) if taken is None else taken.astype(np.int8)
    shares = [0.0 if (result == code).any() else share for code, share in zip((_VAL, _TEST), fractions, strict=True)]
    free = np.flatnonzero(result == _TRAIN)
    if not free.size:
        raise DataError("pictures to train with", got="none in the part train", fix="Add a part train.")
    if any(shares):
        own = groups[free] if groups is not None else np.arange(len(free))
        result[free] = _deal(labels[free], own, shares=(shares[0], shares[1]), seed=seed, classes=classes)
    return result


def count_straddling(parts: NDArray[np.int8], groups: NDArray[np.int64]) -> int:
    """Return how many groups have pictures in more than one part: each is a leak from training into judging."""
    pairs = np.unique(np.stack([groups, parts.astype(np.int64)]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _join(parent: list[int], a: int, b: int) -> None:
    low, high = sorted((_root(parent, a), _root(parent, b)))
    parent[high] = low


def _check_fractions(fractions: tuple[float, float]) -> None:
    if not (all(0 <= share < 1 for share in fractions) and sum(fractions) < 1):
        expected = "fractions of val and test from 0, together below 1"
        raise SettingError(expected, got=str(fractions), fix="Leave something to train with.")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What is still wanted: `want` is (3, K) pictures, `have` (3, K) too, `left` (K,) groups not dealt out yet."""

    want: list[list[int]]
    have: list[list[int]]
    left: list[int]
    parts: tuple[int, ...]

    def place(self, classes: list[int], counts: list[int]) -> int:
        """Choose the part for a group with so many pictures of these classes, and book it."""
        part = max(self._open_parts(classes), key=lambda code: self._need(code, classes, counts))
        for k, count in zip(classes, counts, strict=True):
            self.have[part][k] += count
            self.left[k] -= 1
        return part

    def _open_parts(self, classes: list[int]) -> tuple[int, ...]:
        """Return the parts to choose from: those without a class of which just enough groups are left."""
        pressing = [k for k in classes if self.left[k] <= len(self.parts)]
        if not pressing:
            return self.parts
        votes = [sum(self._waits(code, k) for k in pressing) for code in self.parts]
        return tuple(code for code, count in zip(self.parts, votes, strict=True) if count == max(votes))

    def _waits(self, code: int, k: int) -> bool:
        """Tell whether a part has nothing of a class whose last groups must all go to parts like it."""
        empty = [other for other in self.parts if not self.have[other][k]]
        return code in empty and len(empty) >= self.left[k]

    def _need(self, code: int, classes: list[int], counts: list[int]) -> float:
        """Return how much a part lacks of these classes, so that a rare class weighs as much as a common one."""
        if len(classes) == 1:
            return self.want[code][classes[0]] - self.have[code][classes[0]]
        total = 0.0
        for k, count in zip(classes, counts, strict=True):
            whole = self.want[_TRAIN][k] + self.want[_VAL][k] + self.want[_TEST][k]
            total += count * (self.want[code][k] - self.have[code][k]) / whole**2
        return total


def _deal(
    labels: NDArray[np.int64] | NDArray[np.uint8],
    groups: NDArray[np.int64],
    *,
    shares: tuple[float, float],
    seed: int,
    classes: Sequence[str],
) -> NDArray[np.int8]:
    """Return the part of each picture."""
    pictures, own, distinct = _memberships(labels)
    names = [classes[k] if k < len(classes) else f"class {k}" for k in distinct.tolist()]
    members, contents = _contents(pictures, own, groups)
    parts = (_TRAIN, *(code for code, share in zip((_VAL, _TEST), shares, strict=True) if share))
    table = _Table(
        want=_wanted(np.bincount(own), shares),
        have=[[0] * (int(own.max()) + 1) for _ in SPLITS],
        left=_groups_of_each(contents, int(own.max()) + 1),
        parts=parts,
    )
    _check_enough(table.left, names, len(parts))
    codes = np.zeros(len(contents), np.int8)
    for g in _order(contents, table.left, seed):
        codes[g] = table.place(*contents[g])
    _check_all_there(table, names)
    return codes[members]


def _memberships(
    labels: NDArray[np.int64] | NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of a picture and a class that it has, numbered from 0, and the classes' own numbers.

    Pictures without any label make a class of their own, the last, whose own number is not among these: they are dealt
    out like any others, but no part needs them.
    """
    if labels.ndim == 1:
        distinct, own = np.unique(labels, return_inverse=True)
        return np.arange(len(labels)), own, distinct.astype(np.int64)
    distinct = np.flatnonzero(labels.any(axis=0))
    pictures, own = np.nonzero(np.column_stack([labels[:, distinct], ~labels.any(axis=1)]))
    return pictures, own, distinct


def _contents(
    pictures: NDArray[np.int64], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[tuple[list[int], list[int]]]]:
    """Return the group of each picture, numbered from 0, and for each group its classes and their counts."""
    names, members = np.unique(groups, return_inverse=True)
    classes = int(labels.max()) + 1
    codes, counts = np.unique(members[pictures] * classes + labels, return_counts=True)
    contents: list[tuple[list[int], list[int]]] = [([], []) for _ in names]
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        contents[code // classes][0].append(code % classes)
        contents[code // classes][1].append(count)
    return members, contents


def _groups_of_each(contents: list[tuple[list[int], list[int]]], classes: int) -> list[int]:
    left = [0] * classes
    for group, _ in contents:
        for k in group:
            left[k] += 1
    return left


def _wanted(totals: NDArray[np.int64], shares: tuple[float, float]) -> list[list[int]]:
    """Return (3, K): how many pictures of each class each part shall have, at least one where it has any."""
    judges = [np.maximum(1, np.rint(totals * share)).astype(int) if share else totals * 0 for share in shares]
    # A small class gives its larger judge less before its train part runs empty.
    for _ in range(2):
        short = np.maximum(0, 1 - (totals - judges[0] - judges[1]))
        larger = judges[0] >= judges[1]
        judges = [judges[0] - short * larger, judges[1] - short * ~larger]
    return [(totals - judges[0] - judges[1]).tolist(), judges[0].tolist(), judges[1].tolist()]


def _order(contents: list[tuple[list[int], list[int]]], left: list[int], seed: int) -> list[int]:
    """Return the groups to deal out: those of several classes first, the rarest class first, then the largest.

    What comes last is easiest to fit in; among equals chance decides.
    """
    chance = np.random.default_rng(seed).permutation(len(contents)).tolist()

    def key(g: int) -> tuple[bool, int, int, int]:
        classes, counts = contents[g]
        rarest = min(left[k] for k in classes) if len(classes) > 1 else 0
        return len(classes) == 1, rarest, -sum(counts), chance[g]

    return sorted(range(len(contents)), key=key)


def _check_enough(left: list[int], names: list[str], parts: int) -> None:
    short = [f"{name!r} has {count}" for name, count in zip(names, left) if count < parts]
    if short:
        expected = f"at least {parts} pictures or groups of each class, one for each part"
        fix = "Add pictures of these classes, or make fewer parts."
        raise DataError(expected, got=", ".join(short), fix=fix)


def _check_all_there(table: _Table, names: list[str]) -> None:
    lacking = [
        f"{SPLITS[code]} without {name!r}"
        for code in table.parts
        for k, name in enumerate(names)
        if not table.have[code][k]
    ]
    if lacking:
        expected = "groups that can be dealt out so that each part has every class"
        raise DataError(expected, got=", ".join(lacking), fix="Make smaller groups, or split the data yourself.")
