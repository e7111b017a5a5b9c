"""Reading pictures and fitting them to a model's input."""

from __future__ import annotations

import io
import json
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from linnaeus.decoding import MAX_SIDE, picture_format
from linnaeus.errors import ImageError, SettingError
from linnaeus.images import Preprocess, read_image
from pictures import FORMATS, MODES, encode, in_mode, png, scene, tiled_tiff, turned

SQUARE = Preprocess(height=16, width=16, channels=3, fit="pad", mean=(0.5,) * 3, std=(0.25,) * 3)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean absolute difference in grey levels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_scene(kind: str) -> None:
    """Each of the six formats decodes to the picture that was saved, within what its compression loses."""
    image = read_image(encode(scene(), kind))
    assert image.shape == (24, 32, 3)
    assert image.dtype == np.uint8
    assert difference(image, scene()) < {"JPEG": 3, "WEBP": 4, "GIF": 9}.get(kind, 0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    """A picture stored under any of the 8 EXIF orientations comes out as it was seen."""
    image = read_image(encode(turned(scene(), orientation), kind, exif=orientation))
    assert image.shape == (24, 32, 3)
    assert difference(image, scene()) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_orientation(mode: str, orientation: int) -> None:
    """A Pillow image of any mode is turned by its EXIF as the same pixels without EXIF are by hand."""
    image = in_mode(mode)
    upright = read_image(image)
    exif = image.getexif()
    exif[0x0112] = orientation
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    assert np.array_equal(read_image(image), turned(upright, inverse))


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "I;16", "I;16L", "I;16B", "I", "F"])
def test_opaque_modes_keep_the_brightness(mode: str) -> None:
    """Grey, colour, 16-bit and float pictures of the scene are equally bright, within rounding."""
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    assert difference(np.asarray(Image.fromarray(read_image(in_mode(mode))).convert("L")), grey) < 1


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    """Where alpha is 0 the picture is white, where it is 255 it is the colour itself."""
    image = in_mode(mode)
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (0, 0, 16, 24))
    image.putalpha(alpha)
    array = read_image(image)
    assert (array[:, 16:] == 255).all()
    assert np.array_equal(array[:, :16], np.asarray(image.convert("RGBA").convert("RGB"))[:, :16])


def test_transparent_palette_colour_is_white() -> None:
    """The transparent colour of a PNG or GIF with a palette becomes white, without a warning."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    for kind in ("PNG", "GIF"):
        array = read_image(encode(image, kind, transparency=0))
        assert array[0, 0].tolist() == [200, 100, 50]
        assert (array[1:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut(kind: str) -> None:
    """A 16-bit file goes from 0 to 255 by steps of 257."""
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(read_image(encode(values, kind))[:, :, 0], np.arange(256).reshape(16, 16))


def test_integers_and_floats_by_their_documented_rule() -> None:
    """32-bit integers up to 255 and floats up to 255 are taken as they are; what lies beyond is refused."""
    assert read_image(Image.fromarray(np.full((2, 2), 200, np.int32))).max() == 200
    assert read_image(Image.fromarray(np.full((2, 2), 200.4, np.float32))).max() == 200
    for wrong in (-1, 70000):
        with pytest.raises(ImageError, match=str(wrong)):
            read_image(Image.fromarray(np.full((2, 2), wrong, np.int32)))
    for wrong in (-0.5, 256.0, np.nan, np.inf):
        with pytest.raises(ImageError, match="from 0 to 1 or 255"):
            read_image(Image.fromarray(np.full((2, 2), wrong, np.float32)))


def test_adobe_cmyk_is_not_inverted() -> None:
    """A red CMYK JPEG comes out red."""
    image = read_image(encode(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG"))
    assert image[..., 0].min() > 240
    assert image[..., 1:].max() < 15


def test_first_frame_of_an_animation() -> None:
    """An animated GIF or WebP gives its first frame."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(stream.getvalue())[4, 4].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_every_shape(shape: tuple[int, ...], dtype: type) -> None:
    """Grey, colour and alpha arrays, of bytes or of floats in [0, 1], become uint8 RGB."""
    image = read_image(np.ones(shape, dtype) * (255 if dtype is np.uint8 else 1))
    assert image.shape == (5, 7, 3)
    assert (image == 255).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((0, 7), np.uint8),
        np.zeros(9, np.uint8),
        np.zeros((5, 7), np.int64),
        np.full((5, 7), 2.0),
        np.full((5, 7), np.nan),
        np.zeros((5, 7), object),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    """An array of another shape, type or range is refused with its reason."""
    with pytest.raises(ImageError, match="the given array"):
        read_image(array)


def test_an_rgb_array_is_not_copied() -> None:
    """uint8 RGB goes through as it is, and through resize as well when the size fits."""
    image = scene(16, 16)
    assert read_image(image) is image
    assert SQUARE.resize(image) is image


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    """Text, nothing, a folder, a missing file and another type of object are errors that name what was given."""
    (tmp_path / "note.jpg").write_text("no picture at all")
    (tmp_path / "empty.png").touch()
    for name in ("note.jpg", "empty.png", "missing.jpg", "."):
        with pytest.raises(ImageError, match=r"jpg|png|tmp|pytest"):
            read_image(tmp_path / name)
    for wrong in (b"", None, 7):
        with pytest.raises(ImageError):
            read_image(wrong)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        read_image("a\0b.jpg")


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    """A PNG called .jpg is read, from a str and from a Path."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(scene(), "PNG"))
    assert np.array_equal(read_image(path), scene())
    assert np.array_equal(read_image(str(path)), scene())


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(kind: str) -> None:
    """A file cut anywhere is an ImageError, or whole where only its end mark is lost."""
    data = encode(scene(), kind)
    whole = read_image(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            image = read_image(data[:length])
        except ImageError:
            continue
        assert length > 0.9 * len(data)
        assert np.array_equal(image, whole)


@pytest.mark.parametrize("kind", [*FORMATS, "TIFF-deflate"])
def test_damaged_files_raise_nothing_else(kind: str) -> None:
    """Of 1,000 files with flipped bits each decodes or is an ImageError; no warning comes out."""
    options = {"compression": "tiff_deflate"} if "deflate" in kind else {}
    data = encode(scene(), kind.removesuffix("-deflate"), exif=None if kind in ("GIF", "BMP") else 6, **options)
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(1000):
        mutant = bytearray(data)
        for place in rng.integers(0, len(data), size=3):
            mutant[place] ^= 1 << int(rng.integers(0, 8))
        try:
            assert read_image(bytes(mutant)).ndim == 3
        except ImageError:
            refused += 1
    assert refused > 10


def test_bombs_are_refused_before_decoding() -> None:
    """A header that promises too much is refused without its memory being taken, and without Pillow's warning."""
    packed = zlib.compress(bytes(40_000_000), 9)
    gif = bytearray(encode(scene(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    webp = encode(Image.new("RGB", (16000, 4000)), "WEBP", lossless=True)
    tracemalloc.start()
    for data in (png(60_000, 10), png(10_000, 10_000, packed), png(30_000, 30_000), png(2**31 - 1, 1), gif, webp):
        with pytest.raises(ImageError):
            read_image(bytes(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    with pytest.raises(ImageError, match="60,000 x 10"):
        read_image(png(60_000, 10))


def test_tiles_larger_than_a_picture_may_be() -> None:
    """A small TIFF is read from a tile somewhat larger, and refused when its tile would fill the memory."""
    assert read_image(tiled_tiff(16, 64)).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="8,000 x 8,000"):
        read_image(tiled_tiff(16, 8000))


def test_large_jpeg_only_when_it_can_be_scaled() -> None:
    """A JPEG of 64 million pixels is refused at full size and read where an eighth of it is enough."""
    data = encode(Image.new("L", (8000, 8000), 90), "JPEG")
    with pytest.raises(ImageError, match="50 million"):
        read_image(data)
    assert read_image(data, at_least=(224, 224)).shape == (1000, 1000, 3)


def test_an_array_over_the_longest_side_as_an_image_is_refused() -> None:
    """A Pillow image keeps to the same limits."""
    with pytest.raises(ImageError):
        read_image(Image.new("1", (MAX_SIDE + 1, 1)))


@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_is_close_to_full(orientation: int) -> None:
    """Decoding at a quarter and resizing differs from full decoding by less than two grey levels on average."""
    data = encode(turned(scene(600, 900), orientation), "JPEG", exif=orientation, quality=92)
    prepare = Preprocess(height=64, width=96, channels=3, fit="stretch", mean=(0.5,) * 3, std=(1,) * 3)
    small = read_image(data, at_least=(64, 96))
    assert small.shape == (150, 225, 3)
    assert difference(prepare.load(data), prepare.resize(read_image(data))) < 2


def test_tiny_and_narrow_pictures() -> None:
    """1 x 1 and 1 x 3000 pictures fit into any input in each way."""
    for size in ((1, 1), (1, 3000), (3000, 1)):
        data = encode(np.full((*size, 3), 9, np.uint8), "PNG")
        for fit in ("pad", "crop", "stretch"):
            prepare = Preprocess(height=224, width=192, channels=3, fit=fit, mean=(0,) * 3, std=(1,) * 3)
            image = prepare.load(data)
            assert image.shape == (224, 192, 3)
            assert (image == 9).any()


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
    channels=st.sampled_from([1, 3]),
)
def test_resize_always_gives_the_input_shape(
    source: tuple[int, int], target: tuple[int, int], fit: str, channels: int
) -> None:
    """Any picture becomes uint8 (height, width, channels), and one colour stays that colour."""
    prepare = Preprocess(
        height=target[0],
        width=target[1],
        channels=channels,
        fit=fit,  # type: ignore[arg-type]
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        interpolation="bicubic",
        fill=77,
    )
    image = prepare.resize(np.full((*source, 3), 77, np.uint8))
    assert image.shape == (*target, channels)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def test_pad_keeps_and_crop_cuts() -> None:
    """A wide picture is centred between bands of the fill when padded and loses its sides when cropped."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 8:24] = 255
    padded = SQUARE.resize(image)
    assert (padded[:4] == 128).all()
    assert (padded[12:] == 128).all()
    assert (padded[4:12, 0] == 0).all()
    cropped = Preprocess(height=16, width=16, channels=3, fit="crop", mean=(0,) * 3, std=(1,) * 3).resize(image)
    assert (cropped == 255).all()


def test_load_is_read_and_resize() -> None:
    """For a picture that is not scaled while decoding both ways give the same pixels, in grey too."""
    data = encode(scene(), "PNG")
    for channels in (1, 3):
        prepare = Preprocess(
            height=20, width=9, channels=channels, fit="crop", mean=(0,) * channels, std=(1,) * channels
        )
        assert np.array_equal(prepare.load(data), prepare.resize(read_image(data)))


def test_normalize_is_the_textbook_formula() -> None:
    """Normalizing gives (x / 255 - mean) / std within float32 rounding, channels first and contiguous."""
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    prepare = Preprocess(height=24, width=32, channels=3, fit="pad", mean=mean, std=std)
    batch = np.stack([scene(seed=k) for k in range(3)])
    result = prepare.normalize(batch)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert np.allclose(result, ((batch / 255 - mean) / std).transpose(0, 3, 1, 2), atol=1e-6)
    for wrong in (batch.astype(float), batch[0], batch[:, :5]):
        with pytest.raises(ImageError):
            prepare.normalize(wrong)


def test_settings_survive_json() -> None:
    """to_dict and from_dict are each other's inverse through JSON."""
    assert Preprocess.from_dict(json.loads(json.dumps(SQUARE.to_dict()))) == SQUARE


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": 4097},
        {"height": 8.0},
        {"height": True},
        {"channels": 2},
        {"fit": "squeeze"},
        {"fit": None},
        {"interpolation": "nearest"},
        {"interpolation": []},
        {"fill": 256},
        {"mean": [0.5]},
        {"mean": [0.5, 0.5, "0.5"]},
        {"mean": 0.5},
        {"std": [0.5, 0.5, 0]},
        {"std": [0.5, 0.5, float("nan")]},
        {"sizes": 3},
    ],
)
def test_wrong_settings(change: dict[str, object]) -> None:
    """A key that is unknown or missing, or a value of the wrong type or range, is a SettingError."""
    with pytest.raises(SettingError, match=next(iter(change))):
        Preprocess.from_dict(SQUARE.to_dict() | change)
    missing = {key: value for key, value in SQUARE.to_dict().items() if key not in change and key != "fill"}
    with pytest.raises(SettingError, match="fill"):
        Preprocess.from_dict(missing)


def test_many_threads_leave_the_warnings_as_they_were() -> None:
    """Decoding in threads silences Pillow only while it lasts: afterwards the filters are those of before."""
    data = encode(scene(), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(data) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_format_by_magic() -> None:
    """Each format is told by its first 16 bytes, and text by none."""
    assert [picture_format(encode(scene(), kind)[:16]) for kind in FORMATS] == list(FORMATS)
    assert picture_format(b"<svg xmlns=") is None
