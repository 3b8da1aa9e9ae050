"""Drop the chunks of a PNG file that hold no pixels and that Pillow would fail at, and check the others."""

from __future__ import annotations

import io
import re
import zlib
from typing import BinaryIO

from PIL import PngImagePlugin

from vartok.errors import DamagedImageError, ImageError
from vartok.images.fit import MAX_BYTES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
_NAME = re.compile(rb"\w{4}")  # of a chunk, as Pillow has it
_MIN_SIZES = {b"acTL": 8, b"cHRM": 32, b"fcTL": 26, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1}
_NOTES = {
    b"iCCP": "ignored its colour profile, which is broken or too large",
    b"eXIf": "ignored its EXIF data, which is broken",
}


def without_unreadable_chunks(stream: BinaryIO, notes: list[str]) -> BinaryIO:
    """Return a PNG file without text that is too large and without broken ancillary chunks.

    The file is returned as it is if it has no such chunk, or is no PNG file. A transparent colour (tRNS)
    changes pixels, so it is kept, and Pillow refuses it if its checksum is wrong.

    Args:
        stream: the file; its position is the start, before and after.
        notes: remarks for the user, to which this may add some.

    Raises:
        ImageError: the file has more than `_MAX_CHUNKS` chunks, which take Pillow seconds.
    """
    dropped: list[tuple[int, int]] = []
    if stream.read(8) == _SIGNATURE:
        dropped = _unreadable(stream, notes)
    stream.seek(0)
    if not dropped:
        return stream
    size = stream.seek(0, io.SEEK_END)
    if size - sum(end - start for start, end in dropped) > MAX_BYTES:
        stream.seek(0)
        return stream
    kept, at = io.BytesIO(), 0
    for start, end in [*dropped, (size, size)]:
        stream.seek(at)
        kept.write(stream.read(start - at))
        at = end
    stream.seek(0)
    kept.seek(0)
    return kept


def check_data(stream: BinaryIO) -> None:
    """Check the checksums of the chunks that hold a PNG file's pixels, which Pillow ignores.

    Args:
        stream: the file. Where it is truncated, nothing more is checked: Pillow says so.

    Raises:
        DamagedImageError: a checksum is wrong.
    """
    stream.seek(len(_SIGNATURE))
    while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
        left, crc = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
        if head[4:] != b"IDAT":
            stream.seek(left + 4, io.SEEK_CUR)
            continue
        while left and (piece := stream.read(min(left, 1 << 20))):
            left -= len(piece)
            crc = zlib.crc32(piece, crc)
        checksum = stream.read(4)
        if len(checksum) == 4 and int.from_bytes(checksum, "big") != crc:
            raise DamagedImageError("is damaged: the checksum of its pixels' data is wrong")


def _unreadable(stream: BinaryIO, notes: list[str]) -> list[tuple[int, int]]:
    """Return where chunks to be dropped start and end."""
    dropped, text = [], 0
    for _ in range(_MAX_CHUNKS):
        start = stream.tell()
        head = stream.read(8)
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        if not _NAME.fullmatch(name) or name == b"IEND":
            break
        end = start + 8 + size + 4
        if not name.isalpha() or not name[0] & 0x20 or name in (b"tRNS", b"fdAT"):
            stream.seek(end)
            continue
        compressed, crc, left = b"", zlib.crc32(name), size
        while left and (piece := stream.read(min(left, 1 << 20))):
            left -= len(piece)
            crc = zlib.crc32(piece, crc)
            if name in (b"zTXt", b"iTXt", b"iCCP") and len(compressed) <= PngImagePlugin.MAX_TEXT_MEMORY:
                compressed += piece
        checksum = stream.read(4)
        if left or len(checksum) < 4:
            break  # Pillow says that the file is truncated
        inflated = _inflated_size(name, compressed)
        readable = int.from_bytes(checksum, "big") == crc and size >= _MIN_SIZES.get(name, 0)
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            readable &= text + max(size, inflated) <= PngImagePlugin.MAX_TEXT_MEMORY
            text += max(size, inflated) if readable else 0
        if not readable or inflated > PngImagePlugin.MAX_TEXT_CHUNK:
            if name in _NOTES:
                notes.append(_NOTES[name])
            dropped.append((start, end))
    else:
        raise ImageError(f"has more than {_MAX_CHUNKS:,} chunks, which no usual PNG file has")
    return dropped


def _inflated_size(name: bytes, body: bytes) -> int:
    """Return the size of a compressed text or profile; more than Pillow's limit if it cannot be read."""
    if name == b"iTXt":
        parts = body.split(b"\0", 1)[-1]
        if parts[:2] != b"\1\0":  # not compressed
            return 0
        stream = parts[2:].split(b"\0", 2)[-1]
    else:
        method_and_stream = body.partition(b"\0")[2]
        if method_and_stream[:1] not in (b"", b"\0"):
            return PngImagePlugin.MAX_TEXT_CHUNK + 1
        stream = method_and_stream[1:]
    inflater = zlib.decompressobj()
    try:
        size = len(inflater.decompress(stream, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:  # Pillow ignores it
        return 0
    return size + bool(inflater.unconsumed_tail)
