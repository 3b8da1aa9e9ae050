"""Parquet shards: one row per picture, tokens as a fixed-size list."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vartok.dataset.formats.base import COLUMN_TYPES, Format, build_row
from vartok.dataset.schema import FORMAT, OPTIONAL_COLUMNS, VERSION, Encoding
from vartok.errors import DatasetError
from vartok.schedule import token_count
from vartok.tokens import ImageTokens, token_dtype

ROW_GROUP_SIZE = 1024
"""Largest number of rows in a row group, which the writer buffers; readers read as many at once."""

MAX_GROUP_TEXT = 1 << 25
"""Characters of captions and metadata in a row group; with more, it ends before `ROW_GROUP_SIZE` rows."""


class ParquetWriter:
    """Writes rows in row groups. Tokens are dictionary-coded (12 bits for 4096 codes), then compressed."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"format": FORMAT, "version": VERSION, **encoding.to_dict()}
        tokens = pa.uint16() if token_dtype(encoding.model.vocab_size).itemsize == 2 else pa.uint32()
        self._tokens = pa.list_(tokens, token_count(encoding.schedule))
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("tokens", self._tokens, nullable=False),
                pa.field("width", pa.int32(), nullable=False),
                pa.field("height", pa.int32(), nullable=False),
                pa.field("label", pa.int64()),
                pa.field("caption", pa.string()),
                pa.field("metadata", pa.string()),
            ],
            metadata={"vartok": json.dumps(about)},
        )
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[ImageTokens] = []
        self._text = 0

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Buffer a row, and write the row group when it is full; `picture` is ignored."""
        self._rows.append(tokens)
        self._text += len(tokens.caption or "") + len(tokens.metadata or "")
        if len(self._rows) == ROW_GROUP_SIZE or self._text > MAX_GROUP_TEXT:
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
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_SIZE)
        self._rows = []
        self._text = 0


def read_parquet(path: Path, encoding: Encoding) -> Iterator[ImageTokens]:
    """Yield the rows of a Parquet shard.

    Raises:
        DatasetError: the shard has another encoding, or a row is broken.
        Exception: Arrow cannot read the file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
        if Encoding.from_dict(json.loads(schema.metadata[b"vartok"])) != encoding:
            raise DatasetError("has another encoding than the data set, such as another checkpoint")
        if schema.field("tokens").type.list_size != token_count(encoding.schedule):
            raise DatasetError(f"its rows do not have {token_count(encoding.schedule)} tokens")
        names = list(COLUMN_TYPES)
        for rows in table.iter_batches(ROW_GROUP_SIZE, columns=[*names, "tokens"], use_threads=False):
            lists = rows.column("tokens")
            tokens = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
            for flat, fields in zip(tokens, rows.select(names).to_pylist(), strict=True):
                yield build_row(fields, flat, encoding)


PARQUET = Format("parquet", ".parquet", ParquetWriter, read_parquet, packages=("pyarrow",))
