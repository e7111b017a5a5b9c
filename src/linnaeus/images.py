"""Pictures as arrays: reading them, and fitting them to what a model wants.

The same functions serve training, evaluation and serving, so that all see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnaeus.decoding import Picture, decode, rgb_array
from linnaeus.errors import ImageError, SettingError

MAX_INPUT_SIDE = 4096

Fit = Literal["pad", "crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(source: Picture, *, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read one picture as upright RGB.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array: uint8 (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) with the alpha last, or of floats in [0, 1] in the same shapes.
        at_least: (height, width) that will be enough. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
            never below SCALED_MARGIN times this, which is several times faster.

    Returns:
        uint8 (H, W, 3). It shares memory with the source where that is such an array already.

    Raises:
        ImageError: there is no such file, it is of another format, too large, cut short or damaged.
    """
    return rgb_array(source) if isinstance(source, np.ndarray) else np.array(decode(source, at_least=at_least))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a model wants its pictures; it travels with the weights.

    Attributes:
        height, width: of the model's input, 1 to 4096.
        channels: 3 for RGB, 1 for grey.
        fit: "pad" keeps the whole picture, centred; "crop" fills the input and cuts what stands out on both
            sides; "stretch" changes the proportions.
        mean, std: one value per channel, for pixels in [0, 1].
        interpolation: how pixels are resampled, always with antialiasing.
        fill: the grey, 0 to 255, around a padded picture.

    Raises:
        SettingError: on a value of the wrong type or out of its range.
    """

    height: int
    width: int
    channels: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    fill: int = 128

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            _require(_is_whole(value, 1, MAX_INPUT_SIDE), name, value, f"a whole number from 1 to {MAX_INPUT_SIDE}")
        _require(_is_whole(self.channels, 1, 3) and self.channels != 2, "channels", self.channels, "1 or 3")
        _require(self.fit in get_args(Fit), "fit", self.fit, "pad, crop or stretch")
        _require(
            self.interpolation in get_args(Interpolation), "interpolation", self.interpolation, "bilinear or bicubic"
        )
        _require(_is_whole(self.fill, 0, 255), "fill", self.fill, "a whole number from 0 to 255")
        expected = f"a tuple of {self.channels} finite numbers"
        _require(_are_numbers(self.mean, self.channels), "mean", self.mean, expected)
        positive = _are_numbers(self.std, self.channels) and min(self.std) > 0
        _require(positive, "std", self.std, expected + " above 0")

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit uint8 (H, W, 3) into uint8 (height, width, channels); the very array if it fits already."""
        if image.shape == (self.height, self.width, self.channels):
            return image
        return self._fit(Image.fromarray(np.ascontiguousarray(image)))

    def load(self, source: Picture) -> NDArray[np.uint8]:
        """Read a picture and resize it: uint8 (height, width, channels). Raises ImageError as read_image does."""
        return self._fit(decode(source, at_least=(self.height, self.width)))

    def normalize(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 (N, height, width, channels) into contiguous float32 (N, channels, height, width).

        Each value becomes (value / 255 - mean) / std. Raises ImageError for any other shape or type.
        """
        shape = (self.height, self.width, self.channels)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != shape:
            got = f"{batch.dtype} {batch.shape}"
            raise ImageError(f"a batch of uint8 pictures (N, {shape})", got=got, fix="Pass each through load first.")
        std = np.array(self.std, dtype=np.float64)
        scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
        shift = (-np.array(self.mean, dtype=np.float64) / std).astype(np.float32)[:, None, None]
        planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        result = np.multiply(planes, scale, dtype=np.float32)
        result += shift
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build from what to_dict gave. Raises SettingError on an unknown or missing key or a wrong value."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted(known ^ set(values)):
            raise SettingError(
                f"preprocessing with the keys {', '.join(sorted(known))}",
                got=f"a difference in {', '.join(map(str, wrong))}",
                fix="Write the file anew with this version of linnaeus.",
            )
        lists = {name: tuple(values[name]) for name in ("mean", "std") if isinstance(values[name], list | tuple)}
        return cls(**{**values, **lists})

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        # Grey first: one channel to resample instead of three.
        image = image.convert("L") if self.channels == 1 else image
        fitted = image if image.size == (self.width, self.height) else self._resample(image)
        return np.array(fitted).reshape(self.height, self.width, self.channels)

    def _resample(self, image: Image.Image) -> Image.Image:
        method = _RESAMPLING[self.interpolation]
        if self.fit == "pad":
            return self._pad(image, method)
        box = _middle(image.size, (self.width, self.height)) if self.fit == "crop" else None
        return image.resize((self.width, self.height), method, box=box, reducing_gap=2.0)

    def _pad(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        scale = min(self.width / image.width, self.height / image.height)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        canvas = Image.new(image.mode, (self.width, self.height), (self.fill,) * self.channels)
        small = image.resize((width, height), method, reducing_gap=2.0)
        canvas.paste(small, ((self.width - width) // 2, (self.height - height) // 2))
        return canvas


def _middle(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest centred box of a picture with the proportions wanted.

    Resampling this box alone is resizing the short side and cutting the middle out, without ever
    making the large picture between, which for a strip of 1 x 3000 pixels would fill the memory.
    """
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    width, height = min(size[0], wanted[0] * scale), min(size[1], wanted[1] * scale)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise SettingError(f"{expected} for {name}", got=repr(value), fix=f"Change {name}.")


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, tuple) or len(values) != count:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
