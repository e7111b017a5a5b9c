"""The bundle: the one artefact that crosses from training to use.

A folder of plain files, no pickle, no class to import named in any of them:

    model.onnx          what runs: float32 (N, C, H, W) in, logits float32 (N, K) out; softmax makes them probabilities,
                        sigmoid where an image may have several labels
    model.safetensors   the same weights, to train further from
    bundle.json         architecture, classes, preprocessing, recipe, scores, versions, licence of the base weights;
                        where an image may have several labels, that, and from which probability on each is given
    parts.npy           the digest of each image of the data with its part, so that what was trained on stays known
    config.json         for timm's architectures only, so that timm.create_model("local-dir:...") opens the folder
    MANIFEST.sha256     the hash of every other file; one that differs refuses the bundle
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import BundleError, SettingError
from linnaeus.images import Preprocess
from linnaeus.labelling import LABELLINGS, SINGLE, Labelling
from linnaeus.storage import find_folder, new_folder

# A bundle of one label an image is still of format 1; of several, older versions would take softmax for sigmoid.
FORMAT = 2
_PARTS_WIDTH = 17  # a digest of 16 bytes, then the part
MANIFEST = "MANIFEST.sha256"
_REQUIRED = ("model.onnx", "bundle.json")
_REBUILD = "Restore the bundle from a copy, or write it anew with `linnaeus train`."


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Which network the weights belong to: a registered name and the keyword arguments that rebuild it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained classifier on disk.

    Attributes:
        classes: K names in the order of the logits.
        thresholds: for each class the probability from which on it is given; empty where an image has one label.
    """

    folder: Path
    architecture: Architecture
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: Mapping[str, Any]
    facts: Mapping[str, Any]
    labelling: Labelling = SINGLE
    thresholds: tuple[float, ...] = ()

    @property
    def onnx_file(self) -> Path:
        """The network that runs."""
        return self.folder / "model.onnx"

    @property
    def weights_file(self) -> Path:
        """The weights to train further from."""
        return self.folder / "model.safetensors"

    def read_parts(self) -> NDArray[np.uint8]:
        """Return uint8 (n, 17): the digest of each image of the run's data and its part; n is 0 if it keeps none.

        Raises BundleError.
        """
        file = self.folder / "parts.npy"
        if not file.exists():
            return np.empty((0, _PARTS_WIDTH), np.uint8)
        try:
            table = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleError(f"{file} as linnaeus writes it", got=str(error), fix=_REBUILD) from None
        if table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != _PARTS_WIDTH:
            raise BundleError(f"{file} of uint8 (n, {_PARTS_WIDTH})", got=f"{table.dtype} {table.shape}", fix=_REBUILD)
        parts: NDArray[np.uint8] = table
        return parts


def write_bundle(bundle: Bundle, files: Mapping[str, bytes]) -> None:
    """Write a bundle's folder whole or not at all; `files` hold model.onnx, model.safetensors and what else belongs."""
    several = {"labelling": bundle.labelling.name, "thresholds": list(bundle.thresholds)}
    description = {
        "format": 1 if bundle.labelling is SINGLE else FORMAT,
        "architecture": {"name": bundle.architecture.name, "options": dict(bundle.architecture.options)},
        "classes": list(bundle.classes),
        **({} if bundle.labelling is SINGLE else several),
        "preprocess": bundle.preprocess.to_dict(),
        "recipe": dict(bundle.recipe),
        "facts": dict(bundle.facts),
    }
    contents = {**files, "bundle.json": (json.dumps(description, indent=2, allow_nan=False) + "\n").encode()}
    with new_folder(bundle.folder) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_text(_manifest(contents))


def _manifest(contents: Mapping[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items()))


def find_bundle(path: str | Path) -> Path:
    """Return the bundle's folder for a path to it or to its run folder. Raises BundleError."""
    given = Path(os.path.abspath(path))
    try:
        inside = find_folder(given / "bundle")
        folder = inside if inside.is_dir() else find_folder(given)
        if (folder / MANIFEST).is_file():
            return folder
        got = f"{str(path)!r}, which " + (f"holds no {MANIFEST}" if folder.exists() else "does not exist")
    except OSError as error:  # a name too long, a folder that may not be entered
        got = f"{str(path)!r}: {error.strerror}"
    raise BundleError("a bundle or a run folder", got=got, fix="Name the folder that `linnaeus train` wrote.")


def read_bundle(path: str | Path) -> Bundle:
    """Open a bundle (or the one in a run folder) after checking every file's hash. Raises BundleError."""
    folder = find_bundle(path)
    _check_hashes(folder)
    try:
        return _parse(folder, json.loads((folder / "bundle.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, RecursionError, SettingError) as error:
        raise BundleError(f"a valid {folder / 'bundle.json'}", got=f"{error}", fix=_REBUILD) from None


def _check_hashes(folder: Path) -> None:
    listed = _read_manifest(folder)
    for name in _REQUIRED:
        if name not in listed:
            raise BundleError(f"{name} in {folder / MANIFEST}", got="a list without it", fix=_REBUILD)
    for name, expected in listed.items():
        actual = _hash_file(folder / name)
        if actual != expected:
            got = "no such file" if actual is None else f"SHA-256 {actual[:12]}..."
            raise BundleError(f"{folder / name} with SHA-256 {expected[:12]}...", got=got, fix=_REBUILD)


def _read_manifest(folder: Path) -> dict[str, str]:
    listed = {}
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} that can be read", got=str(error), fix=_REBUILD) from None
    for line in text.removesuffix("\n").split("\n"):
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != 64 or Path(name).name != name or not text.endswith("\n"):
            raise BundleError(
                f"lines of a hash and a file name in {folder / MANIFEST}", got=repr(line[:90]), fix=_REBUILD
            )
        listed[name] = digest
    return listed


def _hash_file(path: Path) -> str | None:
    if not path.is_file():  # a pipe would wait for ever
        return None
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _parse(folder: Path, description: Mapping[str, Any]) -> Bundle:
    found = description["format"]
    if not isinstance(found, int) or found > FORMAT:
        raise BundleError(
            f"a bundle of format {FORMAT} or older", got=f"format {found}", fix="Run: pip install --upgrade linnaeus"
        )
    architecture = description["architecture"]
    if not isinstance(description["recipe"], dict) or not isinstance(description["facts"], dict):
        raise TypeError("a recipe or facts without names")
    classes, labelling = _parse_classes(description["classes"]), LABELLINGS[description.get("labelling", SINGLE.name)]
    return Bundle(
        folder=folder,
        architecture=Architecture(name=architecture["name"], options=architecture["options"]),
        classes=classes,
        labelling=labelling,
        thresholds=() if labelling is SINGLE else _parse_thresholds(description["thresholds"], len(classes)),
        preprocess=Preprocess.from_dict(description["preprocess"]),
        recipe=description["recipe"],
        facts=description["facts"],
    )


def _parse_classes(names: Any) -> tuple[str, ...]:
    """Return the class names. Raises ValueError unless they are two or more different texts."""
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"the classes {str(names)[:90]}")
    return tuple(names)


def _parse_thresholds(values: Any, classes: int) -> tuple[float, ...]:
    """Return the thresholds. Raises ValueError unless they are a number in [0, 1] for each class."""
    numbers = isinstance(values, list) and all(isinstance(value, float | int) and 0 <= value <= 1 for value in values)
    if not numbers or len(values) != classes:
        raise ValueError(f"the thresholds {str(values)[:90]}")
    return tuple(map(float, values))
