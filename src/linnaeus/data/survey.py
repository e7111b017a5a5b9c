"""A first look at a source: how large, how long and how colourful its pictures are. A few dozen are opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnaeus.data.sources import Source
from linnaeus.decoding import read_size
from linnaeus.errors import ImageError

_LOOKED_AT = 48


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the pictures of a source are like.

    Attributes:
        side: median of the shorter sides in pixels. longest: the largest side met.
        aspect: 90th percentile of longer over shorter side.
        grey: whether no picture has colour.
    """

    side: int
    longest: int
    aspect: float
    grey: bool

    @property
    def small(self) -> bool:
        """Whether these are small pictures (digits, thumbnails) rather than photographs."""
        return self.side <= 64


def survey(source: Source) -> Survey:
    """Look at some pictures spread over a source. Raises ImageError if none of them can be read."""
    step = max(1, len(source) // _LOOKED_AT)
    sizes, colourful, failure = [], False, None
    for i in range(0, len(source), step):
        try:
            pixels = source.read(i, at_least=(64, 64))
            sizes.append(_size(source, i, pixels))
            colourful = colourful or bool(np.ptp(pixels.astype(np.int16), axis=2).max() > 12)
        except ImageError as error:
            failure = error
    if not sizes:
        assert failure is not None
        raise failure
    sides = np.array(sizes)
    short, long = sides.min(axis=1), sides.max(axis=1)
    aspect = float(np.percentile(long / short, 90))
    return Survey(side=int(np.median(short)), longest=int(long.max()), aspect=aspect, grey=not colourful)


def _size(source: Source, index: int, pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the true size: a JPEG may have been decoded at a fraction of it."""
    picture = source.images[index]
    return read_size(picture) if isinstance(picture, str) else pixels.shape[:2]
