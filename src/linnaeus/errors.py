"""The exceptions of linnaeus, all in one tree.

    LinnaeusError                 a user's mistake or a fault of the outside world: exit code 2, no traceback
    ├── SettingError              an unknown setting, a value out of range, settings that contradict each other
    ├── DataError                 a data set that is missing, empty, inconsistent or unreadable
    │   ├── ImageError            one image that cannot be read
    │   └── DownloadError         a named data set or weights that could not be fetched whole
    ├── ModelError                an unknown model name, or a model that does not fit the pictures
    ├── BundleError               a bundle that is missing, damaged or from a newer version
    ├── RunError                  a run folder that is in use, absent, or does not fit what is asked of it
    ├── TrainingError             training that cannot go on (the loss is no longer a number)
    │   └── MemoryLimitError      training that needs more memory than there is
    ├── StorageError              a disk that is full, or a place that cannot be written or read
    └── MissingExtraError         an optional part that is not installed

Every message has one shape: what was expected, what came instead, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_EXTRAS = {"optuna": "tune"} | dict.fromkeys(("torch", "torchvision", "timm", "sklearn", "safetensors"), "train")


class LinnaeusError(Exception):
    """The root of every error that linnaeus raises on purpose.

    Args:
        expected: what should have been there, as a noun phrase ("a folder of pictures").
        got: what was there instead.
        fix: one imperative sentence that tells how to mend it.
    """

    exit_code = 2

    def __init__(self, expected: str, *, got: str, fix: str) -> None:
        super().__init__(f"Expected {expected}. Got {got}. {fix}")
        self.expected = expected
        self.got = got
        self.fix = fix


class SettingError(LinnaeusError):
    """A setting that does not exist, is out of range or contradicts another."""


class DataError(LinnaeusError):
    """A data set that is missing, empty or inconsistent."""


class ImageError(DataError):
    """An image that cannot be read."""


class DownloadError(DataError):
    """A file that could not be fetched whole."""


class ModelError(LinnaeusError):
    """A model that does not exist or does not fit the pictures."""


class BundleError(LinnaeusError):
    """A bundle that is missing, damaged or from a newer version."""


class RunError(LinnaeusError):
    """A run folder that is in use or does not fit what is asked of it."""


class TrainingError(LinnaeusError):
    """Training that cannot go on."""


class MemoryLimitError(TrainingError):
    """Training that needs more memory than there is."""

    def __init__(self, got: str) -> None:
        fix = "Set a smaller train_size or image_size, or choose a smaller model."
        super().__init__("memory for a step of training", got=got, fix=fix)


class StorageError(LinnaeusError):
    """A disk, folder or file that cannot be written or read."""


class MissingExtraError(LinnaeusError):
    """An optional part that is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"the package {package!r}, which this needs",
            got="an installation without it",
            fix=f'Run: pip install "linnaeus[{extra}]"',
        )


def explain_missing(error: ModuleNotFoundError) -> Exception:
    """Return the error to raise for a module that is not there: ours if an extra of linnaeus brings it, else itself."""
    name = error.name or ""
    return MissingExtraError(name, extra=_EXTRAS[name]) if name in _EXTRAS else error


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" with the names nearest to a mistyped one, or where to see them all."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known)[:20])}."
