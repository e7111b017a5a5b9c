"""The ground of a run: what the data are like, and which network is to see them how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.config import AUTO, Settings
from linnaeus.data.preparation import Dataset, build_dataset
from linnaeus.data.sources import Source, open_source
from linnaeus.data.survey import Survey, survey
from linnaeus.display import Display
from linnaeus.images import Preprocess
from linnaeus.judging import columns_of
from linnaeus.labelling import MULTI
from linnaeus.models.registry import Blueprint, Entry, find_model
from linnaeus.models.weights import at_hand
from linnaeus.recipes import Chooser, choose_model, choose_parts, choose_preprocess
from linnaeus.results import SPLITS


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Data that were looked at but not read yet, and the network that was chosen for them."""

    source: Source
    look: Survey
    entry: Entry
    preprocess: Preprocess

    def blueprint(self, settings: Settings) -> Blueprint:
        """Return what the network is built from."""
        return Blueprint(
            name=self.entry.name,
            classes=len(self.source.classes),
            channels=self.preprocess.channels,
            size=self.preprocess.height,
            options=settings.of_network(),
        )


def lay_ground(data: Any, chooser: Chooser, display: Display) -> Ground:
    """Open data as `train` takes them, look at some pictures, and choose network and picture size for them.

    Raises DataError or ModelError.
    """
    if chooser.settings.model != AUTO:
        find_model(chooser.settings.model)  # a name mistyped should be said before anything is fetched
    with display.progress("fetching") as advance:
        source = open_source(data, columns=columns_of(chooser.settings), progress=advance)
    several = ", several of them in an image" if source.labelling is MULTI else ""
    display.say(f"Data: {source.name}, {len(source):,} images of {len(source.classes)} classes{several}")
    for note in source.notes:
        display.say(f"  note: {note}")
    choose_parts(chooser, len(source))
    look = survey(source)
    entry = find_model(choose_model(chooser, look, len(source)))
    preprocess = choose_preprocess(chooser, look, entry, at_hand=at_hand(entry, chooser.settings.weights))
    return Ground(source=source, look=look, entry=entry, preprocess=preprocess)


def read_images(ground: Ground, settings: Settings, display: Display) -> Dataset:
    """Read every image once, and divide those that came without parts. Raises DataError."""
    with display.progress("reading images") as advance:
        return build_dataset(ground.source, ground.preprocess, settings, progress=advance)


def tell_parts(dataset: Dataset, display: Display) -> None:
    """Say how many images each part has, and name what was left out."""
    parts = ", ".join(f"{len(dataset.indices(part)):,} {part}" for part in SPLITS)
    display.say(f"Parts: {parts} ({'as given' if dataset.own_parts else 'split by class'})")
    for image in dataset.prepared.bad:
        display.say(f"  unreadable, left out: {image.path}: {image.reason}")
    if dataset.straddling:
        display.say(f"  warning: {dataset.straddling} pictures have copies on another side of your split")
    if not dataset.prepared.packed:
        display.say("  note: the pack would exceed cache_limit or the disk; images are decoded anew each epoch")
