"""Feeding a network from a folder as introductions to PyTorch do it. Knows nothing of linnaeus.

    python feeding_rival.py FOLDER --workers 2

ImageFolder, a random resized crop to 224 pixels that keeps 35 to 100 % of the area, mirroring, ToTensor, and a
DataLoader that shuffles and makes batches of 32. The first epoch's time begins before the folder is opened.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToTensor


def open_loader(folder: str, workers: int) -> DataLoader[Any]:
    """Return the batches."""
    change = Compose([RandomResizedCrop(224, scale=(0.35, 1.0)), RandomHorizontalFlip(), ToTensor()])
    return DataLoader(ImageFolder(folder, change), batch_size=32, shuffle=True, num_workers=workers)


def count_epoch(loader: DataLoader[Any]) -> int:
    """Go through an epoch and return how many images it gave."""
    return sum(len(images) for images, _ in loader)


def main() -> None:
    """Feed two epochs and print how many images a second each gave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    rates, start = [], time.perf_counter()
    loader = open_loader(options.folder, options.workers)
    for _ in range(2):
        images = count_epoch(loader)
        now = time.perf_counter()
        rates.append(images / (now - start))
        start = now
    print(json.dumps({"first": rates[0], "second": rates[1], "images": images}))


if __name__ == "__main__":
    main()
