"""The operations that RandAugment and TrivialAugment choose from, on one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms.v2 import functional as V

_TURN, _LEAN, _MOVE, _CHANGE = 30.0, 17.0, 0.45, 0.9  # degrees, degrees (a slope of 0.3), share of the side, factor

Operation = Callable[[torch.Tensor, float], torch.Tensor]


def _affine(
    image: torch.Tensor, *, right: float = 0.0, down: float = 0.0, lean: tuple[float, float] = (0.0, 0.0)
) -> torch.Tensor:
    height, width = image.shape[-2:]
    moved: torch.Tensor = V.affine(
        image, angle=0.0, translate=[round(right * width), round(down * height)], scale=1.0, shear=list(lean)
    )
    return moved


# Each takes uint8 (1, C, H, W) and a strength in [-1, 1]; the sign says in which direction, where there are two.
_OPERATIONS: tuple[Operation, ...] = (
    lambda image, s: image,
    lambda image, s: _affine(image, lean=(_LEAN * s, 0.0)),
    lambda image, s: _affine(image, lean=(0.0, _LEAN * s)),
    lambda image, s: _affine(image, right=_MOVE * s),
    lambda image, s: _affine(image, down=_MOVE * s),
    lambda image, s: V.rotate(image, _TURN * s),
    lambda image, s: V.adjust_brightness(image, 1 + _CHANGE * s),
    lambda image, s: V.adjust_saturation(image, 1 + _CHANGE * s),
    lambda image, s: V.adjust_contrast(image, 1 + _CHANGE * s),
    lambda image, s: V.adjust_sharpness(image, 1 + _CHANGE * s),
    lambda image, s: V.posterize(image, 8 - round(6 * abs(s))),
    lambda image, s: V.solarize(image, 255 * (1 - abs(s))),
    lambda image, s: V.autocontrast(image),
    lambda image, s: V.equalize(image),
)


def apply_operation(image: torch.Tensor, which: float, strength: float, sign: float) -> torch.Tensor:
    """Return uint8 (1, C, H, W) after one of the operations.

    Args:
        image: uint8 (1, C, H, W). which: in [0, 1), evenly over all operations. strength: in [0, 1]. sign: -1 or 1.
    """
    return _OPERATIONS[int(which * len(_OPERATIONS))](image, strength * sign)
