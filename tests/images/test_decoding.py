"""Damaged files: refused, or with `allow_damaged` taken as far as they can be decoded."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from picture_files import AS_IS, check_message, photo, saved
from PIL import Image, TiffImagePlugin

from vartok.errors import DamagedImageError, ImageError
from vartok.images import decoding, read_picture

TAKE = dataclasses.replace(AS_IS, allow_damaged=True)
CUT = "is truncated: the file ends before its picture does"
WIDTH, HEIGHT = 64, 48

TRUNCATED: dict[str, tuple[bytes, int]] = {
    "png": (saved(photo(WIDTH, HEIGHT), "PNG"), 26),
    "grey16": (saved(photo(WIDTH, HEIGHT).convert("L").convert("I;16"), "PNG"), 26),
    "gif": (saved(photo(WIDTH, HEIGHT).quantize(), "GIF", interlace=0), 20),
    "jpeg": (saved(photo(WIDTH, HEIGHT), "JPEG", exif=Image.Exif()), 15),
    "cmyk": (saved(photo(WIDTH, HEIGHT).convert("CMYK"), "JPEG"), 16),
    "webp": (saved(photo(WIDTH, HEIGHT), "WEBP"), 14),
    "lossless": (saved(photo(WIDTH, HEIGHT), "WEBP", lossless=True), 26),
    "tiff": (saved(photo(WIDTH, HEIGHT), "TIFF"), 26),
    "ppm": (saved(photo(WIDTH, HEIGHT), "PPM"), 26),
    "qoi": (saved(photo(WIDTH, HEIGHT), "QOI"), 26),
}
"""Whole files, and the number of rows that the first 60% of each hold at least."""


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_truncated_file_gives_the_rows_that_it_has(name: str) -> None:
    data, rows = TRUNCATED[name]
    whole = read_picture(data, TAKE)
    assert (whole.pixels == read_picture(data, AS_IS).pixels).all()
    assert (whole.damage, whole.notes) == (None, ())
    cut = data[: len(data) * 6 // 10]
    with pytest.raises(DamagedImageError) as caught:
        read_picture(cut, AS_IS)
    check_message(caught.value)
    assert caught.value.hint == "set `allow_damaged` to take what can be decoded of it"
    found = read_picture(cut, TAKE)
    assert found.damage == str(caught.value)
    assert found.notes == (f"{found.damage}; took what can be decoded of it",)
    same = (found.pixels == whole.pixels).all((1, 2))
    assert same[:rows].all()
    assert not same.all()


def test_a_bitmap_is_stored_from_below() -> None:
    data = saved(photo(WIDTH, HEIGHT), "BMP")
    found = read_picture(data[: len(data) // 2], TAKE)
    assert (found.pixels[-20:] == read_picture(data, AS_IS).pixels[-20:]).all()
    assert found.damage == CUT


def test_a_progressive_file_gives_its_coarse_passes() -> None:
    data = saved(photo(WIDTH, HEIGHT), "JPEG", progressive=True)
    whole = read_picture(data, AS_IS).pixels.astype(float)
    error = [
        np.square(read_picture(data[: len(data) * share // 10], TAKE).pixels - whole).mean()
        for share in (5, 7, 9)
    ]
    assert 5000 > error[0] > error[1] > error[2] > 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_damaged_picture_is_turned_upright(format: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = saved(photo(WIDTH, HEIGHT), format, exif=exif)
    found = read_picture(data[: len(data) * 7 // 10], TAKE)
    assert (found.width, found.height) == (HEIGHT, WIDTH)
    assert (found.pixels[:, -8:] == read_picture(data, AS_IS).pixels[:, -8:]).all()


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        ("jpeg", "is damaged: the data of its strip 2 ends before its pixels do"),
        ("tiff_adobe_deflate", "is damaged: the data of its strip 2 ends before its pixels do"),
        ("tiff_lzw", "is broken: decoder error -2"),
    ],
)
def test_strips_before_a_broken_one(monkeypatch: pytest.MonkeyPatch, compression: str, message: str) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 2048)
    data = saved(photo(WIDTH, HEIGHT), "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as opened:
        tags: Any = opened.tag_v2  # type: ignore[attr-defined]
        rows, start, size = tags[278], tags[273][1], tags[279][1]
    broken = data[: start + size // 2] + bytes(size - size // 2) + data[start + size :]
    found = read_picture(broken, TAKE)
    assert found.damage == message
    assert (found.pixels[:rows] == read_picture(data, AS_IS).pixels[:rows]).all()


def test_zlib_data_with_a_hole() -> None:
    data = saved(photo(WIDTH, HEIGHT), "PNG")
    hole = len(data) // 2
    found = read_picture(data[:hole] + bytes(400) + data[hole + 400 :], TAKE)
    assert found.damage == "is damaged: the checksum of its pixels' data is wrong"
    assert (found.pixels[:20] == read_picture(data, AS_IS).pixels[:20]).all()


def test_stored_pixels_with_another_checksum() -> None:
    data = bytearray(saved(photo(WIDTH, HEIGHT), "PNG", compress_level=0))
    whole = read_picture(bytes(data), AS_IS).pixels
    data[len(data) // 2] ^= 255  # zlib decodes it without an error
    with pytest.raises(DamagedImageError, match="the checksum of its pixels' data is wrong"):
        read_picture(bytes(data), AS_IS)
    changed = (read_picture(bytes(data), TAKE).pixels != whole).any(2)
    assert 0 < changed.mean() < 0.1


@pytest.mark.parametrize(
    ("name", "kept"), [("png", 40), ("jpeg", 623), ("webp", 20), ("gif", 700), ("tiff", 100)]
)
def test_a_file_without_a_pixel_is_refused(name: str, kept: int) -> None:
    with pytest.raises(ImageError) as caught:
        read_picture(TRUNCATED[name][0][:kept], TAKE)
    check_message(caught.value)
    assert caught.value.hint is None


def test_a_file_that_cannot_be_read_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(5, "Input/output error"), MemoryError(), ImageError("has too many parts")):
        assert not decoding.is_damage(error)
    with pytest.raises(ImageError, match="48 pixels are more than the limit of 9") as caught:
        read_picture(TRUNCATED["png"][0][:900], dataclasses.replace(TAKE, max_pixels=9))
    assert "max_pixels" in str(caught.value.hint)


def test_a_file_is_filled_up_to_the_size_that_it_states(monkeypatch: pytest.MonkeyPatch) -> None:
    webp = TRUNCATED["webp"][0]
    filled = decoding.filled_up(io.BytesIO(webp[:100]))
    assert filled is not None
    assert filled.getvalue() == webp[:100] + bytes(len(webp) - 100)
    assert decoding.filled_up(io.BytesIO(webp)) is None
    box = b"\0\0\0\x0cftypavif" + b"\0\0\0\x20mdat"
    filled = decoding.filled_up(io.BytesIO(box))
    assert filled is not None
    assert len(filled.getvalue()) == 12 + 32
    assert decoding.filled_up(io.BytesIO(b"\0\0\0\x0cftypavif" + b"\xff\xff\xff\xffmdat")) is None
