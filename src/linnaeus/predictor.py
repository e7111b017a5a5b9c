"""Predictor: a bundle that answers. ONNX Runtime, NumPy and Pillow only; the same code judges, predicts and serves."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from linnaeus.bundle import Bundle, read_bundle
from linnaeus.decoding import SUFFIXES
from linnaeus.errors import BundleError, DataError, ImageError
from linnaeus.labelling import MULTI
from linnaeus.results import BadImage, Predictions

BATCH = 32
_FATAL = 4
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Predictor:
    """Answers for images with the classes of one bundle.

    Args:
        bundle: a Bundle, or the path of a bundle or of a run folder.
        threads: CPU threads for the network; 0 leaves the choice to ONNX Runtime.
        network: the ONNX file's bytes, of a bundle that is not written yet.

    The answer for an image does not depend on which other images are in its batch.
    """

    def __init__(self, bundle: Bundle | str | Path, *, threads: int = 0, network: bytes | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        self._session = _open_session(self.bundle, threads, network)
        self._input = self._session.get_inputs()[0].name

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        return self.bundle.classes

    def predict(self, images: Any) -> Predictions:
        """Classify one image or a sequence: paths, bytes, arrays uint8 (H, W[, C]), PIL images.

        Raises ImageError for the first image that cannot be read.
        """
        items = [images] if _is_one(images) else list(images)
        names = [_name(item, i) for i, item in enumerate(items)]
        blocks = []
        for start in range(0, len(items), BATCH):
            pixels = np.stack([self._load(item) for item in items[start : start + BATCH]])
            blocks.append(self.predict_pixels(pixels))
        probabilities = np.concatenate(blocks) if blocks else np.empty((0, len(self.classes)), np.float32)
        return decide(self.bundle, probabilities, names)

    def stream(self, paths: Iterable[str], *, on_bad: Callable[[BadImage], None]) -> Iterator[Predictions]:
        """Classify files batch by batch in constant memory; an unreadable one goes to `on_bad` and is left out."""
        pending = iter(paths)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            while names := list(islice(pending, BATCH)):
                loaded = list(pool.map(self._try_load, names))
                for result in loaded:
                    if isinstance(result, BadImage):
                        on_bad(result)
                good = [(n, x) for n, x in zip(names, loaded) if not isinstance(x, BadImage)]
                if good:
                    probabilities = self.predict_pixels(np.stack([x for _, x in good]))
                    yield decide(self.bundle, probabilities, [n for n, _ in good])

    def predict_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities float32 (N, K) for prepared pixels uint8 (N, height, width, channels)."""
        blocks = [
            self.bundle.labelling.activate(self.logits(self.bundle.preprocess.normalize(pixels[start : start + BATCH])))
            for start in range(0, len(pixels), BATCH)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.classes)), np.float32)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the network's raw output float32 (N, K) for a normalized batch float32 (N, C, H, W)."""
        try:
            output: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        except Exception as error:  # many unrelated types, for a network that is not what it promised
            raise _cannot_run(self.bundle, error) from None
        if output.shape != (len(batch), len(self.classes)) or not np.isfinite(output).all():
            raise _other_ends(self.bundle, f"{output.shape}, or values that are no numbers")
        return output

    def _load(self, item: Any) -> NDArray[np.uint8]:
        return self.bundle.preprocess.load(item)

    def _try_load(self, path: str) -> NDArray[np.uint8] | BadImage:
        try:
            return self._load(path)
        except ImageError as error:
            return BadImage.of(path, error)


def load(bundle: str | Path, *, threads: int = 0) -> Predictor:
    """Open a bundle or a run folder to predict with. Raises BundleError."""
    return Predictor(bundle, threads=threads)


def decide(bundle: Bundle, probabilities: NDArray[np.float32], names: Sequence[str]) -> Predictions:
    """Return what a bundle says of images, given its probabilities float32 (N, K) for them and their N names."""
    thresholds = np.array(bundle.thresholds, np.float32) if bundle.labelling is MULTI else None
    return Predictions(classes=bundle.classes, probabilities=probabilities, names=tuple(names), thresholds=thresholds)


def expand_paths(patterns: Sequence[str]) -> list[str]:
    """Return the image files that names, folders and glob patterns stand for. Raises DataError where none match."""
    found: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            matches = sorted(_pictures_below(pattern))
        elif os.path.exists(pattern):
            matches = [pattern]
        else:
            matched = sorted(glob.glob(pattern, recursive=True))
            files = [path for path in matched if not os.path.isdir(path)]
            matches = files or [path for folder in matched for path in sorted(_pictures_below(folder))]
        if not matches:
            raise DataError("an image, a folder of images or a pattern", got=repr(pattern), fix="Check the path.")
        found += matches
    return found


def _pictures_below(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(place, name)


def _open_session(bundle: Bundle, threads: int, network: bytes | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    # A network may name files with its weights, anywhere on the disk. They are looked for below a file: there are none.
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(bundle.onnx_file))
    try:
        data = network if network is not None else bundle.onnx_file.read_bytes()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many unrelated types for a model that it cannot run
        raise _cannot_run(bundle, error) from None
    _check_ends(session, bundle)
    return session


def _cannot_run(bundle: Bundle, error: Exception) -> BundleError:
    return BundleError(
        f"a network that ONNX Runtime {onnxruntime.__version__} can run in {bundle.onnx_file}",
        got=str(error).splitlines()[0][:200],
        fix="Run: pip install --upgrade onnxruntime, or write the bundle anew.",
    )


def _check_ends(session: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    """Refuse a network that takes or gives something else than the bundle's description says."""
    prepared = bundle.preprocess
    wanted = [[prepared.channels, prepared.height, prepared.width], [len(bundle.classes)]]
    ends = (*session.get_inputs(), *session.get_outputs())
    found = [end.shape[1:] if end.type == "tensor(float)" else None for end in ends]
    if found != wanted:
        raise _other_ends(bundle, ", ".join(f"{end.type} {end.shape}" for end in ends))


def _other_ends(bundle: Bundle, got: str) -> BundleError:
    prepared = bundle.preprocess
    pictures = f"(N, {prepared.channels}, {prepared.height}, {prepared.width})"
    return BundleError(
        f"a network that turns float {pictures} into float (N, {len(bundle.classes)})",
        got=f"{got} in {bundle.onnx_file}",
        fix="Write the bundle anew with `linnaeus train`.",
    )


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
    return isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "getbands")


def _name(item: Any, index: int) -> str:
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else f"image {index}"
