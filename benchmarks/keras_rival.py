"""The usual first CNN in Keras, as introductions to image classification teach it. Knows nothing of linnaeus.

    python keras_rival.py cifar10 FOLDER --epochs 10
    python keras_rival.py cifar10 FOLDER --epochs 10 --augment
    python keras_rival.py fashion_mnist FOLDER --epochs 5

Three 3x3 convolutions of 32, 64 and 64 filters with ReLU, a 2x2 max pool after each of the first two, a dense layer
of 64 and one of 10; Adam at its default rate, batches of 32. All training images are trained on. CIFAR-10 is validated
on the test images after each epoch, Fashion-MNIST is tested once at the end, as the introductions do.
With --augment: rotations to 15 degrees, shifts to a tenth, mirroring, by ImageDataGenerator.

The last line printed is a JSON object with the test accuracy after the last epoch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no talk about GPUs

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.keras.preprocessing.image import ImageDataGenerator

Part = tuple[np.ndarray, np.ndarray]


def read_cifar10(folder: Path) -> tuple[Part, Part]:
    """Return training and test part from the binary version: a label byte, then 3 planes of 32 x 32."""
    training = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar_files(training), _cifar_files([folder / "test_batch.bin"])


def _cifar_files(paths: list[Path]) -> Part:
    records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32) for path in paths])
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def read_fashion_mnist(folder: Path) -> tuple[Part, Part]:
    """Return training and test part from the IDX files."""
    return _idx_pair(folder, "train"), _idx_pair(folder, "t10k")


def _idx_pair(folder: Path, part: str) -> Part:
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1), np.frombuffer(labels, np.uint8, offset=8)


def build(shape: tuple[int, ...]) -> keras.Model:
    """Return the compiled network."""
    model = keras.Sequential(
        [
            layers.Input(shape),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def augmented(x: np.ndarray, y: np.ndarray) -> object:
    """Return batches of 32 that are rotated, shifted and mirrored at random."""
    generator = ImageDataGenerator(
        rotation_range=15, width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True
    )
    return generator.flow(x, y, batch_size=32)


def main() -> None:
    """Train, test, and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("set", choices=("cifar10", "fashion_mnist"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augment", action="store_true")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)

    read = read_cifar10 if options.set == "cifar10" else read_fashion_mnist
    (x, y), (x_test, y_test) = read(options.folder)
    # float32, the quicker of the ways in which this is written: x / 255.0 would give float64
    x, x_test = x.astype(np.float32) / 255, x_test.astype(np.float32) / 255
    model = build(x.shape[1:])

    start = time.perf_counter()
    # verbose=2: one line per epoch; the progress bar would cost Keras a few percent
    also = {"validation_data": (x_test, y_test)} if options.set == "cifar10" else {}
    if options.augment:
        model.fit(augmented(x, y), epochs=options.epochs, verbose=2, **also)
    else:
        model.fit(x, y, batch_size=32, epochs=options.epochs, verbose=2, **also)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    print(json.dumps({"accuracy": 100 * accuracy, "fit_seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    main()
