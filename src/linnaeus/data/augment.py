"""Augmentation of whole batches of tensors. All chance comes from (seed, epoch, sample), never from saved state.

So an image is changed in the same way whichever batch, worker or process it falls into, and a resumed run
sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

_ALTERNATING = 1_000_033  # streams apart from those that are counted
_NOISE_STREAM = 1_000_037

# Shapes: N images, C channels, H rows, W columns.


def draw(seed: int, epoch: int, samples: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Return float64 (N,) uniform in [0, 1): a counter-based generator (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = samples.astype(np.uint64)
        for number in (seed, epoch, stream):
            state = _mix(state + np.uint64((number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


class _Chance:
    """One stream of chance per sample; each call draws the next number for every sample of the batch."""

    def __init__(self, seed: int, epoch: int, samples: NDArray[np.int64]) -> None:
        self._where = (seed, epoch, samples)
        self._stream = 0

    def uniform(self, low: float, high: float) -> NDArray[np.float64]:
        self._stream += 1
        return low + (high - low) * draw(*self._where, self._stream)

    def alternating(self) -> NDArray[np.bool_]:
        """Return bool (N,): a random half of the samples in the first epoch, then the other half, and so on.

        So every pair of epochs shows each image both ways (Jordan 2024).
        """
        seed, epoch, samples = self._where
        first: NDArray[np.bool_] = draw(seed, 0, samples, _ALTERNATING) < 0.5
        return first ^ bool(epoch % 2)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to training images. Every field at its default does nothing.

    Attributes:
        flip: mirror every image left to right in every other epoch, half of them in each.
        flip_up: turn a random half of the images upside down.
        shift: largest shift as a share of the side. rotate, shear: largest angle in degrees. scale: largest change of
            size, as a share of it.
        crop: smallest share of the area kept by a random resized crop (Szegedy et al. 2015).
        colour: strength in [0, 1] of random brightness, contrast and saturation, each of which can be given as well.
        hue: largest turn of the colour circle, as a share of it, up to 0.5.
        grey: share of the images that lose their colour. blur: largest standard deviation of a Gaussian, in pixels.
        noise: largest standard deviation of added noise, as a share of the range of values.
        policy: "randaugment" (Cubuk et al. 2020) or "trivialaugment" (Mueller and Hutter 2021), "none" for neither.
            policy_strength: of randaugment, in [0, 1].
        erase: side of the erased square as a share of the side (cutout, DeVries and Taylor 2017).
    """

    flip: bool = False
    flip_up: bool = False
    shift: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    crop: float = 1.0
    colour: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    policy: str = "none"
    policy_strength: float = 0.3
    erase: float = 0.0

    def apply(
        self, pixels: NDArray[np.uint8], *, seed: int, epoch: int, samples: NDArray[np.int64], size: int = 0
    ) -> torch.Tensor:
        """Augment pixels uint8 (N, H, W, C) and return uint8 (N, C, H, W), channels last in memory.

        `samples` int64 (N,) are the images' own numbers; `size` other than 0 gives a square of another side.
        """
        chance = _Chance(seed, epoch, samples)
        side = size or pixels.shape[1]
        if self.rotate or self.shear or self.scale or (self.shift and self.crop < 1.0):
            images = self._warp(pixels, chance, side)
        elif self.crop < 1.0:
            images = self._crop(pixels, chance, side)
        else:
            images = _resize(_to_nchw(self._move(pixels, chance)), side)
        if self.policy != "none":
            images = self._follow_policy(images, chance)
        if any((self.colour, self.brightness, self.contrast, self.saturation, self.hue, self.grey)):
            images = self._recolour(images, chance)
        if self.blur:
            images = _blur(images, chance.uniform(0, self.blur), most=self.blur)
        if self.noise:
            images = _add_noise(images, chance.uniform(0, self.noise), seed, epoch, samples)
        return self._erase(images, chance) if self.erase else images

    def _move(self, pixels: NDArray[np.uint8], chance: _Chance) -> NDArray[np.uint8]:
        """Flip and shift by whole pixels: one gather, edges mirrored."""
        if not (self.flip or self.flip_up or self.shift):
            return pixels
        n, height, width, channels = pixels.shape
        rows = _mirrored(height, _whole(chance.uniform(-self.shift, self.shift), height))
        columns = _mirrored(width, _whole(chance.uniform(-self.shift, self.shift), width))
        if self.flip:
            mirrored = chance.alternating()
            columns[mirrored] = columns[mirrored, ::-1]
        if self.flip_up:
            turned = chance.uniform(0, 1) < 0.5
            rows[turned] = rows[turned, ::-1]
        # One flat gather of whole pixels; NumPy's two-axis fancy index is three times slower.
        flat = (np.arange(n)[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
        moved: NDArray[np.uint8] = np.take(pixels.reshape(-1, channels), flat, axis=0)
        return moved

    def _crop(self, pixels: NDArray[np.uint8], chance: _Chance, size: int) -> torch.Tensor:
        """Cut a rectangle out of each image and resize it, then flip.

        One image at a time: resizing uint8 with antialiasing is eight times faster than sampling a batch of floats,
        and mirroring a picture that the cache still holds eight times faster than picking half a batch to mirror.
        """
        n, height, width, channels = pixels.shape
        across, down = self._extents(chance)
        rows, columns = np.maximum(1, _whole(down, height)), np.maximum(1, _whole(across, width))
        top = (chance.uniform(0, 1) * (height - rows + 1)).astype(np.int64)
        left = (chance.uniform(0, 1) * (width - columns + 1)).astype(np.int64)
        mirrored = chance.alternating() if self.flip else np.zeros(n, np.bool_)
        turned = chance.uniform(0, 1) < 0.5 if self.flip_up else np.zeros(n, np.bool_)
        source = _to_nchw(pixels)
        cropped = torch.empty((n, size, size, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
        for i in range(n):
            part = source[i : i + 1, :, top[i] : top[i] + rows[i], left[i] : left[i] + columns[i]]
            resized = _resize(part, size)
            resized = resized.flip(3) if mirrored[i] else resized
            cropped[i] = (resized.flip(2) if turned[i] else resized)[0]
        return cropped

    def _extents(self, chance: _Chance) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return width and height of a random crop of each image, as shares of the sides.

        A crop of nearly all cannot be much wider than high: the area that was drawn is kept, and the ratio gives way.
        """
        area = chance.uniform(self.crop, 1)
        most = np.minimum(math.log(4 / 3), -np.log(area))
        stretch = np.exp(np.clip(chance.uniform(math.log(3 / 4), math.log(4 / 3)), -most, most) / 2)
        return np.sqrt(area) * stretch, np.sqrt(area) / stretch

    def _warp(self, pixels: NDArray[np.uint8], chance: _Chance, size: int) -> torch.Tensor:
        """Crop, rotate, shift and flip in one affine map with bilinear sampling, edges mirrored."""
        n = len(pixels)
        angle = np.deg2rad(chance.uniform(-self.rotate, self.rotate))
        lean = np.tan(np.deg2rad(chance.uniform(-self.shear, self.shear)))
        size_ = chance.uniform(1 - self.scale, 1 + self.scale)
        across, down = self._extents(chance) if self.crop < 1.0 else (np.ones(n), np.ones(n))
        across, down = across / size_, down / size_
        # A crop lies anywhere inside the picture; a shift may leave it.
        right = chance.uniform(-1, 1) * (1 - across) + 2 * chance.uniform(-self.shift, self.shift)
        below = chance.uniform(-1, 1) * (1 - down) + 2 * chance.uniform(-self.shift, self.shift)
        sign = np.where(chance.alternating(), -1.0, 1.0) if self.flip else np.ones(n)
        down = np.where(chance.uniform(0, 1) < 0.5, -down, down) if self.flip_up else down
        cos, sin = np.cos(angle), np.sin(angle)
        theta = np.empty((n, 2, 3))  # where a pixel comes from: turned after leant after scaled
        theta[:, 0] = np.stack([sign * across * cos, down * (lean * cos - sin), right], axis=1)
        theta[:, 1] = np.stack([sign * across * sin, down * (lean * sin + cos), below], axis=1)
        images = _to_nchw(pixels).float()
        grid = F.affine_grid(torch.from_numpy(theta).float(), [n, images.shape[1], size, size], align_corners=False)
        warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return _to_uint8(warped)

    def _recolour(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change brightness, contrast and (of colour images) saturation, each by a factor near 1, hue, and colour."""
        changed = images.float()
        light, contrast, colour = (
            _column(chance.uniform(1 - strength, 1 + strength))
            for strength in (max(self.colour, own) for own in (self.brightness, self.contrast, self.saturation))
        )
        changed = changed * light
        changed = torch.lerp(changed.mean(dim=(1, 2, 3), keepdim=True), changed, contrast)
        if images.shape[1] == 3:
            colour = colour * _column(chance.uniform(0, 1) >= self.grey)
            changed = torch.lerp(changed.mean(dim=1, keepdim=True), changed, colour)
            if self.hue:
                changed = _turn_hue(changed, chance.uniform(-self.hue, self.hue))
        return _to_uint8(changed)

    def _follow_policy(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Apply two random operations of one strength, or one of a random strength, to each image."""
        from linnaeus.data.policies import apply_operation

        operations = 2 if self.policy == "randaugment" else 1
        changed = images
        for _ in range(operations):
            which, sign = chance.uniform(0, 1), np.where(chance.uniform(0, 1) < 0.5, -1.0, 1.0)
            strength = np.full(len(images), self.policy_strength)
            if self.policy == "trivialaugment":
                strength = chance.uniform(0, 1)
            drawn = enumerate(zip(which, strength, sign))
            changed = torch.cat([apply_operation(changed[i : i + 1], *how) for i, how in drawn])
        return changed.contiguous(memory_format=torch.channels_last)

    def _erase(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Fill one square of each image with middle grey."""
        height, width = images.shape[2:]
        side = max(1, round(self.erase * min(height, width)))
        top = torch.from_numpy((chance.uniform(0, 1) * (height - side + 1)).astype(np.int64))
        left = torch.from_numpy((chance.uniform(0, 1) * (width - side + 1)).astype(np.int64))
        rows, columns = torch.arange(height)[None] - top[:, None], torch.arange(width)[None] - left[:, None]
        inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
        return images.masked_fill(inside[:, None], 128)


def _column(values: NDArray[Any]) -> torch.Tensor:
    """Return float (N, 1, 1, 1), one value for each image."""
    return torch.from_numpy(values).float()[:, None, None, None]


# Red, green and blue to brightness and two axes of colour (YIQ, of NTSC), in which hue is an angle.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def _turn_hue(images: torch.Tensor, turns: NDArray[np.float64]) -> torch.Tensor:
    """Turn the colours of float (N, 3, H, W) by a share of the circle, float64 (N,)."""
    angle = torch.from_numpy(2 * np.pi * turns).float()
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    turn[:, 1, 1], turn[:, 1, 2] = angle.cos(), -angle.sin()
    turn[:, 2, 1], turn[:, 2, 2] = angle.sin(), angle.cos()
    return torch.einsum("nij,njhw->nihw", _FROM_YIQ @ turn @ _TO_YIQ, images)


def _blur(images: torch.Tensor, sigmas: NDArray[np.float64], *, most: float) -> torch.Tensor:
    """Convolve each of uint8 (N, C, H, W) with a Gaussian of its own standard deviation in pixels, float64 (N,)."""
    n, channels, height, width = images.shape
    reach = min(int(np.ceil(3 * most)), height - 1, width - 1)
    if reach < 1:
        return images
    places = torch.arange(-reach, reach + 1).float()
    weights = torch.exp(-0.5 * (places / torch.from_numpy(np.maximum(sigmas, 1e-3)).float()[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images.float().reshape(1, n * channels, height, width), (reach,) * 4, mode="reflect")
    planes = F.conv2d(planes, weights[:, None, :, None], groups=n * channels)
    planes = F.conv2d(planes, weights[:, None, None, :], groups=n * channels)
    return _to_uint8(planes.reshape(images.shape)).contiguous(memory_format=torch.channels_last)


def _add_noise(
    images: torch.Tensor, deviations: NDArray[np.float64], seed: int, epoch: int, samples: NDArray[np.int64]
) -> torch.Tensor:
    """Add Gaussian noise, of a standard deviation for each image as a share of 255, float64 (N,)."""
    noise = np.stack([
        np.random.Generator(np.random.Philox(key=[seed + _NOISE_STREAM, (epoch << 40) + int(sample)])).standard_normal(
            images.shape[1:], dtype=np.float32
        )
        for sample in samples
    ])  # fmt: skip
    noisy = images.float() + torch.from_numpy(noise) * 255 * _column(deviations)
    return _to_uint8(noisy).contiguous(memory_format=torch.channels_last)


def _whole(shares: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    return np.rint(shares * side).astype(np.int64)


def _mirrored(side: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 (N, side): the source positions of a shifted row, mirrored at the edges."""
    positions = np.abs(np.arange(side)[None] + offsets[:, None])
    mirrored: NDArray[np.int64] = np.where(positions < side, positions, 2 * (side - 1) - positions)
    return mirrored


def _to_nchw(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """View pixels (N, H, W, C) as (N, C, H, W) without a copy where memory allows: channels last."""
    contiguous = np.ascontiguousarray(pixels)
    if not contiguous.flags.writeable:  # a memory map: torch has no read-only tensors
        contiguous = contiguous.copy()
    return torch.from_numpy(contiguous).permute(0, 3, 1, 2)


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def _to_uint8(images: torch.Tensor) -> torch.Tensor:
    return images.round_().clamp_(0, 255).to(torch.uint8)
