"""TIFF files of several channels, which Pillow does not read."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from vartok.errors import DamagedImageError, ImageError
from vartok.images import Fit, read_picture

SIZE = HEIGHT, WIDTH = 20, 33


def values(channels: int, dtype: Any, seed: int = 0) -> NDArray[Any]:
    """Return random values, [HEIGHT, WIDTH, C]."""
    random = np.random.default_rng(seed)
    if dtype == np.float32:
        return random.random((HEIGHT, WIDTH, channels), np.float32)
    return random.integers(0, int(np.iinfo(dtype).max) + 1, (HEIGHT, WIDTH, channels), dtype)


def tiff(
    array: NDArray[Any],
    *,
    order: Literal["<", ">"] = "<",
    planar: bool = False,
    deflate: bool = False,
    predictor: bool = False,
    tile: tuple[int, int] | None = None,
    extra: dict[int, int] | None = None,
) -> bytes:
    """Return a TIFF file of [H, W, C] values, in strips of 8 rows or in tiles of (height, width)."""
    height, width, channels = array.shape
    parts = []
    rows, columns = tile or (8, width)
    for plane in np.moveaxis(array, 2, 0)[..., None] if planar else [array]:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                part = plane[top : top + rows, left : left + columns]
                if tile:
                    part = np.pad(part, ((0, rows - part.shape[0]), (0, columns - part.shape[1]), (0, 0)))
                if predictor:
                    words = part.view(f"u{part.itemsize}")  # as libtiff, of floats too
                    part = np.concatenate([words[:, :1], np.diff(words, axis=1)], axis=1)
                data = part.astype(part.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(data) if deflate else data)
    body, offsets = b"", []
    for part in parts:
        offsets.append(8 + len(body))
        body += part + bytes(len(part) % 2)
    sizes = [len(part) for part in parts]
    tags: dict[int, list[int]] = {
        **{256: [width], 257: [height], 258: [8 * array.itemsize] * channels, 259: [8 if deflate else 1]},
        **{262: [1], 277: [channels], 284: [2 if planar else 1], 317: [2 if predictor else 1]},
        **({322: [columns], 323: [rows], 324: offsets, 325: sizes} if tile else {}),
        **({} if tile else {273: offsets, 278: [rows], 279: sizes}),
        **({338: [0] * (channels - 1)} if channels > 1 else {}),
        339: [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * channels,
        **{tag: [value] for tag, value in (extra or {}).items()},
    }
    start = 8 + len(body)
    entries, numbers = b"", b""
    for tag, items in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(items)}L", *items)
        if len(packed) > 4:
            place = start + 6 + 12 * len(tags) + len(numbers)
            packed, numbers = struct.pack(f"{order}L", place), numbers + packed
        entries += struct.pack(f"{order}HHL", tag, 4, len(items)) + packed
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", start)
    return header + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + numbers


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_every_layout(dtype: Any, order: str, planar: bool, tile: tuple[int, int] | None) -> None:
    array = values(5, dtype)
    wanted = np.rint(array.astype(float) * 65535).astype(np.uint16) if dtype == np.float32 else array
    for deflate, predictor in ((False, False), (True, False), (True, True)):
        options: Any = {"order": order, "planar": planar, "tile": tile}
        data = tiff(array, deflate=deflate, predictor=predictor, **options)
        found = read_picture(data, Fit(channels=5, size=SIZE)).pixels
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


def test_two_and_four_channels_of_16_bits_and_orientation() -> None:
    for channels in (2, 4):
        array = values(channels, np.uint16)
        assert np.array_equal(read_picture(tiff(array), Fit(channels=channels, size=SIZE)).pixels, array)
    turned = read_picture(tiff(array, extra={274: 3}), Fit(channels=4, size=SIZE)).pixels
    assert np.array_equal(turned, array[::-1, ::-1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(values(4, np.uint8)), "has 4 channels, but the checkpoint takes 5"),
        (tiff(values(5, np.uint8), extra={259: 7}), "compressed in a way that vartok cannot read"),
        (tiff(values(5, np.uint8), extra={317: 3}), "compressed in a way that vartok cannot read"),
        (tiff(values(5, np.uint8), extra={258: 4}), "is a TIFF of 5 x 4-bit unsigned integers"),
        (tiff(values(5, np.uint8), extra={256: 1 << 17, 257: 1 << 17}), "more than the limit of"),
        (tiff(values(5, np.uint8), extra={262: 34892}), "is a raw file of a camera"),
        (tiff(values(5, np.uint8), extra={254: 1}), "whose first page is a thumbnail"),
        (tiff(values(5, np.uint8), extra={262: 0}), "in which white is 0"),
        (b"MM\0+\0\x08\0\0" + bytes(100), "is a TIFF that vartok cannot read"),
    ],
    ids=["channels", "jpeg", "predictor", "4 bits", "size", "raw", "reduced", "white", "big"],
)
def test_files_of_other_kinds_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as error:
        read_picture(data, Fit(channels=5, size=SIZE))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files() -> None:
    array = values(5, np.uint8)
    whole = tiff(array, deflate=True)
    broken = bytearray(whole)
    broken[2500:2540] = bytes(40)
    for data in (whole[:-100], whole[:300], tiff(array, tile=(16, 16), extra={322: 0})):
        with pytest.raises(ImageError):  # the directory lies at the end
            read_picture(data, Fit(channels=5, size=SIZE))
    with pytest.raises(DamagedImageError):
        read_picture(bytes(broken), Fit(channels=5, size=SIZE))
    picture = read_picture(bytes(broken), Fit(channels=5, allow_damaged=True, size=SIZE))
    assert picture.damage


def directory_first(array: NDArray[Any], offset: int) -> bytes:
    """Return an uncompressed TIFF file of [H, W, C] values, whose only strip lies last, at an offset."""
    height, width, channels = array.shape
    tags = {256: width, 257: height, 258: 8, 262: 1, 273: offset, 277: channels, 278: height, 279: array.size}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(offset, b"\0") + array.tobytes()


def test_what_there_is_of_a_truncated_file() -> None:
    array = values(5, np.uint8)
    whole = directory_first(array, 200)
    assert np.array_equal(read_picture(whole, Fit(channels=5, size=SIZE)).pixels, array)
    with pytest.raises(DamagedImageError, match="truncated"):
        read_picture(whole[:-700], Fit(channels=5, size=SIZE))
    fit = Fit(channels=5, allow_damaged=True, size=SIZE)
    picture = read_picture(whole[:-700], fit)
    assert picture.damage
    assert np.array_equal(picture.pixels.ravel()[:-700], array.ravel()[:-700])
    with pytest.raises(DamagedImageError):
        read_picture(whole[:200], fit)


def test_only_the_bytes_of_the_strips_are_read(tmp_path: Path) -> None:
    array = values(5, np.uint8)
    sparse = tmp_path / "sparse.tif"
    sparse.write_bytes(tiff(array, planar=True))
    os.truncate(sparse, 1 << 30)
    tracemalloc.start()
    try:
        found = read_picture(sparse, Fit(channels=5, size=SIZE)).pixels
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, array)
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({259: 8, 278: HEIGHT, 273: 8, 279: 1 << 29}, "more data than its pixels have"),
        ({278: HEIGHT, 273: 8, 279: 1 << 29}, None),  # the sizes of data as they are follow
        ({278: 1, 273: 8}, "are not all there"),
        ({278: 0}, "have no size"),
        ({322: 1 << 17, 323: 1 << 17, 324: 8, 325: 1 << 29}, "much larger than its picture"),
    ],
)
def test_strips_are_checked_before_memory_is_taken(tags: dict[int, int], reason: str | None) -> None:
    data = tiff(values(5, np.uint8), extra=tags)
    fit = Fit(channels=5, size=SIZE)
    if reason is None:
        read_picture(data, fit)
    else:
        with pytest.raises(ImageError, match=reason):
            read_picture(data, fit)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
def test_big_endian_values_that_libtiff_decodes_are_not_swapped_twice(dtype: Any) -> None:
    array = np.linspace(0, 1 if dtype == np.float32 else 30_000, HEIGHT * WIDTH).astype(dtype)
    data = tiff(array.reshape(HEIGHT, WIDTH, 1), order=">", deflate=True)
    levels = read_picture(data, Fit(channels=1, size=SIZE)).pixels.ravel().astype(int)
    assert (np.diff(levels) >= 0).all()
    assert (levels[0], levels[-1]) == (0, 65535)
