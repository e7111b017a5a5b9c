"""Pictures made in the tests: photographs in every mode, format and orientation, and files that mean harm."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16L", "I;16B", "I", "F")


def scene(height: int = 24, width: int = 32, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3): smooth colours with no symmetry, so that every turn of it differs."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    phases = rng.uniform(0, 2, size=3)
    planes = [127 * (1 + np.sin(3 * x + (2 + k) * y * y + phases[k])) for k in range(3)]
    return np.stack(planes, axis=2).astype(np.uint8)


def in_mode(mode: str, *, height: int = 24, width: int = 32) -> Image.Image:
    """Return the scene as a Pillow image of any mode of the table, alpha half transparent."""
    rgb = Image.fromarray(scene(height, width))
    grey = np.asarray(rgb.convert("L"))
    if mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, rgb.size, (grey.astype(np.uint32) * 257).astype(order).tobytes())
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32) / 255)
    if mode == "LAB":
        return Image.merge("LAB", [Image.fromarray(plane) for plane in np.moveaxis(np.asarray(rgb), 2, 0)])
    if mode == "PA":
        return rgb.convert("RGBA").convert("P").convert("PA")
    return rgb.convert(mode)


def encode(image: Image.Image | NDArray[np.uint8], kind: str, *, exif: int | None = None, **options: object) -> bytes:
    """Return the bytes of a file of the format, with an EXIF orientation where one is given."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if exif is not None:
        tags = Image.Exif()
        tags[0x0112] = exif
        options["exif"] = tags
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(array: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return the array as a camera stores it under an EXIF orientation, so that reading it turns it back."""
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, 1),
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(array, -1),
    }
    return np.ascontiguousarray(stored[orientation])


def png(width: int, height: int, packed: bytes = b"") -> bytes:
    """Return a grey PNG whose header promises any size, holding any compressed data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def tiled_tiff(size: int, tile: int) -> bytes:
    """Return a grey square TIFF of one tile of any size, of zeros."""
    data = zlib.compress(bytes(tile * tile), 9)
    tags = [(256, size), (257, size), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(324, start), (325, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def save_folder(root: Path, counts: dict[str, int], *, size: int = 12) -> Path:
    """Write `counts` pictures under each relative folder, all different, and return the root."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(scene(size, size, seed=1000 * number + i)).save(root / folder / f"{i}.png")
    return root
