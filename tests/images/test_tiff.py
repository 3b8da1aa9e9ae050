"""TIFF files: planes, camera raw files, thumbnails, and kinds of pixels that are named."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import AS_IS, Pixels, check_message, profile, read, saved
from PIL import Image

from vartok.errors import ImageError
from vartok.images import Fit, read_picture

Tags = dict[int, tuple[int, list[int]]]
CODES = {1: "B", 3: "H", 4: "I"}


def page(
    values: NDArray[Any],
    *,
    order: str = "<",
    photometric: int = 2,
    planar: int = 1,
    deflate: bool = False,
    tags: Tags | None = None,
) -> bytes:
    """A TIFF file of one page of [H, W, C] values."""
    height, width, channels = values.shape
    ordered = values.astype(values.dtype.newbyteorder("<" if order == "<" else ">"))
    planes = [ordered[..., k] for k in range(channels)] if planar == 2 else [ordered]
    strips = [zlib.compress(plane.tobytes()) if deflate else plane.tobytes() for plane in planes]
    offsets, data = [], b""
    for strip in strips:
        offsets.append(8 + len(data))
        data += strip + b"\0" * (len(strip) % 2)
    entries: Tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * values.itemsize] * channels),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [planar]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels),
    } | (tags or {})
    directory = 8 + len(data)
    table, tail = b"", b""
    for tag, (code, numbers) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(numbers)}{CODES[code]}", *numbers)
        if len(raw) > 4:
            where = directory + 2 + 12 * len(entries) + 4 + len(tail)
            tail += raw + b"\0" * (len(raw) % 2)
            raw = struct.pack(f"{order}I", where)
        table += struct.pack(f"{order}HHI", tag, code, len(numbers)) + raw.ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(f"{order}H", len(entries))
    return head + struct.pack(f"{order}I", directory) + data + count + table + bytes(4) + tail


def message(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(data, AS_IS)
    check_message(caught.value)
    return str(caught.value)


def values(channels: int, dtype: str) -> NDArray[Any]:
    unit = np.random.default_rng(0).random((9, 13, channels))
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return unit.astype(kind)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return (low + unit * (high - low)).astype(kind)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("channels", "photometric", "extra"),
    [(3, 2, []), (4, 2, [2]), (4, 2, [1]), (4, 2, [0]), (4, 5, [])],
    ids=["RGB", "RGBA", "RGBa", "RGBX", "CMYK"],
)
def test_planes_of_16_bits(order: str, channels: int, photometric: int, extra: list[int]) -> None:
    tags: Tags = {338: (3, extra)} if extra else {}
    pixels: Pixels
    pixels, *others = (
        read_picture(
            page(
                values(channels, "u2"),
                order=order,
                photometric=photometric,
                planar=planar,
                deflate=deflate,
                tags=tags,
            ),
            AS_IS,
        ).pixels
        for planar in (1, 2)
        for deflate in (False, True)
    )
    assert pixels.std() > 20
    for other in others:
        assert np.array_equal(pixels, other)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4"])
def test_one_plane_is_not_apart(order: str, dtype: str) -> None:
    together, apart = (page(values(1, dtype), order=order, photometric=1, planar=planar) for planar in (1, 2))
    assert read(together) == read(apart)


def test_planes_in_lab_are_refused() -> None:
    lab = values(3, "u1")
    assert read_picture(page(lab, photometric=8), AS_IS).width == 13
    for deflate in (False, True):
        data = page(lab, photometric=8, planar=2, deflate=deflate)
        assert message(data) == "is a TIFF of planes in LAB, which vartok cannot read"


@pytest.mark.parametrize("order", "<>")
def test_kinds_of_pixels_are_named(order: str) -> None:
    floats = message(page(values(3, "f4"), order=order))
    assert floats == "is a TIFF of 3 x 32-bit floats a pixel, which vartok cannot read"
    doubles = message(page(values(1, "f8"), order=order, photometric=1))
    assert doubles == "is a TIFF of 1 x 64-bit floats a pixel, which vartok cannot read"
    signed = message(page(values(3, "i2"), order=order))
    assert signed == "is a TIFF of 3 x 16-bit signed integers a pixel, which vartok cannot read"


SMALL = np.full((4, 6, 3), 9, np.uint8)
RAW = "is a raw file of a camera ({}), which vartok cannot read"


@pytest.mark.parametrize("order", "<>")
def test_raw_files_in_tiff(order: str) -> None:
    reduced: Tags = {254: (4, [1]), 330: (4, [8])}
    assert message(page(SMALL, order=order, tags=reduced)) == RAW.format("DNG, NEF, ARW, ...")
    old: Tags = {255: (3, [2]), 330: (4, [8, 8])}
    assert message(page(SMALL, order=order, tags=old)) == RAW.format("DNG, NEF, ARW, ...")
    version: Tags = {50706: (1, [1, 4, 0, 0])}
    assert message(page(SMALL, order=order, tags=version)) == RAW.format("DNG")
    mosaic = page(values(1, "u2"), order=order, photometric=32803)
    assert message(mosaic) == RAW.format("DNG, NEF, ARW, ...")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"FOVb\0\0\0\0", "X3F"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIU\0\x08\0\0\0", "RW2"),
        (b"\0MRM\0\0\0\0", "MRW"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
        (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
        (b"II*\0\x10\0\0\0CR\2\0\0\0\0\0", "CR2"),
    ],
)
def test_raw_files_of_other_kinds(start: bytes, name: str) -> None:
    assert message(start.ljust(200, b"\0")) == RAW.format(name)


def test_a_pyramid_is_no_raw_file() -> None:
    assert read(page(SMALL, tags={330: (4, [8])})) == SMALL.tolist()
    assert read(page(SMALL, tags={254: (4, [1])})) == SMALL.tolist()  # the only picture there is


def test_a_page_that_is_a_thumbnail_is_passed_over() -> None:
    large, small = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (4, 3), "blue")
    large.encoderinfo = {"tiffinfo": {254: 0}}
    data = saved(small, "TIFF", tiffinfo={254: 1}, save_all=True, append_images=[large])
    picture = read_picture(data, AS_IS)
    assert picture.pixels.tolist() == [[[255, 0, 0]] * 40] * 30
    assert picture.notes == ("multi-page: took page 2 of 2, the first that is not a thumbnail",)
    with pytest.raises(ImageError, match="40 x 30 pixels are more than the limit of 1,199"):
        read_picture(data, Fit(size=8, max_pixels=1199))


def test_the_first_of_several_thumbnails_is_taken() -> None:
    first, second = Image.new("RGB", (4, 3), "blue"), Image.new("RGB", (4, 3), "red")
    data = saved(first, "TIFF", tiffinfo={254: 1}, save_all=True, append_images=[second])
    picture = read_picture(data, AS_IS)
    assert picture.pixels.tolist() == [[[0, 0, 255]] * 4] * 3
    assert picture.notes == ("multi-page: took the first of 2 pages",)


@pytest.mark.parametrize("data", [b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0+\0\x08\0\0" + b"\xff" * 8])
def test_broken_headers(data: bytes) -> None:
    message(data)


def test_a_profile_of_lab_is_not_mentioned() -> None:
    plain = page(values(3, "u1"), photometric=8)
    data = profile(b"Lab ", 2.2)
    tagged = page(values(3, "u1"), photometric=8, tags={34675: (1, list(data))})
    assert read_picture(tagged, AS_IS).notes == ()
    assert read(tagged) == read(plain)
    broken = page(values(3, "u1"), photometric=8, tags={34675: (1, list(b"no profile"))})
    assert read_picture(broken, AS_IS).notes == (
        "ignored its colour profile, which is broken or of an unsupported kind",
    )
