"""Views of a picture: what test-time augmentation averages the answers over.

With views v of an image x and a network's probabilities p, the answer is mean_v p(v(x)); the five places with their
mirror images are those of Krizhevsky et al. 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnaeus.images import Preprocess

_SHIFT = 1 / 16  # of the side


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture as it is, mirrored left to right or not, and moved by pixels; its edges fill what comes free."""

    mirrored: bool = False
    right: int = 0
    down: int = 0

    def rows(self, height: int) -> NDArray[np.int64]:
        """Return int64 (height,): which row of the picture each row of the view shows."""
        return np.clip(np.arange(height) - self.down, 0, height - 1).astype(np.int64)

    def columns(self, width: int) -> NDArray[np.int64]:
        """Return int64 (width,): which column of the picture each column of the view shows."""
        places = np.clip(np.arange(width) - self.right, 0, width - 1).astype(np.int64)
        return width - 1 - places if self.mirrored else places

    def show(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the view of each picture of uint8 (N, H, W, C), contiguous."""
        height, width = pixels.shape[1:3]
        return np.ascontiguousarray(pixels[:, self.rows(height)][:, :, self.columns(width)])


def list_views(name: str, preprocess: Preprocess) -> tuple[View, ...]:
    """Return the views that a value of the setting `tta` means: "none", "flip", "shifts" or "flip_shifts"."""
    across, down = (max(1, round(_SHIFT * side)) for side in (preprocess.width, preprocess.height))
    places = [(0, 0)]
    if "shifts" in name:
        places += [(across, 0), (-across, 0), (0, down), (0, -down)]
    sides = (False, True) if "flip" in name else (False,)
    return tuple(View(mirrored=side, right=x, down=y) for side in sides for x, y in places)
