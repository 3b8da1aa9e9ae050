"""Find strips and tiles of TIFF files whose data ends early, where libtiff fills in pixels without an error.

Most strips are judged by their last bytes. Only one that ends as no whole strip should is decoded on its own,
so that encoders with odd ends raise no false alarm.
"""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from vartok.errors import DamagedImageError, ImageError
from vartok.images.fit import MAX_BYTES
from vartok.images.jpeg import load_checked
from vartok.images.tiff_tags import (
    COMPRESSION,
    COUNTS,
    JPEG_TABLES,
    OFFSETS,
    TILE_COUNTS,
    TILE_OFFSETS,
)

_STRIPS, _TILES = (OFFSETS, COUNTS), (TILE_OFFSETS, TILE_COUNTS)  # tags of offsets, and of sizes in bytes
_JPEG, _DEFLATE = (7,), (8, 32946)  # values of COMPRESSION
_END = 32  # bytes that are looked at first; encoders may pad a strip
_ZEROS = bytes(16)  # so many are no end of zlib data, which is a checksum
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_MAX_DECODED = 64  # odd strips that are decoded; if these are whole, the encoder is odd
_MAX_BYTES_PER_PIXEL = 16  # decoded of all odd strips; the largest pixels have 4 channels of 32 bits
_SMALL = 1 << 22  # pixels; a smaller picture may have a tile of so many
_JPEG_BYTES_PER_PIXEL = 4
_PIECE = 1 << 16  # bytes of zlib data that are inflated at a time


def check_strips(source: ImageFile, stream: BinaryIO) -> None:
    """Check that the strips and tiles of a TIFF page hold the data of all their pixels.

    JPEG data is checked for its end, and zlib data for a hole of zeros at its end. Strips of more than
    `MAX_BYTES` are not checked, and no more are once a multiple of the picture's own bytes is decoded: many
    strips may state the place of the same data, and that may be a zip bomb.

    Args:
        source: the page, not yet decoded.
        stream: the file that it was opened from.

    Raises:
        DamagedImageError: the data of a strip or a tile ends before its pixels do.
    """
    tags: Any = source.tag_v2  # type: ignore[attr-defined]
    compression = tags.get(COMPRESSION)
    if compression not in _JPEG + _DEFLATE:
        return
    left = _MAX_BYTES_PER_PIXEL * max(source.width * source.height, _SMALL)
    decoded = 0
    for name, pair in (("strip", _STRIPS), ("tile", _TILES)):
        starts, sizes = (_whole(tags, tag) for tag in pair)
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False)):
            stream.seek(max(start, start + size - _END))
            end = stream.read(min(size, _END))
            odd = _EOI not in end if compression in _JPEG else end.endswith(_ZEROS)
            if len(end) < len(_ZEROS) or not odd or size > min(left, MAX_BYTES) or decoded == _MAX_DECODED:
                continue
            decoded += 1
            left -= size
            stream.seek(start)
            data = stream.read(size)
            if compression in _JPEG:
                whole, used = _check_jpeg(tags.get(JPEG_TABLES), data, left)
            else:
                whole, used = _check_zlib(data, left)
            left -= used
            if not whole:
                raise DamagedImageError(
                    f"is damaged: the data of its {name} {number + 1} ends before its pixels do"
                )


def _whole(tags: Any, tag: int) -> tuple[int, ...]:
    """Return the whole numbers of a tag; none if it holds anything else."""
    values = tags.get(tag, ())
    whole = isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
    return values if whole else ()


def _check_jpeg(tables: object, data: bytes, max_bytes: int) -> tuple[bool, int]:
    """Decode JPEG data without an end marker.

    Args:
        tables: value of the tag JPEGTables: a JPEG file of tables only, or None.
        data: an abbreviated JPEG file, whose tables may be elsewhere.
        max_bytes: data of more bytes of pixels is not decoded.

    Returns:
        False if the data ends early, True also if that is not known; and the number of bytes of its pixels.
    """
    shared = tables.removeprefix(_SOI).removesuffix(_EOI) if isinstance(tables, bytes) else b""
    data = _SOI + shared + data.removeprefix(_SOI).rstrip(b"\0") + _EOI
    used = 0
    try:
        image = JpegImageFile(io.BytesIO(data))
        used = _JPEG_BYTES_PER_PIXEL * image.width * image.height
        if used > max_bytes:
            return True, 0
        load_checked(image, io.BytesIO(data))
    except ImageError:
        return False, used
    except Exception:  # Pillow raises any type for broken bytes; libtiff decides
        return True, used
    return True, used


def _check_zlib(data: bytes, max_bytes: int) -> tuple[bool, int]:
    """Inflate zlib data up to `max_bytes` of pixels.

    Returns:
        False if the data is broken or has no end, True also beyond `max_bytes`; and the number of bytes
        that were inflated.
    """
    inflater = zlib.decompressobj()
    total = 0
    try:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece:
                total += len(inflater.decompress(piece, 1 << 20))
                piece = inflater.unconsumed_tail
                if inflater.eof or total > max_bytes:
                    return True, total
        total += len(inflater.flush())
    except zlib.error:
        return False, total
    return inflater.eof, total
