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

from vartok.errors import ImageError
from vartok.images.arrays import check_values, from_values
from vartok.images.bands import UPRIGHT, Bands
from vartok.images.channels import channels_error
from vartok.images.decoding import decode
from vartok.images.tiff import MARKS, first_tags, unsupported_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vartok.images.fit import Fit

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS, PLANES = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, FORMAT = 317, 322, 323, 324, 325, 339

COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 50000: "Zstandard"}
"""Lossless compressions of bytes, by their numbers in a TIFF file."""

KINDS = {(8, 1), (16, 1), (32, 3)}
"""(bits, format) of the values that are read: unsigned integers and floats."""


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
    stream.seek(0)
    data = stream.read()
    planes = channels if tags.get(PLANES, 1) == 2 else 1
    damage, parts = None, []
    for plane in range(planes):
        file = io.BytesIO(_as_grey(data, tags, plane, planes))
        with Image.open(file, formats=["TIFF"]) as source:
            damage = decode(source, file, allow_damaged=fit.allow_damaged) or damage
            values = np.asarray(source).reshape(height, width, channels // planes)
        parts.append(_undo_predictor(values, tags))
    bands = from_values(np.concatenate(parts, axis=2), channels, notes)
    turn = UPRIGHT.get(tags.get(ORIENTATION, 1))
    return bands if turn is None else bands.transpose(turn), damage


def _only(tags: Any, tag: int) -> int | None:
    """Return the value of a tag, 1 if the file has none; None if it is not the same for every channel."""
    values = tags.get(tag, 1)
    found = {*values} if isinstance(values, tuple) else {values}
    return found.pop() if len(found) == 1 else None


def _as_grey(data: bytes, tags: Any, plane: int, planes: int) -> bytes:
    """Return a TIFF file of one channel: a plane of another file, or all values of its rows without planes.

    Args:
        data: the file.
        tags: the tags of its first directory.
        plane: number of the plane, from 0.
        planes: number of planes.
    """
    repeat = 1 if planes > 1 else tags[SAMPLES]  # values of a pixel in a row
    tiled = TILE_OFFSETS in tags
    rows = tags[TILE_HEIGHT] if tiled else min(tags.get(ROWS, tags[HEIGHT]), tags[HEIGHT])
    offsets, counts = (TILE_OFFSETS, TILE_COUNTS) if tiled else (OFFSETS, COUNTS)
    each = len(tags[offsets]) // planes
    values = {
        WIDTH: [tags[WIDTH] * repeat],
        HEIGHT: [tags[HEIGHT]],
        BITS: [_only(tags, BITS)],
        COMPRESSION: [tags.get(COMPRESSION, 1)],
        PHOTOMETRIC: [1],  # 0 is black
        offsets: tags[offsets][plane * each : (plane + 1) * each],
        SAMPLES: [1],
        TILE_HEIGHT if tiled else ROWS: [rows],
        counts: tags[counts][plane * each : (plane + 1) * each],
        **({TILE_WIDTH: [tags[TILE_WIDTH] * repeat]} if tiled else {}),
        FORMAT: [_only(tags, FORMAT)],
    }
    start = len(data) + len(data) % 2
    order = "<" if data[:2] == b"II" else ">"
    header = (MARKS[0] if order == "<" else MARKS[1]) + struct.pack(f"{order}L", start)
    return header + data[8:].ljust(start - 8, b"\0") + _directory(values, start, order)


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
