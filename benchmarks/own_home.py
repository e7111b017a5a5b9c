"""Rivals in environments of their own, so that they cannot disturb the one that is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import BENCH, Skip


def find_home(name: str, packages: Sequence[str], *, proof: str) -> Path:
    """Return the Python that has these packages, after installing them where they are not yet.

    `proof` is a line of Python that must run there. Raises Skip.
    """
    home = BENCH / name
    python, done = home / "bin" / "python", home / ".installed"
    if done.is_file() and python.is_file():
        return python
    print(f"Installing {', '.join(packages)} into {home}, once ...", flush=True)
    try:
        _run(sys.executable, "-m", "venv", "--clear", home)
        _run(python, "-m", "pip", "install", "--quiet", *packages)
        _run(python, "-c", proof)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise Skip(f"{name} could not be installed: {' '.join(last)}") from None
    done.write_text("\n".join(packages) + "\n")
    return python


def find_tensorflow() -> Path:
    """Return the Python that has TensorFlow. Raises Skip."""
    packages = ("tensorflow", "scipy")  # SciPy: ImageDataGenerator rotates with it
    return find_home("tensorflow", packages, proof="import tensorflow, scipy")


def plain_environment() -> dict[str, str]:
    """Return an environment in which such a Python sees nothing of linnaeus."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env=plain_environment())
