"""On what the figures were measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The CPU features that decide how fast a network computes.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")
_PACKAGES = ("linnaeus", "torch", "torchvision", "onnxruntime", "numpy", "pillow", "timm")


def describe_machine() -> dict[str, Any]:
    """Return CPU, its features, cores, memory, load, versions and date."""
    info = _read_pairs(Path("/proc/cpuinfo"))
    memory = _read_pairs(Path("/proc/meminfo")).get("MemTotal", "0 kB").split()[0]
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "family_model_stepping": "/".join(info.get(name, "?") for name in ("cpu family", "model", "stepping")),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": available_cores(),
        "memory_gb": round(int(memory) / 1e6, 1),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tell_machine(machine: dict[str, Any]) -> str:
    """Return the description on one line."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu']} ({machine['family_model_stepping']}; {' '.join(machine['flags'])}), "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}, {packages}, "
        f"{machine['date']}"
    )


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_pairs(path: Path) -> dict[str, str]:
    """Return the first value of each name in a file of "name : value" lines; nothing where there is no such file."""
    pairs: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return pairs
    for line in lines:
        name, _, value = line.partition(":")
        pairs.setdefault(name.strip(), value.strip())
    return pairs


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
