"""Make pictures with several labels each: scanned digits or clothes of MNIST's kind, strewn over a larger canvas.

python make_collages.py fashion_mnist FOLDER --number 3000

Each canvas of 56 x 56 pixels holds none to four of the real pictures, each in a quarter of its own and shifted at
random; its labels are the kinds of things on it. Pictures of the set's training part make the canvases to learn from,
those of its test part make the canvases to judge by, so that no thing is seen on both sides. The folder gets
metadata.csv with the columns path, label (such as "bag;coat") and split: `linnaeus train FOLDER label_separator=";"`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnaeus.data.sources import Source, open_source
from linnaeus.results import SPLITS

QUARTER, SPARE = 28, 4
TEST_SHARE = 0.25


def make_collage(source: Source, members: NDArray[np.int64], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Return uint8 (56, 56) with none to four of some pictures of a source, and the sorted names of what is on it."""
    chance = np.random.default_rng(seed)
    canvas = chance.integers(0, 8, (2 * QUARTER, 2 * QUARTER), dtype=np.uint8)  # so that no two empty ones are alike
    names = set()
    for quarter in chance.permutation(4)[: chance.integers(0, 5)]:
        i = int(chance.choice(members))
        picture = np.roll(source.read(i)[..., 0], tuple(chance.integers(-SPARE, SPARE + 1, 2)), (0, 1))
        top, left = QUARTER * (quarter // 2), QUARTER * (quarter % 2)
        place = canvas[top : top + QUARTER, left : left + QUARTER]
        np.maximum(place, picture, out=place)
        names.add(source.classes[int(source.labels[i])])
    return canvas, sorted(names)


def write_collages(source: Source, folder: Path, number: int) -> None:
    """Write that many collages and their table; a quarter of them is to test."""
    assert source.split is not None
    (folder / "pictures").mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for i in range(number):
            part = "test" if i < TEST_SHARE * number else "train"
            members = np.flatnonzero(source.split == SPLITS.index(part))
            canvas, names = make_collage(source, members, i)
            path = f"pictures/{i:06}.png"
            Image.fromarray(canvas).save(folder / path)
            writer.writerow((path, ";".join(names), part))


def main() -> None:
    """Write the collages of a named set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("set", choices=("mnist", "fashion_mnist"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=3000)
    options = parser.parse_args()
    write_collages(open_source(options.set), options.folder, options.number)


if __name__ == "__main__":
    main()
