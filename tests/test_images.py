"""Pictures as a viewer shows them, fits and their undoing, refusals."""

import io
import itertools
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from vartok import images
from vartok.errors import ImageError
from vartok.images import Fit, encode_picture, parse_color, read_picture, restore_size, to_pixels, to_tensor

Pixels = NDArray[np.uint8]
MAGENTA = (255, 0, 255)
AS_IS = Fit(mode="native", multiple=1, background=MAGENTA)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def read(data: bytes, fit: Fit = AS_IS) -> list[Any]:
    rows: list[Any] = read_picture(data, fit).pixels.tolist()
    return rows


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, depth: int, color: int, rows: list[bytes], *chunks: bytes, height: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height or len(rows), depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b""))
    )


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes) -> bytes:
    """One uncompressed grey page; of 8 bits a level with premultiplied alpha."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags[279] = len(data)
    if bits == 8:
        tags |= {258: 8 | 8 << 16, 277: 2, 338: 1}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, tags[277] if tag == 258 else 1, tags[tag])
        for tag in sorted(tags)
    )
    ifd = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", ifd) + data + b"\0" * (len(data) % 2)
    return head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blurry blobs with sharp grain, which any other resampling would show in."""
    random_ = np.random.default_rng(seed)
    coarse = Image.fromarray(random_.integers(0, 256, (9, 9, 3), np.uint8)).resize((width, height))
    grain = random_.integers(-60, 60, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


# --- what a viewer shows


def test_grey_of_16_bits_is_rescaled_and_not_clipped() -> None:
    values: NDArray[Any] = np.array([[0, 1, 128, 129, 257, 385, 386, 32768, 65534, 65535]], ">u2")
    expected = [[[round(v / 257)] * 3 for v in values[0].tolist()]]
    assert read(png(10, 16, 0, [values.tobytes()])) == expected
    assert read(tiff(10, 1, 16, 1, values.astype("<u2").tobytes())) == expected
    assert read(b"P5 10 1 65535\n" + values.tobytes()) == expected


def test_tiff_of_12_bits_and_of_16_where_0_is_white() -> None:
    assert read(tiff(2, 1, 12, 1, b"\xff\xf8\x00")) == [[[255] * 3, [128] * 3]]  # 4095, 2048
    assert read(tiff(2, 1, 16, 0, struct.pack("<HH", 0, 65535))) == [[[255] * 3, [0] * 3]]


def test_color_of_16_bits() -> None:
    row = struct.pack(">6H", 0x1234, 0xFFFF, 0, 0x80FF, 0x0100, 0xABCD)
    assert read(png(2, 16, 2, [row])) == [[[0x12, 255, 0], [0x80, 1, 0xAB]]]
    row = struct.pack(">8H", 0x1234, 0xFFFF, 0, 0xFFFF, 0x1234, 0xFFFF, 0, 0)
    assert read(png(2, 16, 6, [row])) == [[[0x12, 255, 0], list(MAGENTA)]]
    row = struct.pack(">4H", 0x4000, 0xFFFF, 0x4000, 0)
    assert read(png(2, 16, 4, [row])) == [[[0x40] * 3, list(MAGENTA)]]


def test_floats_from_0_to_1_are_rescaled() -> None:
    values = np.array([[0, 0.25, 0.5, 1, np.nan]], np.float32)
    picture = read_picture(saved(Image.fromarray(values), "TIFF"), AS_IS)
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 128, 255, 0]
    assert picture.notes == ()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_grey_without_a_white_of_its_own_is_stretched_with_a_note(kind: type) -> None:
    values: NDArray[Any] = np.array([[-1000, 0, 1000, 3000]], kind)
    picture = read_picture(saved(Image.fromarray(values), "TIFF"), AS_IS)
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    assert picture.notes == ("no white of its own: took -1000 for black and 3000 for white",)


def test_floats_that_are_not_finite() -> None:
    values = np.array([[-np.inf, 2, 4, np.inf, np.nan]], np.float32)
    assert read_picture(saved(Image.fromarray(values), "TIFF"), AS_IS).pixels[0, :, 0].tolist() == [
        0,
        0,
        255,
        255,
        0,
    ]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert read(saved(Image.fromarray(nothing), "TIFF")) == [[[0] * 3] * 2] * 2
    flat = np.full((2, 2), 7, np.float32)
    assert read(saved(Image.fromarray(flat), "TIFF")) == [[[0] * 3] * 2] * 2


def test_alpha_is_laid_on_the_background() -> None:
    fit = Fit(mode="native", multiple=1, background=(0, 100, 200))
    rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 51))
    assert read(saved(rgba, "PNG"), fit)[0][0] == [51, 80, 160]
    grey = Image.new("LA", (2, 2), (255, 51))
    for data in (saved(grey, "PNG"), saved(grey, "TIFF")):
        assert read(data, fit)[0][0] == [51, 131, 211]
    premultiplied = tiff(1, 1, 8, 1, bytes([51, 51]))
    assert read(premultiplied, fit) == [[[51, 131, 211]]]
    assert read(saved(rgba, "WEBP", lossless=True))[0][0] == [255, 0, 204]


def test_transparent_palette_entries() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    solid, clear = [[10, 20, 30], [40, 50, 60], [70, 80, 90]], list(MAGENTA)
    assert read(saved(image, "PNG")) == [solid]
    assert read(saved(image, "PNG", transparency=1)) == [[solid[0], clear, solid[2]]]
    assert read(saved(image, "PNG", transparency=bytes([255, 0, 0]))) == [[solid[0], clear, clear]]
    assert read(saved(image, "GIF", transparency=2)) == [[solid[0], solid[1], clear]]


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "opaque"),
    [(1, b"\x40", 1, 0), (2, b"\x60", 2, 85), (4, b"\x3c", 12, 51), (8, b"\x11\x22", 0x22, 0x11)],
)
def test_transparent_grey(depth: int, row: bytes, transparent: int, opaque: int) -> None:
    trns = chunk(b"tRNS", struct.pack(">H", transparent))
    expected = [list(MAGENTA), [opaque] * 3]
    pixels = read(png(2, depth, 0, [row], trns))[0]
    assert sorted(pixels) == sorted(expected)


def test_transparent_colors_of_16_bits() -> None:
    trns = chunk(b"tRNS", struct.pack(">H", 0x8001))
    row = struct.pack(">2H", 0x8001, 0x8000)  # one level of 65,536 apart
    assert read(png(2, 16, 0, [row], trns)) == [[list(MAGENTA), [128] * 3]]
    trns = chunk(b"tRNS", struct.pack(">3H", 0x8001, 0x1000, 0x2000))
    row = struct.pack(">6H", 0x8001, 0x1000, 0x2000, 0x01FF, 0, 0)
    assert read(png(2, 16, 2, [row], trns)) == [[list(MAGENTA), [1, 0, 0]]]


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 8), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 8))
    pixels = read_picture(saved(image, "JPEG", quality=100), AS_IS).pixels.astype(int)
    assert np.abs(pixels[4, 2] - [0, 255, 255]).max() <= 3
    assert np.abs(pixels[4, 13]).max() <= 3


def test_bits_grey_and_lab() -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 255)
    assert read(saved(bits, "PNG")) == [[[0] * 3, [255] * 3]]
    assert read(saved(Image.new("L", (1, 1), 77), "PNG")) == [[[77] * 3]]
    lab = Image.new("RGB", (1, 1), (200, 30, 60)).convert("LAB")
    pixel = np.array(read(saved(lab, "TIFF"))[0][0])
    assert np.abs(pixel - [200, 30, 60]).max() <= 3


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str) -> None:
    image = photo(5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    picture = read_picture(saved(image, format, exif=exif, **options), AS_IS)
    expected = UPRIGHT[orientation](np.asarray(image))
    assert np.array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == expected.shape[:2]
    assert picture.pixels.flags.c_contiguous


def test_broken_exif_is_ignored_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 12 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    picture = read_picture(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "BMP"), AS_IS)
    assert picture.pixels.tolist() == [[[1, 2, 3]]]
    assert picture.notes == ("ignored its EXIF data, which is broken",)


def profile(space: bytes, gamma: float | None, colorants: str = "rgb") -> bytes:
    """An ICC profile of sRGB's primaries, under other names perhaps; sRGB's own curve if gamma is None."""
    xyz = {"r": (0.4360, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7139)}
    if gamma is None:
        steps = np.linspace(0, 1, 256)
        steps = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
        curve = b"curv" + struct.pack(">II", 0, 256) + np.rint(steps * 65535).astype(">u2").tobytes()
    else:
        curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(gamma * 256))
    tags = {b"kTRC": curve}
    if space == b"RGB ":
        tags = {f"{name}TRC".encode(): curve for name in "rgb"}
        for name, colorant in zip("rgb", colorants, strict=True):
            fixed = (round(value * 65536) for value in xyz[colorant])
            tags[f"{name}XYZ".encode()] = b"XYZ " + struct.pack(">I3i", 0, *fixed)
    tags[b"wtpt"] = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, body in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(data), 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header = (header + bytes(28) + struct.pack(">3I", 63190, 65536, 54061)).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + table + data


def test_profile_is_converted_to_srgb() -> None:
    image = Image.new("RGB", (1, 1), (200, 50, 20))
    swapped = saved(image, "PNG", icc_profile=profile(b"RGB ", 2.2, "grb"))
    assert np.abs(np.array(read(swapped)[0][0]) - [50, 200, 20]).max() <= 10
    linear = saved(image.convert("L"), "PNG", icc_profile=profile(b"RGB ", 1.0))
    level = image.convert("L").getpixel((0, 0))
    assert isinstance(level, int)
    brighter = 255 * (1.055 * (level / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(np.array(read(linear)[0][0]) - brighter).max() <= 2
    grey = saved(image.convert("LA"), "PNG", icc_profile=profile(b"GRAY", 1.0))
    assert np.abs(np.array(read(grey)[0][0]) - brighter).max() <= 2


def test_profile_of_srgb_changes_nothing() -> None:
    srgb = profile(b"RGB ", None)
    image = photo(40, 30)
    picture = read_picture(saved(image, "PNG", icc_profile=srgb), AS_IS)
    converted = ImageCms.profileToProfile(image, io.BytesIO(srgb), ImageCms.createProfile("sRGB"))
    assert converted is not None
    assert not np.array_equal(np.asarray(converted), np.asarray(image))  # rounding would change some
    assert np.array_equal(picture.pixels, np.asarray(image))
    assert picture.notes == ()


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"no profile at all", "ignored its colour profile, which is broken"),
        (profile(b"RGB ", 2.2)[:200], "ignored its colour profile, which is broken"),
        (profile(b"CMYK", 2.2), "ignored its colour profile, which is broken"),
        (profile(b"Lab ", 2.2), "ignored its colour profile, which is broken"),
        (profile(b"GRAY", 1.0), "ignored its colour profile, which is not for RGB pixels"),
    ],
)
def test_unfit_profile_is_ignored_with_a_note(data: bytes, note: str) -> None:
    picture = read_picture(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", icc_profile=data), AS_IS)
    assert picture.pixels.tolist() == [[[1, 2, 3]]]
    assert picture.notes == (note,)


@pytest.mark.parametrize(
    ("format", "note"),
    [
        ("GIF", "animation: took the first of 3 frames"),
        ("PNG", "animation: took the first of 3 frames"),
        ("WEBP", "animation: took the first of 3 frames"),
        ("TIFF", "multi-page: took the first of 3 pages"),
    ],
)
def test_first_of_several_frames(format: str, note: str) -> None:
    first, *others = (Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read_picture(saved(first, format, save_all=True, append_images=others, **options), AS_IS)
    assert picture.pixels.tolist() == [[[255, 0, 0]] * 4] * 4
    assert picture.notes == (note,)


def test_pictures_that_belong_to_the_first_are_not_mentioned() -> None:
    image = Image.new("RGB", (8, 8), "red")
    assert read_picture(saved(image, "MPO", save_all=True, append_images=[image]), AS_IS).notes == ()


def test_a_broken_second_page_does_not_spoil_the_first() -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = saved(first, "TIFF", save_all=True, append_images=[second])
    cut = read_picture(data[: len(data) // 2 + 60], AS_IS)
    assert cut.pixels.tolist() == [[[255, 0, 0]] * 4] * 4
    assert cut.notes == ()


# --- fits


@pytest.mark.parametrize("size", [(256, 256), (96, 160), (160, 96), (64, 333)])
@pytest.mark.parametrize("shape", [(427, 320), (320, 427), (301, 301), (50, 61), (333, 64)])
@pytest.mark.parametrize("zoom", [1.0, 1.125])
def test_crop_is_resize_then_centre_crop(size: tuple[int, int], shape: tuple[int, int], zoom: float) -> None:
    image = photo(*shape)
    height, width = size
    rows, columns = round(height * zoom), round(width * zoom)
    if rows / image.height >= columns / image.width:
        columns = int(rows * image.width / image.height)
    else:
        rows = int(columns * image.height / image.width)
    left, top = round((columns - width) / 2.0), round((rows - height) / 2.0)
    whole = image.resize((columns, rows), Image.Resampling.LANCZOS)
    expected = np.asarray(whole)[top : top + height, left : left + width]
    picture = read_picture(saved(image, "PNG"), Fit(size=size, zoom=zoom))
    assert np.array_equal(picture.pixels, expected)
    assert (picture.width, picture.height) == shape


@pytest.mark.parametrize("mode", images.FITS)
def test_parts_and_strips_give_what_the_whole_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.eval(
        photo(601, 397), lambda level: level // 3 + 80
    )  # nothing that overshoots and is clipped
    data = saved(image.convert("RGBA"), "PNG")
    fit = Fit(mode=mode, size=(200, 300), zoom=1.2)
    whole = read_picture(data, fit).pixels.astype(int)
    monkeypatch.setattr(images, "LARGE", 1000)
    monkeypatch.setattr(images, "STRIP", 1000)
    parts = read_picture(data, fit).pixels.astype(int)
    difference = np.abs(parts - whole)
    assert difference.max() <= 2  # native: Pillow scales rows first or columns first, whichever is less work
    assert mode == "native" or difference.mean() < 1e-3


@pytest.mark.parametrize("mode", images.FITS)
def test_sides_that_fit_are_kept(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(160, 96)
    fit = Fit(mode=mode, size=(96, 160))
    for large in (images.LARGE, 1000):  # whole, and in strips
        monkeypatch.setattr(images, "LARGE", large)
        monkeypatch.setattr(images, "STRIP", large)
        assert np.array_equal(read_picture(saved(image, "PNG"), fit).pixels, np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(1, 4096), (4096, 1), (1, 1), (3, 100_000), (100_000, 3)])
@pytest.mark.parametrize("mode", images.FITS)
def test_odd_shapes_take_no_time(width: int, height: int, mode: str) -> None:
    data = saved(Image.new("RGB", (width, height), (9, 8, 7)), "PNG")
    start = time.process_time()
    pixels = read_picture(data, Fit(mode=mode, background=(9, 8, 7))).pixels
    assert time.process_time() - start < 5
    assert (pixels == [9, 8, 7]).all()


def test_a_tall_picture_is_shortened_before_it_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE", 10_000)
    image = photo(2, 3000)
    pixels = read_picture(saved(image, "PNG"), Fit(mode="stretch", size=(64, 64))).pixels
    expected = image.resize((2, 64), Image.Resampling.LANCZOS).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels, np.asarray(expected))


def test_pad_lies_in_the_middle_and_comes_off() -> None:
    image = photo(100, 50)
    picture = read_picture(saved(image, "PNG"), Fit(mode="pad", size=(64, 50), background=MAGENTA))
    inner = np.asarray(image.resize((50, 25), Image.Resampling.LANCZOS))
    assert np.array_equal(picture.pixels[19:44], inner)
    assert (picture.pixels[:19] == MAGENTA).all()
    assert (picture.pixels[44:] == MAGENTA).all()
    assert np.array_equal(restore_size(picture.pixels, width=50, height=25, mode="pad"), inner)
    full = restore_size(picture.pixels, width=100, height=50, mode="pad")
    enlarged = Image.fromarray(inner).resize((100, 50), Image.Resampling.LANCZOS)
    assert np.array_equal(full, np.asarray(enlarged))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((48, 32), (48, 32)),
        ((55, 41), (48, 48)),
        ((56, 40), (64, 32)),
        ((1, 7), (16, 16)),
        ((9, 25), (16, 32)),
    ],
)
def test_native_is_the_nearest_multiple(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = photo(*shape)
    picture = read_picture(saved(image, "PNG"), Fit(mode="native"))
    assert np.array_equal(picture.pixels, np.asarray(image.resize(expected, Image.Resampling.LANCZOS)))
    if shape == expected:
        assert np.array_equal(picture.pixels, np.asarray(image))
    restored = restore_size(picture.pixels, width=shape[0], height=shape[1], mode="native")
    assert restored.shape == (shape[1], shape[0], 3)
    with pytest.raises(ImageError, match="more than"):
        read_picture(saved(image, "PNG"), Fit(mode="native", max_pixels=70_000, multiple=512))


@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    zoom=st.floats(1, 4),
    mode=st.sampled_from(images.FITS),
    multiple=st.integers(1, 32),
)
def test_every_fit_gives_its_size(
    width: int, height: int, size: tuple[int, int], zoom: float, mode: str, multiple: int
) -> None:
    fit = Fit(mode=mode, size=size, zoom=zoom, multiple=multiple)
    picture = read_picture(saved(Image.new("L", (width, height), 90), "PNG"), fit)
    rows, columns, channels = picture.pixels.shape
    assert channels == 3
    if mode == "native":
        assert rows % multiple == columns % multiple == 0
        assert abs(rows - height) <= max(multiple / 2, multiple - height)
        assert abs(columns - width) <= max(multiple / 2, multiple - width)
    else:
        assert (rows, columns) == size
    if mode != "pad":
        assert (picture.pixels == 90).all()
    if mode != "crop":
        restored = restore_size(picture.pixels, width=width, height=height, mode=mode)
        assert restored.shape == (height, width, 3)
        assert (restored == 90).all()


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        ({"width": 10**9, "height": 1}, "side"),
        ({"width": 200_000, "height": 200_000}, "more than 100,000,000"),
        ({"width": 0, "height": 5}, "0 x 5"),
        ({"width": 5, "height": -1}, "5 x -1"),
        ({"width": True, "height": 5}, "True"),
        ({"width": 2.5, "height": 5}, "2.5"),
        ({"width": "9" * 500, "height": 5}, "9"),
        ({"width": 5, "height": 5, "mode": "crop"}, "another fit"),
        ({"width": 5, "height": 5, "mode": "zoom"}, "one of"),
        ({"width": 20, "height": 20, "max_pixels": 399}, "more than 399"),
    ],
)
def test_sizes_that_are_not_restored(size: dict[str, Any], cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        restore_size(np.zeros((4, 4, 3), np.uint8), **{"mode": "stretch", **size})
    check_message(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "zoom"},
        {"size": (0, 5)},
        {"size": (20_000, 20_000)},
        {"zoom": 0.5},
        {"zoom": float("nan")},
        {"zoom": 1e9},
        {"background": (0, 0, 256)},
        {"background": (0, 0)},
        {"multiple": 0},
        {"max_pixels": 0},
    ],
)
def test_fits_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ImageError) as caught:
        Fit(**options)
    check_message(caught.value)


# --- tensors


def test_every_level_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(levels)
    expected = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), expected)
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert np.array_equal(to_pixels(tensor.to(dtype)), levels)


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32 - 1))
def test_tensor_round_trip(shape: tuple[int, int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    tensor = to_tensor(pixels)
    assert tensor.shape == (shape[0], 3, *shape[1:])
    assert torch.equal(tensor[:, 1], to_tensor(pixels[..., ::-1])[:, 1])
    back = to_pixels(tensor)
    assert np.array_equal(back, pixels)
    assert back.flags.c_contiguous


def test_pixels_are_clamped_and_rounded_to_nearest() -> None:
    values = torch.tensor([-3.0, -1, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1, 7, float("inf")])
    images_ = values.reshape(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_pixels(images_.requires_grad_())[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]
    with pytest.raises(ImageError, match="NaN"):
        to_pixels(torch.full((1, 3, 2, 2), float("nan")))


def test_tensors_and_pixels_of_the_wrong_shape() -> None:
    for pixels in (np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 4), np.uint8), np.zeros((1, 2, 2, 3))):
        with pytest.raises(ImageError, match="uint8"):
            to_tensor(pixels.astype(pixels.dtype))
    for tensor in (torch.zeros(3, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)):
        with pytest.raises(ImageError, match="floats"):
            to_pixels(tensor)


def test_importing_images_imports_no_torch() -> None:
    code = "import sys, vartok.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files out


@pytest.mark.parametrize("format", images.FORMATS)
def test_encoded_pictures(format: str) -> None:
    pixels = np.asarray(photo(33, 20))
    data = encode_picture(pixels, format)
    assert data == encode_picture(pixels.copy(), format)
    back = read_picture(data, AS_IS).pixels
    error = np.abs(back.astype(int) - pixels)
    assert error.max() == 0 if format != "jpg" else error.mean() < 6
    assert back.shape == pixels.shape


def test_pictures_that_are_not_encoded() -> None:
    with pytest.raises(ImageError, match="png, jpg, webp"):
        encode_picture(np.zeros((2, 2, 3), np.uint8), "bmp")
    with pytest.raises(ImageError, match=r"webp cannot hold 20,000 x 1 pixels: write png"):
        encode_picture(np.zeros((1, 20_000, 3), np.uint8), "webp")
    with pytest.raises(ImageError, match="uint8"):
        encode_picture(np.zeros((2, 2), np.uint8), "png")
    assert set(images.SUFFIXES.values()) == set(images.FORMATS)


def test_colors() -> None:
    assert parse_color("white") == (255, 255, 255)
    assert parse_color("#aabbcc") == (170, 187, 204)
    for text in ("", "whitish", "#12", "#aabbccdd", "rgb(300,0,0)", "a\nb", "x" * 1000):
        with pytest.raises(ImageError) as caught:
            parse_color(text)
        check_message(caught.value)


# --- refusals


def check_message(error: BaseException) -> None:
    message = str(error)
    assert 5 < len(message) < 250
    assert message.isprintable()


def refused(file: Path | bytes, fit: Fit = AS_IS) -> str:
    start = time.process_time()
    with pytest.raises(ImageError) as caught:
        read_picture(file, fit)
    assert time.process_time() - start < 5
    check_message(caught.value)
    return str(caught.value)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.png") == "no such file"
    assert refused(tmp_path) == "is a directory, not a picture"
    (tmp_path / "empty.png").touch()
    assert refused(tmp_path / "empty.png") == "is empty"
    assert refused(b"") == "is empty"
    (tmp_path / "text.png").write_text("hello")
    assert refused(tmp_path / "text.png") == "not a picture that vartok can read"
    assert (
        refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not a picture that vartok can read"
    )
    assert refused(tmp_path / "nul\0.png") == "cannot be opened: embedded null byte"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refused(tmp_path / "loop.png") == "cannot be opened: too many levels of symbolic links"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.png").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(tmp_path / "secret.png") == "no permission to read it"


def bits(side: int) -> bytes:
    """A PNG that is one bit a pixel, all zero."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    body = b"".join([*(deflate.compress(row) for _ in range(side)), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    header = png(65535, 8, 2, [b""], height=65535)
    assert "more than 100,000,000 pixels" in refused(header)
    assert "more than 178,956,970 pixels" in refused(header, Fit(max_pixels=10**10))  # Pillow's own
    assert "more than 100,000,000 pixels" in refused(bits(20_000))
    assert "12,000 x 10,000 pixels" in refused(png(12_000, 8, 2, [b""], height=10_000))
    assert "side" in refused(png(300_000, 8, 2, [b""], height=1))
    small = saved(Image.new("RGB", (20, 20)), "PNG")
    assert refused(small, Fit(size=(8, 8), max_pixels=399)).startswith("has 20 x 20 pixels, more than 399")
    assert read_picture(small, Fit(size=(8, 8), max_pixels=400)).width == 20
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("bitmap", ["png", "bmp"])
def test_a_bomb_in_an_icon(bitmap: str) -> None:
    icon = saved(Image.new("RGBA", (16, 16), (1, 2, 3, 255)), "ICO", sizes=[(16, 16)], bitmap_format=bitmap)
    assert read(icon)[0][0] == [1, 2, 3]
    big = struct.pack(">II", 12_000, 10_000) if bitmap == "png" else struct.pack("<ii", 12_000, 20_000)
    offset = 22 + (16 if bitmap == "png" else 4)
    bomb = bytearray(icon)
    bomb[offset : offset + 8] = big
    if bitmap == "png":
        bomb[offset + 13 : offset + 17] = struct.pack(">I", zlib.crc32(bomb[offset - 4 : offset + 13]))
    assert "12,000 x 10,000 pixels" in refused(bytes(bomb))


SAMPLES = {
    "png": saved(photo(64, 48), "PNG"),
    "jpg": saved(photo(64, 48), "JPEG"),
    "progressive": saved(photo(64, 48), "JPEG", progressive=True),
    "webp": saved(photo(64, 48), "WEBP"),
    "gif": saved(photo(64, 48), "GIF"),
    "tiff": saved(photo(64, 48), "TIFF", compression="tiff_adobe_deflate"),
    "bmp": saved(photo(64, 48), "BMP"),
    "ico": saved(photo(64, 48).convert("RGBA"), "ICO", sizes=[(32, 32)]),
    "la": saved(photo(64, 48).convert("LA"), "PNG"),
    "icc": saved(photo(64, 48), "JPEG", icc_profile=profile(b"RGB ", 1.4)),
    "animation": saved(photo(64, 48), "GIF", save_all=True, append_images=[photo(64, 48, 1)]),
}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "animation"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(name: str, share: float) -> None:
    refused(SAMPLES[name][: int(len(SAMPLES[name]) * share)])


def test_a_truncated_picture_is_called_so() -> None:
    for name in ("png", "jpg", "gif"):
        message = refused(SAMPLES[name][: len(SAMPLES[name]) // 2])
        assert message == "is truncated: the file ends before its picture does"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_mutations_are_read_or_refused(name: str) -> None:
    chance = random.Random(name)
    for _ in range(60):
        data = bytearray(SAMPLES[name])
        for _ in range(chance.choice((1, 2, 8, 64))):
            where = chance.randrange(min(len(data), chance.choice((64, 700, len(data)))))
            data[where] = chance.choice((0, 255, chance.randrange(256)))
        try:
            assert read_picture(bytes(data), Fit(size=(16, 16))).pixels.shape == (16, 16, 3)
        except ImageError as error:
            check_message(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory to decode it"),
        (RecursionError(), "is broken: RecursionError"),
        (OverflowError("a\nb\x1b[31m\0c"), "is broken: a b [31m c"),
        (ValueError("x" * 5000), "is broken: " + "x" * 117 + "..."),
    ],
)
def test_whatever_pillow_raises_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", broken)
    assert refused(b"x" * 99) == message


def test_threads_read_what_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE", 0)  # every picture waits for its turn
    files = list(SAMPLES.values()) * 4
    alone = [read_picture(data, Fit(size=(32, 32))).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = [
            picture.pixels for picture in pool.map(read_picture, files, itertools.repeat(Fit(size=(32, 32))))
        ]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("format", "share"), [("WEBP", 1.5), ("JPEG2000", 2), ("PNG", 1)])
def test_formats_that_take_more_memory_may_have_fewer_pixels(format: str, share: float) -> None:
    data = saved(Image.new("RGB", (60, 50)), format)
    assert read_picture(data, Fit(size=(16, 16), max_pixels=int(3000 * share))).width == 60
    assert "3,000" not in refused(data, Fit(size=(16, 16), max_pixels=int(3000 * share) - 2))


def test_a_limit_on_files_is_none_on_what_is_encoded() -> None:
    data = saved(Image.new("RGB", (60, 50)), "PNG")
    assert read_picture(data, Fit(size=(256, 256), max_pixels=3000)).pixels.shape == (256, 256, 3)
