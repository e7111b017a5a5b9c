"""Any picture -> one upright Pillow image of mode RGB, or an ImageError that names it.

The way of a file: look at its first bytes, never at its name; check the size in its header before a pixel is
decoded; decode; turn to RGB by one table; turn upright by EXIF.

How each mode becomes RGB:

    1, L, P, RGB           as they are; a palette is looked up
    LA, PA, RGBA, La, RGBa laid over white, as is a transparent colour of 1, P, L or RGB
    CMYK                   Pillow's plain conversion, after it has undone Adobe's inversion
    YCbCr, LAB, HSV        Pillow's conversion
    I;16 (any byte order)  divided by 257, so that 65535 becomes 255; nothing is cut off
    I                      values up to 255 as they are, up to 65535 divided by 257; others are refused
    F                      values up to 1 times 255, up to 255 as they are; others are refused

Of an animation only the first frame is read. Colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PREFIXES as TIFF_PREFIXES
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from linnaeus.errors import ImageError, StorageError

MAX_PIXELS = 50_000_000  # decoded, in one picture: 200 MB at the four bytes that Pillow takes for an RGB pixel
MAX_JPEG_PIXELS = 200_000_000  # in the header of a JPEG that scaled decoding brings below MAX_PIXELS
MAX_SIDE = 20_000
SCALED_MARGIN = 2  # scaled decoding keeps at least this many times the size wanted, so that resizing stays exact
HEAD_BYTES = 16  # enough of a file to tell its format
SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))

Picture = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image

# Pillow knows 43 formats and its security faults lie in the rare ones: these six are all that is ever opened.
_OPENERS: Mapping[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_MAGIC: Mapping[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": tuple(TIFF_PREFIXES),
}
_ORIENTATION = 0x0112
_MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # none of them the picture's
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_format(head: bytes) -> str | None:
    """Return JPEG, PNG, WEBP, GIF, BMP or TIFF from the first HEAD_BYTES of a file, or None for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


def decode(source: Picture, *, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Return a loaded upright Pillow image of mode RGB; the arguments and errors are those of images.read_image."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(rgb_array(source))
    if isinstance(source, Image.Image):
        with _image_errors("the given image"):
            _check_size(source.size, "the given image", MAX_PIXELS)
            return _upright_rgb(source)
    if not isinstance(source, str | os.PathLike | bytes):
        fix = "Pass one of these."
        raise ImageError("a path, bytes, an array or a Pillow image", got=f"a {type(source).__name__}", fix=fix)
    name = "the given bytes" if isinstance(source, bytes) else os.fspath(source)
    with _image_errors(name), _open_binary(source) as file:
        return _upright_rgb(_decode(file, name, at_least))


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height in pixels, as stored, from a file's header. Raises ImageError."""
    name = os.fspath(path)
    with _image_errors(name), _open_binary(path) as file:
        return _open_header(file, name).size


@contextlib.contextmanager
def _open_binary(source: str | os.PathLike[str] | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    # A pipe or a device would wait for ever.
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("it is not a regular file")
    with open(source, "rb") as file:
        yield file


def _open_header(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    kind = picture_format(file.read(HEAD_BYTES))
    if kind is None:
        fix = "Remove it or save it as PNG or JPEG."
        kinds = ", ".join(_OPENERS)
        raise ImageError("a picture in a known format", got=f"{name}, which is none of {kinds}", fix=fix)
    file.seek(0)
    return _OPENERS[kind](file)


def _decode(file: IO[bytes], name: str, at_least: tuple[int, int] | None) -> ImageFile.ImageFile:
    image = _open_header(file, name)
    if isinstance(image, TiffImageFile):
        _check_tiles(image, name)
    is_jpeg = isinstance(image, JpegImageFile)
    _check_size(image.size, name, MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS)
    if is_jpeg and at_least is not None:
        _scale_decoding(image, at_least)
    _check_size(image.size, name, MAX_PIXELS)
    image.load()
    return image


def _scale_decoding(image: ImageFile.ImageFile, at_least: tuple[int, int]) -> None:
    height, width = at_least
    if _orientation(image) >= 5:  # lying on its side
        height, width = width, height
    image.draft(None, (SCALED_MARGIN * width, SCALED_MARGIN * height))


def _check_tiles(image: TiffImageFile, name: str) -> None:
    """Refuse a TIFF with tiles larger than a picture may be: a tile is decoded whole, however small the picture."""
    sides = (image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_LENGTH, 1))
    _check_size(sides, name, MAX_PIXELS)


def _check_size(size: tuple[int, int], name: str, most: int) -> None:
    width, height = size
    if max(size) > MAX_SIDE or width * height > most:
        raise ImageError(
            f"at most {most // 1_000_000} million pixels and {MAX_SIDE:,} on a side",
            got=f"{width:,} x {height:,} in {name}",
            fix="Save it smaller.",
        )


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where the EXIF data are damaged, for the pixels may still be whole."""
    value = 1
    with contextlib.suppress(Exception):  # the parser of EXIF raises whatever the damage leads it to
        value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey(_from_integers(np.asarray(image).astype(np.int64), sixteen=image.mode != "I"))
    if image.mode == "F":
        return _grey(_from_floats(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _from_integers(values: NDArray[np.int64], *, sixteen: bool) -> NDArray[np.uint8]:
    """Scale 16 bit to 8; values in a mode of 32 bits may be of 8, too. Raises ValueError for what is neither."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values go from {low} to {high}, not from 0 to 65535")
    return values.astype(np.uint8) if high <= 255 and not sixteen else ((values + 128) // 257).astype(np.uint8)


def _from_floats(values: NDArray[Any], *, most: float = 255.0) -> NDArray[np.uint8]:
    """Scale [0, 1] to [0, 255]. Raises ValueError for values that are not finite or above `most`."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= most):
        raise ValueError(f"its values go from {low:g} to {high:g}, not from 0 to 1" + " or 255" * (most > 1))
    scale = 255.0 if high <= 1 else 1.0
    return np.rint(values * scale).astype(np.uint8)


def rgb_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) of an array as images.read_image takes them. Raises ImageError."""
    with _image_errors("the given array"):
        if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
            raise ValueError(f"its shape is {array.shape}, not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"it holds {array.dtype}, not uint8 or floats in [0, 1]")
        pixels = array if array.dtype == np.uint8 else _from_floats(array, most=1.0)
        return np.ascontiguousarray(_three_channels(pixels))


def _three_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.shape[2] == 4:
        return np.asarray(_to_rgb(Image.fromarray(np.ascontiguousarray(pixels))))
    return pixels


class _Silence:
    """Keeps Pillow's warnings to itself while any thread decodes.

    warnings.catch_warnings alone changes the whole process: of two threads that overlap, the last to leave would
    bring back the filters of the other for good. So the first to come in sets them and the last to leave resets.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_SILENCE = _Silence()


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError that names the picture."""
    try:
        with _SILENCE:
            yield
    except ImageError:
        raise
    except MemoryError:
        raise  # it says nothing of the picture
    except FileNotFoundError as error:
        raise ImageError("a picture", got=f"no file at {name}", fix="Check the path.") from error
    except Exception as error:  # a damaged file leads decoders into any error
        if getattr(error, "errno", None) in _MACHINE_FAULTS:
            got = f"{name}, which the system did not let us read: {error}"
            raise StorageError("to read a picture", got=got, fix="Mend this on the machine, then try again.") from error
        got = f"{name}, which cannot be read: {str(error) or type(error).__name__}"
        raise ImageError("a whole picture", got=got, fix="Remove it or save it anew from its original.") from error
