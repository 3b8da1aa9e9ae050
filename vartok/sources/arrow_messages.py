"""List the messages of Arrow files and streams, and check their sizes, before one of them is read."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import NamedTuple

from vartok.errors import ImageError

MAGIC, FEATHER_V1 = b"ARROW1", b"FEA1"
"""First bytes of an Arrow file, which also end it, and of a Feather file of version 1."""

CONTINUED = b"\xff\xff\xff\xff"
"""Bytes before the length of a message; a stream without them is of Arrow 0.14 or older."""

MAX_MESSAGE_HEADER = 1 << 24
"""Size limit in bytes of the header of a message: the schema, or the places of the buffers of a batch."""

MAX_BATCH = 1 << 30
"""Size limit in bytes of a batch that is held in memory, since it is compressed or comes from a URL."""

MAX_GAP = 256
"""Largest number of bytes between the messages and the footer of an Arrow file."""

END, SCHEMA, DICTIONARY, BATCH = 0, 1, 2, 3
"""Kinds of messages, as their headers number them; the end mark has no header."""


class Contents(NamedTuple):
    """The messages of an Arrow file or stream.

    Attributes:
        start: offset of the first message of a stream; None for a file whose footer lists its messages.
        batches: number of whole record batches.
        rows: number of rows in them.
        error: what is wrong with the file after them; None if nothing is.
    """

    start: int | None
    batches: int
    rows: int
    error: ImageError | None


def list_messages(read: Callable[[int, int], bytes], size: int, in_memory: bool) -> Contents:
    """List the messages of an Arrow file or stream, without their bodies.

    A file is a stream with `MAGIC` before it, and a footer and `MAGIC` after it. The footer lists the
    messages. A file without a whole footer right after them is read as a stream, up to its damage.

    Args:
        read: function of (offset, count) that returns bytes of the file; fewer at its end.
        size: size of the file in bytes.
        in_memory: True if bodies are read into memory, which limits their size.

    Raises:
        ImageError: the file has no whole schema, or is a Feather file of version 1.
    """
    head = read(0, 8)
    if head.startswith(FEATHER_V1):
        raise ImageError("is a Feather file of version 1: write it as version 2")
    start = 8 if head.startswith(MAGIC) else 0
    if start and (positions := _read_footer(read, size)) is not None:
        return _list_blocks(read, positions, size, in_memory)
    message = _Message(END, start)
    with contextlib.suppress(ImageError):
        message = _read_message(read, start, size, in_memory)
    if message.kind != SCHEMA and start:
        raise ImageError("is cut off: it has no footer")
    if message.kind != SCHEMA:
        raise ImageError("is not an Arrow table: it does not begin with a whole schema")
    batches = rows = dictionaries = 0
    error = None
    try:
        while (message := _read_message(read, message.end, size, in_memory)).kind != END:
            if message.kind == BATCH:
                batches += 1
                rows += message.rows
            elif message.kind == DICTIONARY:  # a column may have many, which are kept together
                dictionaries += message.held
                _check_size(dictionaries)
            else:
                raise ImageError("is damaged: it holds more than one schema and batches of rows")
        _check_end(read, message.end, size, is_file=start > 0)
    except ImageError as reason:
        error = reason
    return Contents(start, batches, rows, error)


def _read_footer(read: Callable[[int, int], bytes], size: int) -> list[int] | None:
    """Return the offsets of the dictionaries and record batches in an Arrow file, as its footer lists them.

    Returns:
        The offsets; None if the footer is damaged, or is not the end of the messages that it lists.
    """
    ending = read(max(0, size - 10), 10)
    if len(ending) < 10 or not ending.endswith(MAGIC):
        return None
    (length,) = struct.unpack_from("<i", ending)
    end = size - 10 - length
    if not 0 < length <= MAX_MESSAGE_HEADER or end < 0:
        return None
    try:
        data = read(end, length)
        footer = _FlatTable(data, struct.unpack_from("<I", data)[0])
        blocks = []
        for field in (2, 3):  # dictionaries, record batches
            first, count = footer.vector(field)
            blocks += [struct.unpack_from("<qi4xq", data, first + 24 * number) for number in range(count)]
    except struct.error:
        return None
    last = max((offset + header + body for offset, header, body in blocks), default=end)
    return [offset for offset, _, _ in blocks] if 0 <= end - last <= MAX_GAP else None


def _list_blocks(
    read: Callable[[int, int], bytes], positions: list[int], size: int, in_memory: bool
) -> Contents:
    """List the messages of an Arrow file at the offsets that its footer gives; see `list_messages`."""
    batches = rows = dictionaries = total = 0
    try:
        for position in positions:
            if not 0 <= position < size:
                raise ImageError("is damaged: a batch lies outside of the file")
            message = _read_message(read, position, size, in_memory)
            total += message.end - position
            if total > size:
                raise ImageError("is damaged: its footer lists a batch more than once")
            if message.kind == BATCH:
                batches += 1
                rows += message.rows
            else:
                dictionaries += message.held
                _check_size(dictionaries)
    except ImageError as error:
        return Contents(None, batches, rows, error)
    return Contents(None, batches, rows, None)


class _Message(NamedTuple):
    """A message.

    Attributes:
        kind: one of the kinds of messages.
        end: offset of its end.
        rows: number of rows of a record batch; else 0.
        held: bytes of memory that it takes, apart from those of the file.
    """

    kind: int
    end: int
    rows: int = 0
    held: int = 0


def _read_message(read: Callable[[int, int], bytes], position: int, size: int, in_memory: bool) -> _Message:
    """Return the message at an offset; the end mark is a message too.

    Args:
        read: see `list_messages`.
        position: the offset.
        size: size of the file in bytes.
        in_memory: see `list_messages`.

    Raises:
        ImageError: the message is cut off, too large or damaged.
    """
    prefix = read(position, 8)
    marked = prefix.startswith(CONTINUED)
    position += 8 if marked else 4
    if position > size:
        raise ImageError("is cut off: it has no end mark")
    (length,) = struct.unpack_from("<i", prefix, 4 if marked else 0)
    if length == 0:
        return _Message(END, position)
    if not 0 < length <= MAX_MESSAGE_HEADER:
        raise ImageError(f"is damaged: a header of {length:,} bytes")
    try:
        header = read(position, length)
        position += length
        message = _FlatTable(header, struct.unpack_from("<I", header)[0])
        kind, body = message.number(1, "<B"), message.number(3, "<q")
        if not 0 <= body <= size - position:
            raise ImageError("is cut off: it ends within a batch")
        content = message.table(2)
        batch = content.table(1) if content and kind == DICTIONARY else content
        rows = batch.number(0, "<q") if batch and kind == BATCH else 0
        compressed = batch and kind in (DICTIONARY, BATCH) and batch.table(3)
        held = body if in_memory else 0
        held += _unpacked_size(read, position, body, batch) if batch and compressed else 0
        _check_size(held)
    except struct.error:
        raise ImageError("is damaged: the header of a batch makes no sense") from None
    return _Message(kind, position + body, max(0, rows), held)


def _unpacked_size(read: Callable[[int, int], bytes], position: int, body: int, batch: _FlatTable) -> int:
    """Return the size of the buffers of a compressed batch, once they are uncompressed, in bytes.

    Args:
        read: see `list_messages`.
        position: offset of the body of the batch.
        body: size of the body in bytes.
        batch: the header of the batch.

    Raises:
        ImageError: the size exceeds `MAX_BATCH`, or a buffer lies outside of the body.
        struct.error: the header is damaged.
    """
    total = 0
    first, count = batch.vector(2)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", batch.data, first + 16 * number)
        if length == 0:
            continue
        if not 0 <= offset <= body - 8:
            raise ImageError("is damaged: a buffer lies outside of its batch")
        (unpacked,) = struct.unpack_from("<q", read(position + offset, 8))
        total += length if unpacked == -1 else abs(unpacked)  # -1: this buffer is not compressed
        _check_size(total)
    return total


def _check_size(size: int) -> None:
    if size > MAX_BATCH:
        raise ImageError(
            f"holds a batch of {size / 1e9:.1f} GB, more than the {MAX_BATCH / 1e9:.1f} GB read at once",
            hint="write the table with fewer rows in a batch, or as a local file without compression",
        )


def _check_end(read: Callable[[int, int], bytes], position: int, size: int, *, is_file: bool) -> None:
    """Raise ImageError unless a file ends after the end mark, or an Arrow file with the footer after it.

    Args:
        read: see `list_messages`.
        position: offset of the end of the end mark.
        size: size of the file in bytes.
        is_file: True for an Arrow file, False for a stream.
    """
    if is_file:
        ending = read(max(position, size - 10), 10)
        if len(ending) < 10 or not ending.endswith(MAGIC):
            raise ImageError("is cut off: it has no footer")
        position += abs(struct.unpack_from("<i", ending)[0]) + 10
    if not position <= size <= position + MAX_GAP * is_file:
        raise ImageError("holds data after its end, as if two tables had been joined")


class _FlatTable:
    """A table of FlatBuffers, the format of the headers.

    Reading outside of the data raises struct.error.

    Source: https://flatbuffers.dev/internals

    Attributes:
        data: the bytes of the header.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self._position = position
        self._fields = position - self._at(position, "<i")

    def number(self, field: int, format: str) -> int:
        """Return the number in a field, or 0 if the field is missing; `format` is that of `struct`."""
        position = self._find(field)
        return self._at(position, format) if position else 0

    def table(self, field: int) -> _FlatTable | None:
        """Return the table in a field; None if the field is missing."""
        position = self._find(field)
        return _FlatTable(self.data, position + self._at(position, "<I")) if position else None

    def vector(self, field: int) -> tuple[int, int]:
        """Return the offset of the first item of the vector in a field, and the number of items."""
        position = self._find(field)
        if not position:
            return 0, 0
        position += self._at(position, "<I")
        return position + 4, self._at(position, "<I")

    def _find(self, field: int) -> int:
        """Return the offset of a field; 0 if the field is missing."""
        size = self._at(self._fields, "<H")
        offset = self._at(self._fields + 4 + 2 * field, "<H") if 4 + 2 * field < size else 0
        return self._position + offset if offset else 0

    def _at(self, position: int, format: str) -> int:
        if position < 0:
            raise struct.error
        number: int = struct.unpack_from(format, self.data, position)[0]
        return number
