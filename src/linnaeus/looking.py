"""A look at data before training: what is in them, and a sheet of what the network will see of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnaeus.config import Settings
from linnaeus.data.preparation import Dataset
from linnaeus.data.survey import Survey
from linnaeus.display import Display, Silent
from linnaeus.ground import lay_ground, read_images
from linnaeus.learning.learner import augmentation
from linnaeus.models.registry import Entry
from linnaeus.recipes import Chooser, Situation, choose_training
from linnaeus.runtime import choose_device
from linnaeus.storage import write_file

_ROWS, _COLUMNS = 8, 9  # images, and ways in which each is changed, after the image itself
_GAP, _CELL = 4, 96


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found: the data, what its pictures are like, and the network and settings that a run would use."""

    dataset: Dataset
    survey: Survey
    entry: Entry
    situation: Situation
    settings: Settings

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        source = self.dataset.source
        return {
            "name": source.name,
            "images": len(source),
            "classes": list(source.classes),
            "labelling": source.labelling.name,
            "counts": self.dataset.counts(),
            "median_side": self.survey.side,
            "longest_side": self.survey.longest,
            "grey": self.survey.grey,
            "unreadable": [{"path": image.path, "reason": image.reason} for image in self.dataset.prepared.bad],
            "notes": list(source.notes),
            "settings": self.settings.to_dict(),
        }


def look_at_data(data: Any, *, display: Display | None = None, **settings: Any) -> Look:
    """Read labelled images as `train` would, and choose what it would choose.

    Takes what `train` takes. Raises DataError or SettingError as `train` does; a share of unreadable images is none.
    """
    told = display or Silent()
    chooser = Chooser(settings=Settings.of(settings).replace({"max_bad": 1.0}))
    ground = lay_ground(data, chooser, told)
    dataset = read_images(ground, chooser.settings, told)
    device = choose_device(chooser.settings.device).type
    now = Situation.of(dataset, ground.entry, ground.look, chooser.settings, device=device)
    choose_training(chooser, now)
    return Look(dataset=dataset, survey=ground.look, entry=ground.entry, situation=now, settings=chooser.settings)


def write_sheet(look: Look, path: Path) -> None:
    """Write a PNG with a row for each of some training images: the image, then what training makes of it in turn."""
    rows = [_row(look, int(i)) for i in look.dataset.indices("train", at_most=_ROWS)]
    sheet = np.concatenate([np.concatenate([_frame(cell) for cell in row], axis=1) for row in rows], axis=0)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG")
    write_file(path, stream.getvalue())


def _row(look: Look, index: int) -> list[NDArray[np.uint8]]:
    augment, sample = augmentation(look.settings), np.array([index])
    pixels = look.dataset.prepared.pixels.take(sample)
    changed = [
        augment.apply(pixels, seed=look.settings.seed, epoch=epoch, samples=sample, size=look.settings.train_size)
        for epoch in range(_COLUMNS)
    ]
    return [pixels[0], *(image.permute(0, 2, 3, 1).numpy()[0] for image in changed)]


def _frame(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 (side, side, 3): a picture enlarged or made smaller, in a white frame."""
    colour = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    way = Image.Resampling.NEAREST if len(colour) < _CELL else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(colour).resize((_CELL, _CELL), way))
    return np.pad(small, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)
