"""Read TIFF files of other numbers of channels than Pillow reads.

Pillow decodes the file's strips or tiles as a grey picture whose rows hold all channels of a pixel side by
side; or one such picture for each channel, if they lie in planes.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from vartok.errors import DamagedImageError, ImageError
from vartok.images.arrays import check_values, from_values
from vartok.images.bands import UPRIGHT, Bands
from vartok.images.channels import channels_error
from vartok.images.decoding import DAMAGED_HINT, TRUNCATED, decode
from vartok.images.tiff import MARKS, first_tags, is_reduced, unsupported_tiff
from vartok.images.tiff_tags import (
    BITS,
    COMPRESSION,
    COUNTS,
    FORMAT,
    HEIGHT,
    OFFSETS,
    ORIENTATION,
    PHOTOMETRIC,
    PLANES,
    PREDICTOR,
    ROWS,
    SAMPLES,
    TILE_COUNTS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vartok.images.fit import Fit

COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 50000: "Zstandard"}
"""Lossless compressions of bytes, by their numbers in a TIFF file."""

KINDS = {(8, 1), (16, 1), (32, 3)}
"""(bits, format) of the values that are read: unsigned integers and floats."""

_MARGIN = 1024
"""Bytes that compression may add to a strip or a tile, beside twice its own."""


def read_tiff_bands(stream: BinaryIO, fit: Fit, notes: list[str]) -> tuple[Image.Image | Bands, str | None]:
    """Read a TIFF file of `fit.channels` channels, which are neither 1 nor 3, of 8 or 16 bits or float32.

    Args:
        stream: the file, at its start.
        fit: gives the number of channels, and the limit of pixels.
        notes: remarks for the user, to which this may add.

    Returns:
        The picture, upright, and how the file is damaged, or None.

    Raises:
        ImageError: the file has another number of channels, is of a kind that is not read, or is damaged or
            too large.
    """
    tags = first_tags(stream)
    if not tags:
        raise ImageError("is a TIFF that vartok cannot read")
    channels = tags.get(SAMPLES, 1)
    if channels != fit.channels:
        raise channels_error(channels if isinstance(channels, int) else 1, fit.channels)
    width, height = tags.get(WIDTH), tags.get(HEIGHT)
    check_values(width, height, channels, fit.max_pixels)
    if is_reduced(tags):
        raise ImageError("is a TIFF whose first page is a thumbnail", hint="save the full page alone")
    if tags.get(PHOTOMETRIC) == 0:
        raise ImageError(
            "is a TIFF of several channels in which white is 0, which vartok cannot read",
            hint="save it with black as 0",
        )
    if (_only(tags, BITS), _only(tags, FORMAT)) not in KINDS:
        raise ImageError(unsupported_tiff(stream) or "is a TIFF of channels of several kinds")
    if tags.get(COMPRESSION, 1) not in COMPRESSIONS or tags.get(PREDICTOR, 1) not in (1, 2):
        names = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise ImageError(
            f"is a TIFF of {channels} channels, compressed in a way that vartok cannot read",
            hint=f"save it with one of {names}",
        )
    if tags.next:
        notes.append("multi-page: took the first page")
    order = ">" if stream.read(2) == b"MM" else "<"
    planes = channels if tags.get(PLANES, 1) == 2 else 1
    parts = _Parts(stream, tags, planes, fit)
    damage, found = None, []
    for plane in range(planes):
        file, cut = parts.as_grey(plane, order)
        if cut and not fit.allow_damaged:
            raise DamagedImageError(cut, hint=DAMAGED_HINT)
        with Image.open(file, formats=["TIFF"]) as source:
            damage = decode(source, file, allow_damaged=fit.allow_damaged) or cut or damage
            values = np.asarray(source).reshape(height, width, channels // planes)
        found.append(_undo_predictor(values, tags))
    array = np.concatenate(found, axis=2)
    if damage and array.min() == array.max():  # the filling of what is missing
        raise DamagedImageError(damage)
    bands = from_values(array, channels, notes)
    turn = UPRIGHT.get(tags.get(ORIENTATION, 1))
    return bands if turn is None else bands.transpose(turn), damage


def _only(tags: Any, tag: int) -> int | None:
    """Return the value of a tag, 1 if the file has none; None if it is not the same for every channel."""
    values = tags.get(tag, 1)
    found = {*values} if isinstance(values, tuple) else {values}
    return found.pop() if len(found) == 1 else None


class _Parts:
    """The strips or tiles of a TIFF file.

    Args:
        stream: the file.
        tags: the tags of its first directory.
        planes: number of planes.
        fit: gives the limit of pixels.

    Raises:
        ImageError: they have no size, are much larger than the picture, or state more data than pixels have.
    """

    def __init__(self, stream: BinaryIO, tags: Any, planes: int, fit: Fit) -> None:
        width, height = tags[WIDTH], tags[HEIGHT]
        self._stream = stream
        self._tags = tags
        self._repeat = 1 if planes > 1 else tags[SAMPLES]  # values of a pixel in a row
        self._tiled = TILE_OFFSETS in tags
        if self._tiled:
            self._rows, self._columns = tags.get(TILE_HEIGHT), tags.get(TILE_WIDTH)
        else:
            self._rows, self._columns = tags.get(ROWS, height), width
            self._rows = min(self._rows, height) if type(self._rows) is int else None
        if any(type(side) is not int or side < 1 for side in (self._rows, self._columns)):
            raise ImageError("is a TIFF whose strips or tiles have no size")
        down, across = -(-height // self._rows), -(-width // self._columns)
        stored = down * across * self._rows * self._columns * tags[SAMPLES]  # values, with tiles' margins
        if self._tiled and stored > 6 * fit.max_pixels:  # twice what a picture may have
            raise ImageError("is a TIFF whose tiles are much larger than its picture")
        self._each = down * across
        keys = (TILE_OFFSETS, TILE_COUNTS) if self._tiled else (OFFSETS, COUNTS)
        offsets, counts = (tags.get(key, ()) for key in keys)
        row = self._columns * self._repeat * _only(tags, BITS) // 8
        if tags.get(COMPRESSION, 1) == 1:  # sizes follow from the picture's, and are often stated wrong
            tops = range(0, height, self._rows)
            rows = [self._rows if self._tiled else min(self._rows, height - top) for top in tops]
            counts = [row * n for n in rows for _ in range(across)] * planes
        expected = self._each * planes
        if min(len(offsets), len(counts)) < expected or min(*offsets, *counts) < 0:
            raise DamagedImageError("is broken: the places of its strips or tiles are not all there")
        self._places = list(zip(offsets, counts, strict=False))[:expected]
        if sum(size for _, size in self._places) > 2 * row * self._rows * expected + _MARGIN * expected:
            raise ImageError("is a TIFF whose strips or tiles state more data than its pixels have")

    def as_grey(self, plane: int, order: str) -> tuple[io.BytesIO, str | None]:
        """Return a TIFF file of one channel: a plane of the file, or all values of its rows without planes.

        Args:
            plane: number of the plane, from 0.
            order: byte order, "<" or ">".

        Returns:
            The file, at its start, and how its data are cut short, or None.
        """
        file, cut, offsets = io.BytesIO(bytes(8)), None, []
        places = self._places[plane * self._each : (plane + 1) * self._each]
        start = file.seek(0, io.SEEK_END)
        for offset, size in places:
            offsets.append(start)
            self._stream.seek(offset)
            data = self._stream.read(size)
            if len(data) < size:
                cut = TRUNCATED
            start += file.write(data.ljust(size, b"\0"))
        start += file.write(bytes(start % 2))
        tags = self._tags
        values: dict[int, Any] = {
            WIDTH: [tags[WIDTH] * self._repeat],
            HEIGHT: [tags[HEIGHT]],
            BITS: [_only(tags, BITS)],
            COMPRESSION: [tags.get(COMPRESSION, 1)],
            PHOTOMETRIC: [1],  # 0 is black
            TILE_OFFSETS if self._tiled else OFFSETS: offsets,
            SAMPLES: [1],
            TILE_HEIGHT if self._tiled else ROWS: [self._rows],
            TILE_COUNTS if self._tiled else COUNTS: [size for _, size in places],
            **({TILE_WIDTH: [self._columns * self._repeat]} if self._tiled else {}),
            FORMAT: [_only(tags, FORMAT)],
        }
        file.write(_directory(values, start, order))
        file.seek(0)
        file.write((MARKS[0] if order == "<" else MARKS[1]) + struct.pack(f"{order}L", start))
        file.seek(0)
        return file, cut


def _directory(values: dict[int, Any], start: int, order: str) -> bytes:
    """Return a directory of a TIFF file.

    Args:
        values: whole numbers below 2^32, by tag.
        start: place of the directory in the file.
        order: byte order, "<" or ">".
    """
    entries, numbers = b"", b""
    end = start + 2 + 12 * len(values) + 4
    for tag, items in sorted(values.items()):
        short = tag in (BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, FORMAT)
        packed = struct.pack(f"{order}{len(items)}{'H' if short else 'L'}", *items)
        if len(packed) > 4:
            packed, numbers = struct.pack(f"{order}L", end + len(numbers)), numbers + packed
        entries += struct.pack(f"{order}HHL", tag, 3 if short else 4, len(items)) + packed.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(values)) + entries + bytes(4) + numbers


def _undo_predictor(values: NDArray[Any], tags: Any) -> NDArray[Any]:
    """Undo horizontal differencing: [H, W, C] values are differences from the pixel to the left."""
    if tags.get(PREDICTOR, 1) == 1:
        return values
    width = values.shape[1]
    step = tags.get(TILE_WIDTH, width) if TILE_OFFSETS in tags else width
    values = values.astype(values.dtype.newbyteorder("="))
    words = values.view(f"u{values.itemsize}")  # libtiff takes differences of floats as if they were integers
    parts = (words[:, left : left + step] for left in range(0, width, step))
    summed = np.concatenate([part.cumsum(axis=1, dtype=words.dtype) for part in parts], axis=1)
    return summed.view(values.dtype)
