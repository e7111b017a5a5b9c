"""Decode and classify JPEG files one after the other in a bare loop: what serving them can at best come to.

python serving_rival.py model.onnx FOLDER --seconds 5

Knows nothing of linnaeus. Prints one JSON object with the images a second.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Classify for some seconds, and print how many images there were in one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.network, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    height, width = wanted.shape[2:]
    files = [path.read_bytes() for path in sorted(options.folder.rglob("*.jpg"))]

    def classify(data: bytes) -> None:
        picture = Image.open(io.BytesIO(data))
        picture.draft("RGB", (2 * width, 2 * height))  # as linnaeus decodes, which is faster
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels = (np.asarray(resized, np.float32) / 255 - 0.5) / 0.5
        session.run(None, {wanted.name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})

    for data in files[:3]:
        classify(data)
    count, start = 0, time.perf_counter()
    for data in itertools.cycle(files):
        classify(data)
        count += 1
        if time.perf_counter() - start > options.seconds:
            break
    print(json.dumps({"images_per_second": count / (time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
