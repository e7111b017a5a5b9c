"""The open bundles of a service by name, and their exchange while it runs."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from linnaeus.bundle import MANIFEST, find_bundle, read_bundle
from linnaeus.decoding import Picture
from linnaeus.errors import BundleError
from linnaeus.predictor import Predictor

_INSPECTION_SECONDS = 120
_log = logging.getLogger("linnaeus.serving")

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenModel:
    """A bundle that answers. `version` is the first half of the SHA-256 of its manifest, which seals every file."""

    name: str
    version: str
    predictor: Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        return self.predictor.classes

    def prepare(self, picture: Picture) -> NDArray[np.uint8]:
        """Return uint8 (height, width, channels) of any picture, as the network wants it. Raises ImageError."""
        return self.predictor.bundle.preprocess.load(picture)

    def compute(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return probabilities float32 (N, K) of N prepared pictures."""
        return self.predictor.predict_pixels(np.stack(pictures))


def open_model(name: str, path: str | Path) -> OpenModel:
    """Open a bundle, every hash checked, and let it answer one grey picture. Raises BundleError.

    Its network computes on the thread that calls it. Several callers at one time then use several cores, and none
    waits for a thread that another program has pushed aside, which can take half of the speed and more.
    """
    version = read_version(path)
    predictor = Predictor(read_bundle(path), threads=1)
    model = OpenModel(name=name, version=version, predictor=predictor)
    wanted = predictor.bundle.preprocess
    model.compute([np.full((wanted.height, wanted.width, wanted.channels), 128, np.uint8)])
    if read_version(path) != version:
        raise BundleError(f"a bundle at rest in {path}", got="one that is being written", fix="Try again.")
    return model


def read_version(path: str | Path) -> str:
    """Return the version of the bundle that lies at a path. Raises BundleError."""
    folder = find_bundle(path)
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise BundleError(f"a manifest in {folder}", got=str(error), fix="Try again.") from None


class Shelf:
    """Open models by name, each from a path that is looked at again and again.

    Args:
        bundles: a path for each name.
        on_change: called for each new bundle with the old model and the new one, None if that is refused.

    Raises BundleError.
    """

    def __init__(
        self,
        bundles: Mapping[str, str],
        *,
        on_change: Callable[[OpenModel, OpenModel | None], None] = lambda old, new: None,
    ) -> None:
        self._paths, self._on_change = dict(bundles), on_change
        self._seen = {name: sign_files(path) for name, path in bundles.items()}
        self._settled = dict(self._seen)
        self._models = {name: open_model(name, path) for name, path in bundles.items()}

    def __iter__(self) -> Iterator[OpenModel]:
        return iter(list(self._models.values()))

    def find(self, name: str | None = None) -> OpenModel | None:
        """Return the model of a name, or the first one; None if there is none of that name."""
        return self._models.get(name) if name is not None else next(iter(self._models.values()))

    def refresh(self) -> None:
        """Exchange every model whose files have changed since they were last looked at and lie still now.

        The new bundle is opened in a process of its own first, so that not even a network that brings ONNX Runtime
        down can harm the service. A bundle that is not good is refused and told; the old one goes on answering, and
        the new one is looked at again when its files change. Those who hold the old model may finish with it.
        """
        for name, path in self._paths.items():
            signature = sign_files(path)
            at_rest, self._seen[name] = signature == self._seen[name], signature
            if at_rest and signature and signature != self._settled[name]:
                self._settled[name] = signature
                self._exchange(name, path)

    def _exchange(self, name: str, path: str) -> None:
        old = self._models[name]
        try:
            inspect_bundle(path)
            if read_version(path) == old.version:  # touched, or put back
                return
            new = open_model(name, path)
        except BundleError as error:
            _log.error("%s: a new bundle is refused, version %s goes on answering. %s", name, old.version[:12], error)
            self._on_change(old, None)
            return
        self._models[name] = new
        _log.info("%s: version %s answers from now on, after %s", name, new.version[:12], old.version[:12])
        self._on_change(old, new)


def sign_files(path: str) -> Signature:
    """Return name, size, time and number of each file of a bundle; nothing if there is none now."""
    try:
        with os.scandir(find_bundle(path)) as entries:
            stats = sorted((entry.name, entry.stat()) for entry in entries)
    except (BundleError, OSError):
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def inspect_bundle(path: str) -> None:
    """Open a bundle in a process of its own. Raises BundleError with what that process said, or how it ended."""
    command = [sys.executable, "-m", "linnaeus.serving.inspection", path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSPECTION_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        ending = f"one that was not open after {_INSPECTION_SECONDS} s"
    else:
        if done.returncode == 0:
            return
        said = done.stderr.strip().splitlines()
        ending = said[-1] if said and done.returncode > 0 else f"an end by exit code {done.returncode}"
    raise BundleError(f"a bundle that can be opened in {path}", got=ending, fix="Write the bundle anew.")
