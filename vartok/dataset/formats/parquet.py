"""Parquet shards: one row per picture, tokens as a fixed-size list."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats.base import (
    ALL_COLUMNS,
    COLUMN_TYPES,
    VIEW_COLUMNS,
    Format,
    build_row,
    read_latent,
)
from vartok.dataset.schema import FORMAT, LATENT, MAX_DESCRIPTION, OPTIONAL_COLUMNS, VERSION
from vartok.errors import DatasetError, VartokError, quoted
from vartok.metadata import MAX_TEXT
from vartok.schedule import token_count
from vartok.sources.arrow_values import as_text, is_text, value_type
from vartok.tokens import ImageTokens, token_dtype

ROW_GROUP_SIZE = 1024
"""Largest number of rows in a row group, which the writer buffers; readers read as many at once."""

MAX_BATCH_VALUES = 1 << 24
"""Largest number of tokens and values of latents that are read at once, and of latents in a row group."""

MAX_ROWS_PER_BYTE = 8
"""Largest number of rows for each byte of a shard, for readers: a row has a key of its own."""

MAX_GROUP_BYTES = 1 << 28
"""Size limit in bytes of the keys and texts in a row group, for readers: writers end it far earlier."""

BUFFER = 1 << 20
"""Bytes of a column that are read at once; by default Arrow reads the column's whole row group."""

TEXTS = ["key", "caption", "metadata"]
"""The columns of text."""

MAX_GROUP_TEXT = 1 << 25
"""Characters of captions and metadata in a row group; with more, it ends before `ROW_GROUP_SIZE` rows."""


class ParquetWriter:
    """Writes rows in row groups. Tokens are dictionary-coded (12 bits for 4096 codes), then compressed.

    A data set with views has the columns `VIEW_COLUMNS`, and one with latents the column "latent", [C h w].
    """

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"format": FORMAT, "version": VERSION, **encoding.to_dict()}
        tokens = pa.uint16() if token_dtype(encoding.model.vocab_size).itemsize == 2 else pa.uint32()
        self._tokens = pa.list_(tokens, token_count(encoding.grids))
        self._added = _added_types(encoding)
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("tokens", self._tokens, nullable=False),
                pa.field("width", pa.int32(), nullable=False),
                pa.field("height", pa.int32(), nullable=False),
                pa.field("label", pa.int64()),
                pa.field("caption", pa.string()),
                pa.field("metadata", pa.string()),
                *(pa.field(name, kind, nullable=False) for name, kind in self._added.items()),
            ],
            metadata={"vartok": json.dumps(about)},
        )
        coded: bool | list[str] = True
        if LATENT in self._added:  # a dictionary would not help: latents hardly repeat a value
            lists = ("tokens", "box")
            coded = [f"{name}.list.element" if name in lists else name for name in self._schema.names]
            coded.remove(LATENT)
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd", use_dictionary=coded)
        self._group_size = ROW_GROUP_SIZE
        if encoding.latent_shape is not None:
            self._group_size = _rows_at_once(math.prod(encoding.latent_shape))
        self._rows: list[ImageTokens] = []
        self._text = 0

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Buffer a row, and write the row group when it is full; `picture` is ignored."""
        self._rows.append(tokens)
        self._text += len(tokens.caption or "") + len(tokens.metadata or "")
        if len(self._rows) == self._group_size or self._text > MAX_GROUP_TEXT:
            self._flush()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        rows, images = self._rows, [row.image for row in self._rows]
        columns = [
            pa.array([image.source for image in images], pa.string()),
            pa.FixedSizeListArray.from_arrays(
                pa.array(np.concatenate([row.flatten() for row in rows])), type=self._tokens
            ),
            pa.array([image.width for image in images], pa.int32()),
            pa.array([image.height for image in images], pa.int32()),
            *(
                pa.array([getattr(row, name) for row in rows], self._schema.field(name).type)
                for name in OPTIONAL_COLUMNS
            ),
            *_added_columns(rows, self._added),
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_SIZE)
        self._rows = []
        self._text = 0


def _added_types(encoding: Encoding) -> dict[str, Any]:
    """Return Arrow's types of the columns that not every data set has, by name."""
    import pyarrow as pa

    views = dict(zip(VIEW_COLUMNS, (pa.int32(), pa.list_(pa.float64(), 4), pa.bool_()), strict=True))
    latents = {LATENT: pa.list_(pa.float16(), math.prod(encoding.latent_shape or ()))}
    return {**(views if encoding.has_views else {}), **(latents if encoding.latents else {})}


def _added_columns(rows: list[ImageTokens], types: dict[str, Any]) -> list[Any]:
    """Return the columns of `types`, as `_added_types` gives them."""
    import pyarrow as pa

    columns = []
    if "view" in types:
        views = [row.view for row in rows if row.view is not None]
        columns += [
            pa.array([view.number for view in views], types["view"]),
            pa.array([view.box for view in views], types["box"]),
            pa.array([view.flipped for view in views], types["flipped"]),
        ]
    if LATENT in types:
        values = np.concatenate([row.latent.ravel() for row in rows if row.latent is not None])
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values), type=types[LATENT]))
    return columns


def read_parquet(
    path: Path, encoding: Encoding, columns: Collection[str] = ALL_COLUMNS
) -> Iterator[ImageTokens | VartokError]:
    """Yield the rows of a Parquet shard, or the error of a row that is broken.

    Args:
        path: the shard.
        encoding: encoding of the data set.
        columns: the columns of `ALL_COLUMNS` to read.

    Raises:
        DatasetError: the shard has another encoding, or its footer states sizes that no shard has.
        Exception: Arrow cannot read the file.
    """
    names = [name for name in COLUMN_TYPES if name not in OPTIONAL_COLUMNS or name in columns]
    lists = {"tokens": token_count(encoding.grids)}
    if encoding.has_views:
        names += ["view", "flipped"]
        lists["box"] = 4
    if encoding.latents and LATENT in columns:
        lists[LATENT] = math.prod(encoding.latent_shape or ())
    with _open_table(path) as table:
        if _encoding(table.schema_arrow) != encoding:
            raise DatasetError("has another encoding than the data set, such as another checkpoint")
        _check_types(table.schema_arrow, names, lists)
        _check_sizes(table.metadata, names, path.stat().st_size)
        at_once = _rows_at_once(sum(lists.values()))
        number = itertools.count(1)
        for rows in table.iter_batches(at_once, columns=[*names, *lists], use_threads=False):
            arrays = {name: _list_rows(rows.column(name), length) for name, length in lists.items()}
            scalars = {name: rows.column(name) for name in names}
            too_long = _long_keys(scalars["key"])
            for i, n in zip(range(len(rows)), number, strict=False):
                try:
                    flat = arrays["tokens"][i]
                    if flat is None:
                        raise DatasetError("has no tokens")
                    if too_long[i]:
                        raise DatasetError(f"its key has more than {MAX_TEXT:,} characters")
                    fields = {name: _value(column[i], name) for name, column in scalars.items()}
                    if "box" in arrays:
                        fields["box"] = _as_list(arrays["box"][i])
                    latent = read_latent(arrays[LATENT][i], encoding) if LATENT in arrays else None
                    yield build_row(fields, flat, encoding, columns=columns, latent=latent)
                except VartokError as error:
                    yield DatasetError(f"row {n}: {error}")


def _rows_at_once(values: int) -> int:
    """Return the number of rows to read or write at once, if each has this many tokens and latent values."""
    return max(1, min(ROW_GROUP_SIZE, MAX_BATCH_VALUES // values))


def parquet_encoding(path: Path) -> Encoding:
    """Return the encoding that a Parquet shard records.

    Raises:
        DatasetError: the table is not a shard of tokens.
        Exception: Arrow cannot read the file.
    """
    with _open_table(path) as table:
        return _encoding(table.schema_arrow)


def _open_table(path: Path) -> Any:
    """Open a table for reading in small parts: a text that occurs many times is in memory once."""
    import pyarrow.parquet as pq

    texts = [name for name in TEXTS if name in pq.read_schema(path).names]
    return pq.ParquetFile(path, read_dictionary=texts, buffer_size=BUFFER, pre_buffer=False)


def _encoding(schema: Any) -> Encoding:
    about = (schema.metadata or {}).get(b"vartok")
    document = json.loads(about) if about and len(about) <= MAX_DESCRIPTION else None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DatasetError("it does not describe tokens, as a shard of vartok does")
    if document.get("version") != VERSION:
        raise DatasetError(
            f"it has version {quoted(document.get('version'))}, and this vartok reads {VERSION}"
        )
    return Encoding.from_dict(document)


def _check_types(schema: Any, names: list[str], lists: dict[str, int]) -> None:
    """Raise DatasetError if a column has another type than in a shard.

    Args:
        schema: the shard's schema.
        names: columns of texts, integers or booleans.
        lists: columns of lists, each with the length of a row's.
    """
    from pyarrow.types import is_boolean, is_float16, is_float64, is_integer

    checks = {"tokens": is_integer, "box": is_float64, LATENT: is_float16}
    for name, length in lists.items():
        kind = schema.field(name).type
        if getattr(kind, "list_size", None) != length or not checks[name](kind.value_type):
            raise DatasetError(
                f"its rows do not have {length} {name if name == 'tokens' else 'values of ' + name}"
            )
    for name in names:
        kind = value_type(schema.field(name).type)
        is_right = is_text if name in TEXTS else is_boolean if name == "flipped" else is_integer
        if not is_right(kind):
            raise DatasetError(f"its column {name} is of type {kind}")


def _check_sizes(metadata: Any, names: list[str], file_size: int) -> None:
    """Raise DatasetError for a table that would take far more memory or time than a shard of its size."""
    if metadata.num_rows > MAX_ROWS_PER_BYTE * file_size:
        raise DatasetError(f"states {metadata.num_rows:,} rows in {file_size:,} bytes: damaged or hostile")
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(i) for i in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema in names)
        if size > MAX_GROUP_BYTES:
            raise DatasetError(f"a row group has {size:,} bytes of keys and texts: damaged or hostile")


def _list_rows(lists: Any, length: int) -> list[NDArray[Any] | None]:
    """Return the values of every row, [length]; None for a row without values, or with nulls among them."""
    import pyarrow.compute as pc

    flat = lists.flatten()  # without the null rows
    values = pc.fill_null(flat, 0) if flat.null_count else flat
    values = values.to_numpy(zero_copy_only=False).reshape(-1, length)
    whole: list[NDArray[Any] | None] = list(values)
    if flat.null_count:
        holes = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, length).any(axis=1)
        whole = [None if hole else row for row, hole in zip(whole, holes, strict=True)]
    if not lists.null_count:
        return whole
    rows = iter(whole)
    return [next(rows) if valid else None for valid in lists.is_valid().to_pylist()]


def _as_list(values: NDArray[Any] | None) -> list[Any] | None:
    return None if values is None else values.tolist()


def _long_keys(keys: Any) -> NDArray[np.bool_]:
    """Return which keys are too long, without a copy of any: a column may repeat one of a gigabyte."""
    import pyarrow.compute as pc

    texts = keys.dictionary if hasattr(keys, "dictionary") else keys
    sizes = pc.fill_null(pc.binary_length(texts), 0)
    if texts is not keys:
        sizes = pc.fill_null(sizes.take(keys.indices), 0)
    found: NDArray[np.bool_] = sizes.to_numpy(zero_copy_only=False) > 4 * MAX_TEXT  # 4 bytes a character
    return found


def _value(scalar: Any, name: str) -> Any:
    """Return the value of a column in a row; a text only after its size has been checked."""
    if name not in TEXTS:
        return scalar.as_py()
    return as_text(scalar, name) if scalar.is_valid else None


PARQUET = Format("parquet", ".parquet", ParquetWriter, read_parquet, packages=("pyarrow",))
