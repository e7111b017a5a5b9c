"""What the tests of the commands share: pictures to train on, a bundle to damage, and programs to start."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnaeus.bundle import MANIFEST

SOURCES = Path(__file__).parents[1] / "src"
CLASSES = ("blue", "green", "red")
QUICK = {"model": "simple_cnn", "epochs": 2, "batch_size": 8, "threads": 1, "workers": 0}
QUICK_PAIRS = tuple(f"{name}={value}" for name, value in QUICK.items())
QUICK_FILES = {
    ".lock",
    "bundle/MANIFEST.sha256",
    "bundle/bundle.json",
    "bundle/model.onnx",
    "bundle/model.safetensors",
    "bundle/parts.npy",
    "checkpoints/last.safetensors",
    "config.toml",
    "metrics.jsonl",
    "predictions.csv",
    "report.html",
    "report.json",
    "run.json",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the one JSON document on standard output."""
        return json.loads(self.out)


def colours(count: int, *, size: int = 18, seed: int = 0) -> tuple[NDArray[np.uint8], list[str]]:
    """Return `count` noisy pictures uint8 (N, size, size, 3) of each colour, and their labels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 100, (count * len(CLASSES), size, size, 3), dtype=np.uint8)
    labels = [name for name in CLASSES for _ in range(count)]
    for picture, name in zip(pixels, labels):
        picture[..., 2 - CLASSES.index(name)] += 120
    return pixels, labels


def save_colours(root: Path, count: int, *, names: dict[str, str] | None = None, seed: int = 0) -> Path:
    """Write a folder for each colour, perhaps under another name, and return the root."""
    for i, (picture, name) in enumerate(zip(*colours(count, seed=seed))):
        folder = root / (names or {}).get(name, name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return root


def files_below(folder: Path) -> set[str]:
    """Return the relative paths of all files below a folder, but the events of TensorBoard."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not path.startswith("tensorboard/")}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def sign(bundle: Path, **replaced: bytes) -> None:
    """Replace files of a bundle, `bundle_json` for bundle.json, and write the manifest that fits."""
    for name, data in replaced.items():
        (bundle / name.replace("_", ".")).write_bytes(data)
    names = sorted(path.name for path in bundle.iterdir() if path.name != MANIFEST)
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (bundle / MANIFEST).write_text("".join(lines))


def describe_anew(bundle: Path, **changes: Any) -> None:
    """Change keys of a bundle's description and sign it."""
    description = json.loads((bundle / "bundle.json").read_text())
    sign(bundle, bundle_json=json.dumps(description | changes).encode())


def run_python(code: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program text with linnaeus on its path, and return what came of it."""
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"} | options.pop("env", {})
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200, **options)
