"""Read Arrow files, streams and Feather files: in place, with the sizes in them checked first."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from vartok.errors import ImageError, one_line

MAGIC, FEATHER_V1, PARQUET = b"ARROW1", b"FEA1", b"PAR1"
"""First bytes of an Arrow file, which also end it; of a Feather file of version 1; of a Parquet file."""

CONTINUED = b"\xff\xff\xff\xff"
"""Bytes before the length of a message; a stream without them is of Arrow 0.14 or older."""

MAX_HEADER = 1 << 24
"""Size limit in bytes of the header of a message: the schema, or the places of the buffers of a batch."""

MAX_BATCH = 1 << 30
"""Size limit in bytes of a batch that is held in memory, since it is compressed or comes from a URL."""

MAX_GAP = 64
"""Largest number of bytes between the end mark and the footer of an Arrow file."""

END, SCHEMA, DICTIONARY, BATCH = 0, 1, 2, 3
"""Kinds of messages, as their headers number them; the end mark has no header."""


class Contents(NamedTuple):
    """The messages of an Arrow file or stream.

    Attributes:
        start: offset of the first message.
        batches: number of whole record batches.
        rows: number of rows in them.
        error: what is wrong with the file after them; None if nothing is.
    """

    start: int
    batches: int
    rows: int
    error: ImageError | None


class ArrowTable:
    """An Arrow file, an Arrow stream, or a Feather file of version 2; see `Table` in `tables`.

    A local file is mapped into memory: rows are views of it until they are used. The messages are listed
    before one is read, so that a damaged or oversized one is found before memory is taken for it.

    Source: https://arrow.apache.org/docs/format/Columnar.html

    Args:
        stream: the file, open for reading.

    Raises:
        ImageError: the file has no whole schema, or is a Feather file of version 1.
        ArrowInvalid, OSError: Arrow cannot read the schema.
    """

    def __init__(self, stream: BinaryIO) -> None:
        import pyarrow

        size = stream.seek(0, 2)
        self._map = mapped = map_file(stream)
        if mapped is not None:
            self._source: Any = pyarrow.BufferReader(pyarrow.py_buffer(mapped))
            self._contents = list_messages(lambda start, count: mapped[start : start + count], size, False)
        else:
            self._source = pyarrow.PythonFile(stream, "r")

            def read(start: int, count: int) -> bytes:
                stream.seek(start)
                return stream.read(count)

            self._contents = list_messages(read, size, True)
        self.num_rows = self._contents.rows
        self.schema = self._open([]).schema

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Yield record batches, and an ImageError for each row whose values do not make sense.

        Raises:
            ImageError: the file is damaged after the rows that were yielded.
            Exception: Arrow cannot read a batch.
        """
        from pyarrow import ArrowInvalid

        reader = self._open([self.schema.get_all_field_indices(name)[0] for name in columns])
        for _ in range(self._contents.batches):
            batch = reader.read_next_batch()
            step = rows
            try:
                batch.validate(full=True)
            except ArrowInvalid:
                step = 1  # so that a value that is not valid costs one row
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                try:
                    if step == 1:
                        part.validate(full=True)
                    yield part
                except ArrowInvalid as error:
                    yield ImageError(f"its row cannot be read: {one_line(error)}")
                release_pages(self._map)
        if self._contents.error is not None:
            raise self._contents.error

    def _open(self, fields: list[int]) -> Any:
        """Open a reader at the first message, of the columns with these indices; of all if there are none."""
        from pyarrow import ipc

        self._source.seek(self._contents.start)
        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return ipc.open_stream(self._source, options=options)


def map_file(stream: BinaryIO) -> mmap.mmap | None:
    """Map a local file into memory; None for another stream, an empty file, or where that is not possible."""
    try:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, AttributeError):
        return None


def release_pages(mapped: mmap.mmap | None) -> None:
    """Give the memory of a mapped file back; what is used again is read again."""
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def is_arrow(stream: BinaryIO, name: str) -> bool:
    """Return True for a file with the name of an Arrow or Feather file, unless it begins as Parquet does."""
    if not name.lower().endswith((".arrow", ".feather")):
        return False
    head = stream.read(len(PARQUET))
    stream.seek(0)
    return head != PARQUET


def list_messages(read: Callable[[int, int], bytes], size: int, in_memory: bool) -> Contents:
    """List the messages of an Arrow file or stream, without their bodies.

    A file is a stream with `MAGIC` before it, and a footer and `MAGIC` after it.

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
    message = _Message(END, start)
    with contextlib.suppress(ImageError):
        message = _read_message(read, start, size, in_memory)
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
    if not 0 < length <= MAX_HEADER:
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
