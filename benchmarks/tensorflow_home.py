"""TensorFlow in an environment of its own, so that it cannot disturb the one that is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from measuring import BENCH, Skip

_HOME = BENCH / "tensorflow"
_PACKAGES = ("tensorflow", "scipy")  # SciPy: ImageDataGenerator rotates with it


def find_tensorflow() -> Path:
    """Return the Python that has TensorFlow, after installing it where it is not yet. Raises Skip."""
    python = _HOME / "bin" / "python"
    done = _HOME / ".installed"
    if done.is_file() and python.is_file():
        return python
    print(f"Installing TensorFlow into {_HOME}, once ...", flush=True)
    try:
        _run(sys.executable, "-m", "venv", "--clear", _HOME)
        _run(python, "-m", "pip", "install", "--quiet", *_PACKAGES)
        _run(python, "-c", "import tensorflow, scipy")
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise Skip(f"TensorFlow could not be installed: {' '.join(last)}") from None
    done.write_text("\n".join(_PACKAGES) + "\n")
    return python


def plain_environment() -> dict[str, str]:
    """Return an environment in which that Python sees nothing of linnaeus."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env=plain_environment())
