"""Feeding a network from a folder as a run of linnaeus does it.

    LINNAEUS_CACHE=NEW_FOLDER python feeding_ours.py FOLDER

The first epoch's time begins before the folder is opened and includes the look at the pictures, the hash of every
file, the decoding, the pack and the search for identical pictures. What comes out are the network's inputs: float32,
mean and deviation removed, which is more than the rival's ToTensor does.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from linnaeus.config import Settings
from linnaeus.data.augment import Augment
from linnaeus.data.loaders import Loader
from linnaeus.data.preparation import build_dataset
from linnaeus.data.sources import open_source
from linnaeus.data.survey import survey
from linnaeus.models.registry import find_model
from linnaeus.recipes import Chooser, choose_preprocess
from linnaeus.runtime import keep_memory
from linnaeus.training.tasks import Normalizer

# No part is held back, so that the epoch has every picture, as the rival's has.
SETTINGS = {
    "model": "efficientnet_lite0",
    "image_size": 224,
    "batch_size": 32,
    "crop": 0.35,
    "flip": True,
    "workers": 2,
}


def open_loader(folder: str) -> tuple[Loader, Normalizer]:
    """Return the batches, and what makes a network's input of them."""
    chooser = Chooser(settings=Settings.of(SETTINGS))
    source = open_source(folder)
    look = survey(source)
    preprocess = choose_preprocess(chooser, look, find_model(chooser.settings.model), at_hand=True)
    dataset = build_dataset(source, preprocess, chooser.settings, divide=False)
    loader = Loader(
        pixels=dataset.prepared.pixels,
        labels=source.labels,
        indices=dataset.indices("all"),
        batch_size=chooser.settings.batch_size,
        augment=Augment(flip=chooser.settings.flip, crop=chooser.settings.crop),
        shuffle=True,
        workers=chooser.settings.workers,
    )
    return loader, Normalizer(preprocess, torch.device("cpu"))


def count_epoch(loader: Loader, normalize: Normalizer, epoch: int) -> int:
    """Go through an epoch and return how many images it gave."""
    return sum(len(normalize(batch.pixels)) for batch in loader.batches(epoch))


def main() -> None:
    """Feed two epochs and print how many images a second each gave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)  # in each of the loader's workers, as a DataLoader's workers have one
    rates, start = [], time.perf_counter()
    loader, normalize = open_loader(options.folder)
    for epoch in range(2):
        images = count_epoch(loader, normalize, epoch)
        now = time.perf_counter()
        rates.append(images / (now - start))
        start = now
    print(json.dumps({"first": rates[0], "second": rates[1], "images": images}))


if __name__ == "__main__":
    main()
