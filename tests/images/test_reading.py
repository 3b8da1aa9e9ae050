"""Pictures are read as a viewer shows them."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import AS_IS, MAGENTA, Pixels, chunk, photo, png, profile, read, saved, tiff
from PIL import Image, ImageCms

from vartok.errors import ImageError
from vartok.images import Fit, read_picture


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
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    picture = read_picture(saved(Image.fromarray(values), "TIFF"), AS_IS)
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    assert picture.notes == ()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_grey_without_a_white_of_its_own_is_stretched_with_a_note(kind: type) -> None:
    values: NDArray[Any] = np.array([[-1000, 0, 1000, 3000]], kind)
    picture = read_picture(saved(Image.fromarray(values), "TIFF"), AS_IS)
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    assert picture.notes == ("its values do not define white: rescaled its range, -1000 to 3000",)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_that_are_not_finite_are_refused(value: float, channels: int) -> None:
    values = np.full((3, 2, channels), 0.5, np.float32)
    values[1, 1, 0] = value
    array = io.BytesIO()
    np.save(array, values)
    tiff = saved(Image.fromarray(values[..., 0]), "TIFF")
    for data, taken in ((array.getvalue(), channels), (tiff, 1), (tiff, 3)):
        with pytest.raises(ImageError, match="holds NaN or infinite values"):
            read_picture(data, Fit(mode="native", multiple=1, channels=taken))


def test_one_level_alone_is_black() -> None:
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
        (b"no profile at all", "ignored its colour profile, which is broken or of an unsupported kind"),
        (
            profile(b"RGB ", 2.2)[:200],
            "ignored its colour profile, which is broken or of an unsupported kind",
        ),
        (profile(b"CMYK", 2.2), "ignored its colour profile, which is broken or of an unsupported kind"),
        (profile(b"Lab ", 2.2), "ignored its colour profile, which is broken or of an unsupported kind"),
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
