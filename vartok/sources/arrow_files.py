"""Read Arrow files, streams and Feather files: in place, with the sizes in them checked first."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from vartok.errors import ImageError, one_line
from vartok.sources.arrow_messages import list_messages

PARQUET = b"PAR1"
"""First bytes of a Parquet file."""


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
        for number in range(self._contents.batches):
            stream = self._contents.start is not None
            batch = reader.read_next_batch() if stream else reader.get_batch(number)
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

        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        if self._contents.start is None:
            return ipc.open_file(self._source, options=options)
        self._source.seek(self._contents.start)
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
