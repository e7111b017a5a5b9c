"""Augmentation: the same for an image wherever it falls, and each change is what its name says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from linnaeus.data.augment import Augment, draw
from pictures import scene

ALL = Augment(flip=True, shift=0.2, rotate=30, crop=0.5, colour=0.4, erase=0.3)
MORE = Augment(flip=True, flip_up=True, scale=0.2, shear=20, hue=0.2, grey=0.5, blur=1.5, noise=0.1, crop=0.6)
RANDOM, TRIVIAL = Augment(policy="randaugment", policy_strength=0.5), Augment(policy="trivialaugment")
MOVES = Augment(flip=True, shift=0.25)


def pictures(count: int, channels: int = 3, side: int = 16) -> NDArray[np.uint8]:
    """Return uint8 (N, side, side, channels) without symmetry."""
    return np.stack([scene(side, side, seed=i)[..., :channels] for i in range(count)])


def apply(augment: Augment, pixels: NDArray[np.uint8], samples: object = None, **where: int) -> NDArray[np.uint8]:
    """Augment and return uint8 (N, H, W, C)."""
    numbers = np.arange(len(pixels)) if samples is None else np.asarray(samples, np.int64)
    images = augment.apply(pixels, seed=where.get("seed", 1), epoch=where.get("epoch", 0), samples=numbers,
                           size=where.get("size", 0))  # fmt: skip
    assert str(images.dtype) == "torch.uint8"
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [ALL, MOVES, Augment(colour=0.5, erase=0.5), MORE, RANDOM, TRIVIAL])
@pytest.mark.parametrize("size", [0, 12])
def test_an_image_changes_alike_in_any_batch(augment: Augment, channels: int, size: int) -> None:
    """Alone, in another order or in another batch, a sample comes out with the same bytes."""
    pixels = pictures(9, channels)
    whole = apply(augment, pixels, size=size)
    assert whole.shape == (9, size or 16, size or 16, channels)
    order = np.random.default_rng(0).permutation(9)
    assert np.array_equal(apply(augment, pixels[order], order, size=size), whole[order])
    for i in range(9):
        assert np.array_equal(apply(augment, pixels[i : i + 1], [i], size=size)[0], whole[i])


def test_an_image_changes_alike_in_any_thread() -> None:
    """Threads that augment at the same time do not touch each other's chance."""
    pixels = pictures(8)
    expected = apply(ALL, pixels)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: apply(ALL, pixels), range(24)):
            assert np.array_equal(found, expected)


def test_seed_epoch_and_sample_decide() -> None:
    """Another seed, epoch or sample number gives another change."""
    pixels = np.repeat(pictures(1), 6, axis=0)
    first = apply(ALL, pixels)
    assert len({image.tobytes() for image in first}) == 6
    for where in ({"seed": 2}, {"epoch": 1}):
        assert not (apply(ALL, pixels, **where) == first).all(axis=(1, 2, 3)).any()
    assert not np.array_equal(apply(ALL, pixels, np.arange(6) + 6), first)


def test_the_default_changes_nothing() -> None:
    """Without any field set, and with rotations of 0 and crops of 1, pixels come back as they went in."""
    pixels = pictures(4)
    assert np.array_equal(apply(Augment(), pixels), pixels)
    assert np.array_equal(apply(Augment(rotate=0.0, crop=1.0), pixels), pixels)
    tiny = apply(Augment(rotate=1e-9), pixels).astype(int)
    assert np.abs(tiny - pixels).max() <= 1


def test_a_flip_is_a_flip() -> None:
    """About half of the images are mirrored left to right, the others are untouched."""
    pixels = pictures(400, side=6)
    flipped = apply(Augment(flip=True), pixels)
    mirrored = (flipped == pixels[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (flipped == pixels).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 160 < mirrored.sum() < 240


def test_a_flip_by_the_map_is_the_same_flip() -> None:
    """Mirroring within the affine map, as rotated pictures are, mirrors exactly too."""
    pixels = pictures(60, side=8)
    warped = apply(Augment(flip=True, rotate=1e-9), pixels).astype(int)
    distance = np.minimum(
        np.abs(warped - pixels).max(axis=(1, 2, 3)), np.abs(warped - pixels[:, :, ::-1]).max(axis=(1, 2, 3))
    )
    assert distance.max() <= 1


def test_a_shift_is_by_whole_pixels_and_mirrors_edges() -> None:
    """Each image is one of the windows of its mirrored continuation, and all offsets occur."""
    pixels = pictures(300, side=8)
    shifted = apply(Augment(shift=0.25), pixels)
    found = []
    for image, original in zip(shifted, pixels):
        wide = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        fits = [
            (y, x) for y in range(5) for x in range(5) if np.array_equal(wide[y : y + 8, x : x + 8], image)
        ]  # fmt: skip
        assert len(fits) == 1
        found += fits
    assert len(set(found)) == 25


def test_a_rotation_turns() -> None:
    """A quarter turn that chance happens to draw is NumPy's quarter turn."""
    pixels = np.repeat(pictures(1, side=17), 4000, axis=0)
    turned = apply(Augment(rotate=90), pixels).astype(int)
    disc = np.hypot(*np.meshgrid(np.arange(17) - 8, np.arange(17) - 8)) < 7
    for turns in (1, -1):
        distance = np.abs(turned - np.rot90(pixels[0], turns)).mean(axis=3)[:, disc].mean(axis=1)
        assert distance.min() < 2
    assert np.abs(turned - pixels[0]).mean(axis=3)[:, disc].mean(axis=1).min() < 2


def test_a_crop_is_a_window() -> None:
    """A crop of a ramp stays inside the ramp, keeps at least its share of the area, and often less than all."""
    ramp = np.zeros((500, 32, 32, 1), np.uint8)
    ramp[:] = (np.arange(32) * 8)[None, None, :, None]
    cropped = apply(Augment(crop=0.25), ramp)[..., 0].astype(int)
    span = cropped[:, 0, -1] - cropped[:, 0, 0]
    assert (np.diff(cropped, axis=2) >= 0).all()
    assert span.min() >= 0.25 * 248 * np.sqrt(3 / 4) - 16
    assert span.max() <= 248
    assert 100 < span.mean() < 220


def test_erasing_greys_one_square() -> None:
    """One square of the asked side is 128, the rest is as it was, and squares lie anywhere."""
    pixels = np.full((200, 20, 20, 3), 7, np.uint8)
    erased = apply(Augment(erase=0.25), pixels) == 128
    assert (erased.sum(axis=(1, 2, 3)) == 5 * 5 * 3).all()
    corners = {(int(np.argmax(e.any(axis=1))), int(np.argmax(e.any(axis=0)))) for e in erased[..., 0]}
    assert len(corners) > 100
    assert {0, 15} <= {y for y, _ in corners} & {x for _, x in corners}


def test_colour_changes_only_tones() -> None:
    """Brightness and contrast are affine maps of all pixels; a grey image stays grey; saturation moves colours."""
    pixels = pictures(20, 1)
    changed = apply(Augment(colour=0.3), pixels).astype(float)
    for before, after in zip(pixels.reshape(20, -1).astype(float), changed.reshape(20, -1)):
        inside = (after > 0) & (after < 255)
        slope, offset = np.polyfit(before[inside], after[inside], 1)
        assert np.abs(slope * before + offset - after)[inside].max() <= 1
        assert 0.49 <= slope <= 1.69
    grey = np.repeat(pixels, 3, axis=3)
    coloured = apply(Augment(colour=0.3), grey).astype(int)
    assert np.ptp(coloured, axis=3).max() <= 1


def test_upside_down() -> None:
    """About half of the images are turned upside down, the others are untouched, in every way of moving them."""
    pixels = pictures(400, side=6)
    for augment in (Augment(flip_up=True), Augment(flip_up=True, shear=1e-9)):
        turned = apply(augment, pixels).astype(int)
        distances = [np.abs(turned - other).max(axis=(1, 2, 3)) <= 1 for other in (pixels, pixels[:, ::-1])]
        assert (distances[0] ^ distances[1]).all()
        assert 160 < distances[1].sum() < 240


def test_scale_and_shear() -> None:
    """A scaled disc has another size, a sheared one the same size and another shape."""
    y, x = np.mgrid[:65, :65] - 32
    disc = np.where(np.hypot(x, y) < 14, 255, 0).astype(np.uint8)[None, :, :, None].repeat(60, axis=0)
    area = (disc[0] > 127).sum()
    sizes = (apply(Augment(scale=0.3), disc) > 127).sum(axis=(1, 2, 3)) / area
    assert 0.45 < sizes.min() < 0.7
    assert 1.3 < sizes.max() < 1.75
    leant = apply(Augment(shear=30), disc) > 127
    assert np.abs(leant.sum(axis=(1, 2, 3)) / area - 1).max() < 0.03
    widths = leant.any(axis=1).sum(axis=1)[:, 0]
    assert widths.max() > 30


def test_hue_turns_colours_and_leaves_grey() -> None:
    """A third of the circle takes red to green or blue; brightness stays; grey stays grey."""
    red = np.zeros((300, 2, 2, 3), np.uint8)
    red[..., 0] = 120
    turned = apply(Augment(hue=0.5), red).astype(int)[:, 0, 0]
    assert {0, 1, 2} == set(turned.argmax(axis=1).tolist())
    grey = np.full((20, 2, 2, 3), 90, np.uint8)
    assert np.abs(apply(Augment(hue=0.5), grey).astype(int) - 90).max() <= 1


def test_a_share_becomes_grey() -> None:
    """About the asked share of the images has no colour left, and the others are as they were."""
    pixels = pictures(300)
    changed = apply(Augment(grey=0.3), pixels).astype(int)
    grey = np.ptp(changed, axis=3).max(axis=(1, 2)) <= 1
    assert 60 < grey.sum() < 120
    assert np.abs(changed - pixels)[~grey].max() <= 1


def test_blur_and_noise() -> None:
    """Blur keeps the mean and lowers the contrast of neighbours; noise has the asked deviation and no bias."""
    pixels = np.random.default_rng(0).integers(60, 196, (40, 24, 24, 3), dtype=np.uint8)
    blurred = apply(Augment(blur=2.0), pixels).astype(float)
    assert np.abs(blurred.mean(axis=(1, 2, 3)) - pixels.mean(axis=(1, 2, 3))).max() < 4
    assert (blurred.std(axis=(1, 2, 3)) <= pixels.std(axis=(1, 2, 3)) + 1).all()
    assert blurred.std(axis=(1, 2, 3)).min() < 0.4 * pixels.std()
    flat = np.full((200, 16, 16, 1), 128, np.uint8)
    noisy = apply(Augment(noise=0.1), flat).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert noisy.std(axis=(1, 2, 3)).max() == pytest.approx(25.5, rel=0.15)


@pytest.mark.parametrize("augment", [RANDOM, TRIVIAL])
def test_policies_do_many_things(augment: Augment) -> None:
    """A policy changes most images, not all alike, and at strength 0 its turns and moves change nothing."""
    pixels = np.repeat(pictures(1, side=24), 200, axis=0)
    changed = apply(augment, pixels)
    same = (changed == pixels).all(axis=(1, 2, 3)).sum()
    assert same < 100
    assert len({image.tobytes() for image in changed}) > 12


@settings(deadline=None, max_examples=40)
@given(
    flip=st.booleans(),
    shift=st.floats(0, 0.5),
    rotate=st.floats(0, 180),
    crop=st.floats(0.05, 1),
    colour=st.floats(0, 1),
    erase=st.floats(0, 0.9),
    side=st.integers(4, 40),
    size=st.sampled_from([0, 8, 33]),
    channels=st.sampled_from([1, 3]),
)
def test_any_settings_give_pictures(side: int, size: int, channels: int, **changes: float) -> None:
    """Whatever the settings, uint8 of the right shape comes out, and black and white stay in range."""
    pixels = np.zeros((3, side, side, channels), np.uint8)
    pixels[1] = 255
    pixels[2, ::2] = 255
    found = apply(Augment(**changes), pixels, size=size)  # type: ignore[arg-type]
    assert found.shape == (3, size or side, size or side, channels)


def test_chance_is_uniform() -> None:
    """Draws over samples, epochs and streams fill [0, 1) evenly and know nothing of their neighbours."""
    samples = np.arange(20_000)
    for numbers in (draw(0, 0, samples, 1), draw(7, 3, samples, 2), draw(2**31 - 1, 99_999, samples, 1_000_003)):
        assert 0 <= numbers.min() < numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 60
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    others = [draw(0, e, samples, s) for e, s in ((0, 1), (1, 1), (0, 2), (1, 2))]
    correlations = np.corrcoef(others)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.03


def test_chance_does_not_change() -> None:
    """The same numbers give the same draw, on every machine and in every version."""
    assert np.array_equal(draw(1, 2, np.arange(9), 3), draw(1, 2, np.arange(9), 3))
    assert draw(1, 2, np.array([3]), 4)[0] == KNOWN


KNOWN = 0.398402300364712
