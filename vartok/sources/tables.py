"""Read tables, Parquet or Arrow files: pictures with optional keys, labels, captions and metadata."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from vartok.errors import ImageError, one_line
from vartok.images import MAX_BYTES, bytes_error
from vartok.optional import require
from vartok.sources.arrow_files import ArrowTable, is_arrow, map_file, release_pages
from vartok.sources.arrow_values import (
    NotWholeError,
    UnknownClassError,
    as_json,
    as_key,
    as_label,
    as_texts,
    dump_json,
    plain,
)
from vartok.sources.columns import ANY_COLUMNS, Columns, NamedColumns, choose_columns, describe_column
from vartok.sources.places import open_place
from vartok.sources.samples import Sample, as_unicode
from vartok.sources.web import without_query

ROWS = 16
"""Largest number of rows that are read at once; each row holds a picture."""

BATCH_BYTES = 1 << 24
"""Approximate size in bytes of the rows that are read at once."""

BUFFER = 1 << 20
"""Bytes of a column at a URL that are read at once; by default Arrow reads the column's whole row group."""


JOINED = b"PAR1PAR1"
"""The end of a Parquet file and the beginning of another."""


class Table(Protocol):
    """An open table.

    Attributes:
        schema: Arrow's schema.
        num_rows: number of rows.
    """

    schema: Any
    num_rows: int

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Yield the rows of some columns: Arrow's record batches of at most `rows` rows.

        An ImageError instead of a batch stands for one row that cannot be read.
        """


class ParquetTable:
    """A Parquet file; see `Table`.

    Args:
        stream: the file.
        categories: columns of text whose values are read as dictionaries, each different value once.
    """

    def __init__(self, stream: BinaryIO, categories: Sequence[str] = ()) -> None:
        import pyarrow.parquet

        # In a mapped file nothing is copied before it is unpacked, whatever size a damaged page claims.
        self._map = map_file(stream)
        self._file = pyarrow.parquet.ParquetFile(
            stream if self._map is None else pyarrow.BufferReader(pyarrow.py_buffer(self._map)),
            buffer_size=BUFFER if self._map is None else 0,
            pre_buffer=False,
            read_dictionary=list(categories),
        )
        self._categories = categories
        self._refuse_joined()
        self.schema = self._file.schema_arrow
        self.num_rows: int = self._file.metadata.num_rows

    def _refuse_joined(self) -> None:
        """Raise ImageError for joined files: Arrow takes the rows of the first for those of the last."""
        if self._map is not None:
            metadata = self._file.metadata
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            known = metadata.serialized_size + sum(group.total_byte_size for group in groups)
            # Only a file that has more bytes than its footer tells of is searched.
            if 10 * known < 9 * len(self._map) and self._map.find(JOINED) >= 0:
                raise ImageError("is several Parquet files joined into one: name each file alone")

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Yield record batches of about `BATCH_BYTES` bytes or less; of `rows` rows if they are categories.

        The metadata of columns is not read: damaged ones make Arrow end the process.
        """
        for number in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(number)
            size = rows
            if not self._categories:
                mean = group.total_byte_size // max(1, group.num_rows)
                size = max(1, min(rows, BATCH_BYTES // max(1, mean)))
            for batch in self._file.iter_batches(size, [number], columns=list(columns), use_threads=False):
                yield batch
                release_pages(self._map)


@contextlib.contextmanager
def open_table(place: str, categories: Sequence[str] = ()) -> Iterator[Table]:
    """Open a table for reading.

    Args:
        place: path or URL.
        categories: columns of text whose values may be read as dictionaries, each different value once.

    Raises:
        ImageError: `place` is an Arrow file that is damaged at its beginning.
        VartokError: pyarrow is not installed.
        OSError: the table cannot be opened, or is not a regular file. For a broken table, Arrow may
            raise other errors too.
    """
    require("pyarrow", extra="dataset", purpose="tables")
    with open_place(place) as stream:
        yield (
            ArrowTable(stream) if is_arrow(stream, without_query(place)) else ParquetTable(stream, categories)
        )


def read_table_samples(
    place: str,
    named: NamedColumns = ANY_COLUMNS,
    max_bytes: int = MAX_BYTES,
    classes: Mapping[str, int] | None = None,
    *,
    pictures_only: bool = False,
) -> Iterator[Sample]:
    """Yield the rows of a table as samples.

    A row without a key gets the table's stem and the row's number, such as "table/00000007". A label is a
    whole number of any type, or text of one; or the name of a class, if `classes` numbers them. A row with
    several captions gets the first as its caption, and all in its metadata if it has no other.
    `Sample.not_carried` names what is left out.

    Args:
        place: path or URL.
        named: the columns that the caller chose. By default the column of pictures is the only one that can
            hold pictures: binary, or a struct with binary "bytes".
        max_bytes: size limit of a picture in bytes. A larger picture is replaced by an error.
        classes: labels by the names of classes; None if labels are whole numbers.
        pictures_only: leave labels, captions and metadata out, so that a broken one costs no picture.

    Raises:
        ImageError: a column is missing or unfit, the column of pictures is ambiguous, or the table is
            damaged.
        VartokError: pyarrow is not installed.
        OSError: the table cannot be opened, or is not a regular file. For a broken table, Arrow may
            raise other errors too.
    """
    with open_table(place) as table:
        columns = choose_columns(table.schema, named)
        if pictures_only:
            columns = columns.pictures_only()
        names = list(dict.fromkeys(columns.names.values()))
        total = max(1, table.num_rows)
        number = itertools.count()
        stem = as_unicode(posixpath.basename(without_query(place).replace(os.sep, "/"))).rpartition(".")[0]
        for rows in table.batches(names, ROWS):
            if isinstance(rows, ImageError):
                n = next(number)
                yield Sample(f"{stem}/{n:08d}", rows, progress=(n + 1) / total)
                continue
            # Two columns may have the same name.
            places = {name: rows.schema.get_all_field_indices(name)[0] for name in names}
            for i in range(rows.num_rows):
                n = next(number)
                # Arrow's scalars are views: nothing is copied before its size has been checked.
                row = {role: rows.column(places[name])[i] for role, name in columns.names.items()}
                yield _row_sample(row, columns, f"{stem}/{n:08d}", (n + 1) / total, max_bytes, classes)


def _row_sample(
    row: dict[str, Any],
    columns: Columns,
    key: str,
    progress: float,
    max_bytes: int,
    classes: Mapping[str, int] | None,
) -> Sample:
    """Return the sample of a row, with an error as its picture if it has none or a value cannot be read.

    Args:
        row: Arrow scalars by the role of their column. Only "image" is always there.
        columns: the columns of the table.
        key: the key to use if the row has none.
        progress: see `Sample`.
        max_bytes: size limit of the picture in bytes.
        classes: labels by the names of classes; None if labels are whole numbers.
    """
    notes = columns.notes
    role = "key"
    try:
        row = {name: plain(value) for name, value in row.items()}
        valid = {name for name, value in row.items() if value.is_valid}
        key = (as_key(row["key"]) if "key" in valid else "") or key
        role = "picture"
        image = row["image"]
        while image.is_valid and hasattr(image.type, "get_field_index"):  # a struct
            image = plain(image["bytes"])
        if not image.is_valid:
            raise ImageError("its row has no picture")
        if image.as_buffer().size > max_bytes:
            raise bytes_error(max_bytes)
        label = None
        role = "label"
        try:
            label = as_label(row["label"], classes) if "label" in valid else None
        except NotWholeError:
            notes = (*notes, f"{describe_column(columns.names['label'])}: labels that are not whole numbers")
        except UnknownClassError:
            notes = (*notes, f"{describe_column(columns.names['label'])}: names of classes without a number")
        role = "caption"
        captions = as_texts(row["caption"], role) if "caption" in valid else []
        role = "metadata"
        metadata = as_json(row["metadata"], role) if "metadata" in valid else None
        if len(captions) > 1 and metadata is None:
            metadata = dump_json({"captions": captions}, role)
        elif len(captions) > 1:
            column = describe_column(columns.names["caption"])
            notes = (*notes, f"{column}: captions after the first of a row")
        picture = image.as_py()
    except ImageError as error:
        return Sample(key, error, progress=progress)
    except (ValueError, ArithmeticError, TypeError, NotImplementedError) as error:  # Arrow's, of a bad value
        return Sample(key, ImageError(f"its {role} cannot be read: {one_line(error)}"), progress=progress)
    caption = captions[0] if captions else None
    return Sample(key, picture, label, caption, metadata, progress, not_carried=notes)
