"""Loaders: every image once an epoch, in an order that no worker, process or interruption changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnaeus.data.augment import Augment
from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Batch, Loader
from linnaeus.data.mixing import Mix


def loader(count: int = 50, **changes: object) -> Loader:
    """Return a loader over every second of 2 * count images, each filled with its own number."""
    pixels = np.broadcast_to(np.arange(2 * count, dtype=np.uint8)[:, None, None, None], (2 * count, 4, 4, 1))
    parts: dict[str, object] = {
        "pixels": PackedPixels(array=np.ascontiguousarray(pixels)),
        "labels": np.arange(2 * count) % 7,
        "indices": np.arange(0, 2 * count, 2),
        "batch_size": 8,
        "shuffle": True,
        **changes,
    }
    return Loader(**parts)  # type: ignore[arg-type]


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Return whether two lists of batches are equal to the byte."""
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels)
        and torch.equal(x.labels, y.labels)
        and np.array_equal(x.samples, y.samples)
        and x.share == y.share
        and ((x.targets is None and y.targets is None) or torch.equal(x.targets, y.targets))
        for x, y in zip(a, b)
    )


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 90), batch_size=st.integers(1, 40), epoch=st.integers(0, 5), workers=st.sampled_from([0, 2])
)
def test_every_image_once_an_epoch(count: int, batch_size: int, epoch: int, workers: int) -> None:
    """Each image comes once, with its own pixels and label, in batches whose sizes differ by one at most."""
    batches = list(loader(count, batch_size=batch_size, workers=workers).batches(epoch))
    samples = np.concatenate([batch.samples for batch in batches])
    assert sorted(samples.tolist()) == list(range(0, 2 * count, 2))
    for batch in batches:
        assert batch.pixels.shape == (len(batch.samples), 1, 4, 4)
        assert batch.pixels[:, 0, 0, 0].tolist() == (batch.samples % 256).tolist()
        assert batch.labels.tolist() == (batch.samples % 7).tolist()
        assert batch.share == 1
    sizes = [len(batch.labels) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    """Epochs and seeds differ, the same ones are equal, and without shuffling the order is that of the indices."""

    def order(epoch: int, **changes: object) -> list[int]:
        return [int(i) for batch in loader(**changes).batches(epoch) for i in batch.samples]

    assert order(0) == order(0)
    assert len({tuple(order(e, seed=s)) for e in range(3) for s in range(3)}) == 9
    assert order(3, shuffle=False) == list(range(0, 100, 2))
    assert order(1, workers=2) == order(1)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers: int) -> None:
    """Any number of workers gives the same batches as none, augmentation included."""
    augment = Augment(flip=True, shift=0.3, rotate=10, erase=0.3, colour=0.3)
    alone = list(loader(augment=augment).batches(2, side=lambda batch: 3 + batch % 2))
    helped = list(loader(augment=augment, workers=workers).batches(2, side=lambda batch: 3 + batch % 2))
    assert same(alone, helped)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_the_middle(workers: int) -> None:
    """From the k-th batch on, an epoch is what it would have been, and after the last there is none."""
    feeding = loader(workers=workers, augment=Augment(flip=True, shift=0.3))
    whole = list(feeding.batches(1))
    assert feeding.steps == len(whole) == 7
    for start in range(len(whole) + 1):
        assert same(list(feeding.batches(1, start=start)), whole[start:])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [50, 49, 17])
def test_processes_share_each_batch(world: int, count: int) -> None:
    """The processes' parts of a batch are together what one process has, and their shares add up to one."""
    augment = Augment(flip=True, shift=0.3)
    alone = list(loader(count, augment=augment).batches(1))
    ranks = [list(loader(count, augment=augment, rank=r, world=world).batches(1)) for r in range(world)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks):
        assert sum(part.share for part in parts) == pytest.approx(1)
        places = {int(sample): i for i, sample in enumerate(whole.samples)}
        found = [int(sample) for part in parts for sample in part.samples]
        assert sorted(found) == sorted(places)
        for part in parts:
            rows = [places[int(sample)] for sample in part.samples]
            assert torch.equal(part.pixels, whole.pixels[rows])


@settings(deadline=None, max_examples=60)
@given(count=st.integers(2, 30), batch_size=st.integers(1, 9), world=st.integers(2, 4))
def test_no_process_goes_without(count: int, batch_size: int, world: int) -> None:
    """Where there are as many images as processes, none of them gets an empty batch."""
    for rank in range(world):
        batches = list(loader(count, batch_size=batch_size, world=world, rank=rank).batches())
        if count >= world:
            assert min(len(batch.labels) for batch in batches) >= 1


def test_a_loader_left_early_stops_its_workers() -> None:
    """Closing the batches in the middle of an epoch ends the threads behind them."""
    read: list[int] = []

    class Slow:
        def take(self, indices: np.ndarray) -> np.ndarray:
            read.append(len(indices))
            return np.zeros((len(indices), 4, 4, 1), np.uint8)

    batches = dataclasses.replace(loader(workers=2), pixels=Slow()).batches()
    next(batches)
    batches.close()
    assert 1 <= len(read) <= 4


def test_an_error_in_a_worker_reaches_the_loop() -> None:
    """What goes wrong while a batch is prepared ahead is raised where the batch is asked for."""

    class Broken:
        def take(self, indices: np.ndarray) -> np.ndarray:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(dataclasses.replace(loader(workers=2), pixels=Broken()).batches())


def test_an_image_that_is_seen_twice_is_changed_twice() -> None:
    """A repeated image comes as often as it is repeated, in other places and augmented otherwise."""
    chance = np.random.default_rng(0)
    pixels = PackedPixels(array=chance.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8))
    indices = np.array([0] * 40 + [1] + [2])
    repeated = loader(pixels=pixels, labels=np.arange(3), indices=indices, augment=Augment(shift=0.4))
    batches = list(repeated.batches())
    samples = np.concatenate([batch.samples for batch in batches])
    assert sorted(samples) == sorted(indices)
    images = torch.cat([batch.pixels for batch in batches])[samples == 0]
    assert len({image.numpy().tobytes() for image in images}) > 20


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_mixed_batches(alphas: dict[str, float], world: int) -> None:
    """Several processes together see the mixed images and targets that one alone sees."""
    mix = Mix(classes=7, **alphas)
    whole = list(loader(50, mix=mix).batches(2))
    parts = [list(loader(50, mix=mix, rank=rank, world=world).batches(2)) for rank in range(world)]
    for number, batch in enumerate(whole):
        for rank in range(world):
            mine = parts[rank][number]
            assert torch.equal(mine.pixels, batch.pixels[rank::world])
            assert torch.equal(mine.targets, batch.targets[rank::world])
    assert same(whole, list(loader(50, mix=mix, workers=2).batches(2)))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pixels_bear_their_targets(kind: str) -> None:
    """The share of each label in the target is the share of its image in the pixels (mixup and CutMix)."""
    first, second = (torch.full((200, 3, 20, 20), value, dtype=torch.uint8) for value in (0, 200))
    labels = torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.int64)
    mix = Mix(classes=2, **{kind: 1.0})
    mixed, targets = mix.apply((first, second), labels, seed=0, epoch=0, samples=np.arange(200))
    assert mixed.dtype == torch.uint8
    assert torch.allclose(targets.sum(dim=1), torch.ones(200))
    torch.testing.assert_close(mixed.float().mean(dim=(1, 2, 3)) / 200, targets[:, 1], atol=0.004, rtol=0)
    assert (set(mixed.unique().tolist()) == {0, 200}) == (kind == "cutmix")
    shares = targets[:, 0].numpy()
    counts = np.histogram(shares, 4, (0, 1))[0]
    assert counts.min() > (25 if kind == "mixup" else 0)  # Beta(1, 1) is even; a box is cut off at the edges


def test_mixup_draws_from_a_beta() -> None:
    """The shares of mixup with alpha 0.4 have the mean and the variance of Beta(0.4, 0.4)."""
    images, labels = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64)
    mix = Mix(mixup=0.4, classes=2)
    _, targets = mix.apply((images, images), (labels, labels + 1), seed=3, epoch=1, samples=np.arange(4000))
    shares = targets[:, 0].numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.05)
