"""Read Parquet tables: a column of pictures, and optional ones of keys, labels, captions and metadata."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from vartok.errors import ImageError, one_line, quoted
from vartok.images import MAX_BYTES, bytes_error
from vartok.optional import require
from vartok.sources.find import open_place
from vartok.sources.samples import MAX_TEXT, Sample, as_unicode, check_label

ROWS = 16
"""Largest number of rows that are read at once; each row holds a picture."""

BATCH_BYTES = 1 << 24
"""Approximate size in bytes of the rows that are read at once."""

BUFFER = 1 << 20
"""Bytes of a column that are read at once; by default Arrow reads the column's whole row group."""

# Possible names of the column of each role, preferred names first; the last name is WebDataset's.
KEYS = ("key", "__key__")
LABELS = ("label", "cls")
CAPTIONS = ("caption", "text", "txt")
METADATA = ("metadata", "json")


def read_table_samples(
    place: str, image_column: str | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Sample]:
    """Yield the rows of a Parquet table as samples.

    A row without a key gets the table's stem and the row's number, such as "table/00000007".

    Args:
        place: path or URL.
        image_column: name of the column of pictures; None if only one column can hold pictures: binary, or a
            struct with binary "bytes".
        max_bytes: size limit of a picture in bytes. A larger picture is replaced by an error.

    Raises:
        ImageError: the column of pictures is missing or ambiguous, or `place` is not a regular file.
        VartokError: pyarrow is not installed.
        OSError: the table cannot be opened. For a broken table, Arrow may raise other errors too.
    """
    require("pyarrow", extra="dataset", purpose="Parquet tables")
    import pyarrow.parquet

    with (
        open_place(place) as stream,
        pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False) as table,
    ):
        columns = _columns(table.schema_arrow, image_column)
        names = list(dict.fromkeys(columns.values()))
        total = table.metadata.num_rows
        number = itertools.count()
        stem = as_unicode(posixpath.basename(place.replace(os.sep, "/"))).rpartition(".")[0]
        for group in range(table.metadata.num_row_groups):
            size = _rows_at_once(table.metadata.row_group(group))
            for rows in table.iter_batches(size, [group], columns=names, use_threads=False):
                for i in range(rows.num_rows):
                    n = next(number)
                    # Arrow's scalars are views: nothing is copied before its size has been checked.
                    row = {role: rows.column(name)[i] for role, name in columns.items()}
                    yield _row_sample(row, f"{stem}/{n:08d}", (n + 1) / total, max_bytes)


def _rows_at_once(group: Any) -> int:
    """Return how many rows of a row group to read at once, from their mean size."""
    mean: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(ROWS, BATCH_BYTES // max(1, mean)))


def _row_sample(row: dict[str, Any], key: str, progress: float, max_bytes: int) -> Sample:
    """Return the sample of a row, with an error as its picture if it has none or a value is too large.

    Args:
        row: Arrow scalars by the role of their column. Only "image" is always there.
        key: the key to use if the row has none.
        progress: see `Sample`.
        max_bytes: size limit of the picture in bytes.
    """
    try:
        key = _text(row, "key") or key
        image = row["image"]
        if image.is_valid and hasattr(image.type, "get_field_index"):  # a struct
            image = image["bytes"]
        if not image.is_valid:
            raise ImageError("its row has no picture")
        if image.as_buffer().size > max_bytes:
            raise bytes_error(max_bytes)
        label = check_label(row["label"].as_py() if "label" in row else None)
        caption, metadata = _text(row, "caption"), _text(row, "metadata")
    except ImageError as error:
        return Sample(key, error, progress=progress)
    return Sample(key, image.as_py(), label, caption, metadata, progress)


def _text(row: dict[str, Any], role: str) -> str | None:
    if role not in row or not row[role].is_valid:
        return None
    # A character of UTF-8 has up to 4 bytes.
    text: str = row[role].as_py() if row[role].as_buffer().size <= 4 * MAX_TEXT else ""
    if len(text) > MAX_TEXT or row[role].as_buffer().size > 4 * MAX_TEXT:
        raise ImageError(f"its {role} has more than {MAX_TEXT:,} characters")
    return text


def _columns(schema: Any, image_column: str | None) -> dict[str, str]:
    """Return the names of the columns to read, by role: "image", "key", "label", "caption", "metadata"."""
    from pyarrow import types

    def holds_pictures(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_pictures(kind.field("bytes").type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fields = {field.name: field.type for field in schema}
    images = [name for name, kind in fields.items() if holds_pictures(kind)]
    if image_column is not None:
        if image_column not in images:
            raise ImageError(f"the table has no column {quoted(image_column)} that holds pictures")
        images = [image_column]
    if not images:
        raise ImageError('the table has no column of pictures: binary, or a struct with binary "bytes"')
    if len(images) > 1:
        raise ImageError(
            f"several columns may hold pictures ({', '.join(map(one_line, images))})",
            hint="set `image_column` to the name of the column of pictures",
        )
    roles: dict[str, tuple[tuple[str, ...], Callable[[Any], bool]]] = {
        "key": (KEYS, _is_text),
        "label": (LABELS, types.is_integer),
        "caption": (CAPTIONS, _is_text),
        "metadata": (METADATA, _is_text),
    }
    columns = {"image": images[0]}
    for role, (names, fits) in roles.items():
        for name in names:
            if name in fields and fits(fields[name]):
                columns.setdefault(role, name)
    return columns


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))
