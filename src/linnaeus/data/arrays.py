"""Pictures that are in memory already: arrays, lists of arrays, of Pillow images or of paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from linnaeus.data.labelled import Images, Reading, some
from linnaeus.errors import DataError, ImageError
from linnaeus.images import read_image

_FLOAT_BLOCK = 256  # pictures turned from floats at a time, so that the whole never lies in memory three times


def read_pair(images: Sequence[Any] | NDArray[Any], labels: Sequence[Any] | NDArray[Any]) -> Reading:
    """Take pictures and their labels as they lie in memory, or paths of files with their labels.

    Raises:
        DataError: on arrays that are no pictures, missing files, or something else than a sequence.
    """
    for value in (images, labels):
        if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
            fix = "Pass (images, labels), each a list or an array."
            raise DataError("two sequences of the same length", got=f"a {type(value).__name__}", fix=fix)
    return Reading(images=_as_images(images), labels=labels)


def as_pixels(array: NDArray[Any], name: str = "the given array") -> NDArray[np.uint8]:
    """Return uint8 (N, H, W) or (N, H, W, C); floats in [0, 1] are scaled. Raises DataError."""
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3, 4)) or 0 in array.shape:
        channels_first = array.ndim == 4 and array.shape[1] in (1, 3, 4)
        fix = "Pass images.transpose(0, 2, 3, 1)." if channels_first else "Reshape them, channels last."
        expected = "pictures of shape (N, H, W) or (N, H, W, C) with C of 1, 3 or 4"
        raise DataError(expected, got=f"{array.shape} in {name}", fix=fix)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        got = f"{array.dtype} in {name}"
        raise DataError("uint8 pictures, or floats in [0, 1]", got=got, fix="Pass images.astype('uint8').")
    return _from_floats(array, name)


def existing_files(paths: Sequence[str], *, named_in: str) -> tuple[str, ...]:
    """Return the paths. Raises DataError that counts and names those where no file is."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        got = f"{len(missing)} of {len(paths)} missing: {some(missing, 3)}"
        raise DataError(f"every file that is named in {named_in}", got=got, fix="Restore the files or drop the names.")
    return tuple(paths)


def _as_images(images: Sequence[Any] | NDArray[Any]) -> Images:
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        return as_pixels(images)
    items = list(images)
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        return existing_files([os.fspath(item) for item in items], named_in="the list of images")
    arrays = tuple(_one_array(item, i) for i, item in enumerate(items))
    same = len({array.shape for array in arrays}) == 1
    return np.stack(arrays) if same else arrays


def _one_array(item: object, i: int) -> NDArray[np.uint8]:
    if not isinstance(item, np.ndarray | Image.Image):
        fix = "Give paths only, or arrays and Pillow images only."
        raise DataError("an array or a Pillow image", got=f"a {type(item).__name__} as image {i}", fix=fix)
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 2 and item.size:
        return item
    try:
        return read_image(item)
    except ImageError as error:
        raise DataError(error.expected, got=f"image {i}: {error.got}", fix=error.fix) from error


def _from_floats(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    result = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _FLOAT_BLOCK):
        block = array[start : start + _FLOAT_BLOCK]
        if not (block.min() >= 0 and block.max() <= 1):
            got = f"values from {block.min():g} to {block.max():g} in {name}"
            raise DataError("float pictures in [0, 1]", got=got, fix="Scale them, or pass uint8.")
        result[start : start + _FLOAT_BLOCK] = np.rint(block * 255.0)
    return result
