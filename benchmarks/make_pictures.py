"""Make a folder of pictures that no two are alike, of four classes.

python make_pictures.py FOLDER --number 2000 --side 96
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("amber", "blue", "cyan", "dun")


def make_picture(i: int, side: int) -> Image.Image:
    """Return a smooth random picture whose hue tells its class."""
    chance = np.random.default_rng(i)
    coarse = chance.integers(0, 160, (6, 8, 3), dtype=np.uint8)
    coarse[..., i % 3] += 80 if i % len(CLASSES) < 3 else 0
    return Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def main() -> None:
    """Write the pictures as JPEG files in a folder for each class."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    options = parser.parse_args()
    for name in CLASSES:
        (options.folder / name).mkdir(parents=True)
    for i in range(options.number):
        path = options.folder / CLASSES[i % len(CLASSES)] / f"{i:06}.jpg"
        make_picture(i, options.side).save(path, quality=85)


if __name__ == "__main__":
    main()
