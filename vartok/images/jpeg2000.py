"""Count the boxes in the header of a JPEG 2000 file, before Pillow looks at each of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import BinaryIO

from vartok.errors import ImageError

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_MAX_BOXES = 1000  # usual files have a dozen; Pillow takes a microsecond and more for each


def check_boxes(stream: BinaryIO) -> None:
    """Check the number of boxes up to the end of a JP2 file's header box.

    Args:
        stream: the file; its position is the start, before and after.

    Raises:
        ImageError: there are more than `_MAX_BOXES` boxes.
    """
    try:
        if stream.read(len(_SIGNATURE)) == _SIGNATURE:
            size = stream.seek(0, os.SEEK_END)
            boxes = itertools.islice(_walk(stream, len(_SIGNATURE), size), _MAX_BOXES + 1)
            if sum(1 for _ in boxes) > _MAX_BOXES:
                raise ImageError(f"has more than {_MAX_BOXES:,} boxes in its header, which no usual JP2 has")
    finally:
        stream.seek(0)


def _walk(stream: BinaryIO, at: int, end: int, inside: bytes = b"") -> Iterator[bytes]:
    """Yield the types of the boxes that Pillow reads between two positions, and of those in them.

    Source: ISO/IEC 15444-1, annex I.4.
    """
    while at < end:
        stream.seek(at)
        head = stream.read(16)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), 16
        if size < start or at + size > end:
            return  # Pillow refuses it
        yield kind
        if (inside, kind) in ((b"", b"jp2h"), (b"jp2h", b"res ")):
            yield from _walk(stream, at + start, at + size, kind)
        if (inside, kind) == (b"", b"jp2h"):
            return  # Pillow reads no further boxes
        at += size
