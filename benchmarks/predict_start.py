"""What `linnaeus predict` costs beyond the network itself, when it is started for one picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from measuring import Bench, Figure, in_rounds, median, run_linnaeus, run_script


def measure(bench: Bench) -> Iterator[Figure]:
    """Wall time of `linnaeus predict` for one JPEG less that of predict_rival.py, whole processes; its peak memory.

    An EfficientNet-Lite0 at 224 pixels, a picture of 853 x 640; linnaeus also checks the hash of every file of the
    bundle. Median of the pairs, the order reversed every other pair, after one pair that does not count. Targets: at
    most 0.25 s, and less than 250 MB.
    """
    bundle, picture = _train(bench), _take_picture(bench)
    sides = {
        "ours": lambda i: run_linnaeus("predict", bundle, picture),
        "bare": lambda i: run_script("predict_rival.py", bundle / "model.onnx", picture),
    }
    in_rounds(sides, 1)
    found = in_rounds(sides, 3 if bench.quick else 11)
    seconds = {side: [outcome.seconds for outcome in outcomes] for side, outcomes in found.items()}
    peaks = {side: [outcome.peak_bytes / 1e6 for outcome in outcomes] for side, outcomes in found.items()}
    more = [a - b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    ours, bare = median(seconds["ours"]), median(seconds["bare"])
    yield Figure(
        what=f"one picture, beyond a bare script ({ours:.2f} s less {bare:.2f} s)",
        value=median(more), unit=" s", at_most=0.25, details=seconds,
    )  # fmt: skip
    yield Figure(
        what=f"one picture, peak memory (bare script {median(peaks['bare']):.0f} MB)",
        value=max(peaks["ours"]), unit=" MB", at_most=250.0, details=peaks,
    )  # fmt: skip


def _train(bench: Bench) -> Path:
    """Return a bundle; how well it does plays no part here."""
    folder, out = bench.folder("pictures") / "set", bench.folder("run") / "run"
    run_script("make_pictures.py", folder, "--number", "80", "--side", "224")
    settings = ("model=efficientnet_lite0", "image_size=224", "budget=5s")
    run_linnaeus("train", folder, *settings, "--out", out, cache=bench.folder("cache"))
    return out / "bundle"


def _take_picture(bench: Bench) -> Path:
    folder = bench.folder("pictures") / "one"
    run_script("make_pictures.py", folder, "--number", "1", "--side", "640")
    return next(folder.rglob("*.jpg"))
