"""The file formats of shards. A format is a module with a reader and a writer, and an entry in `FORMATS`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from vartok.dataset.formats.base import Format, ShardWriter
from vartok.dataset.formats.jsonl import JSONL
from vartok.dataset.formats.parquet import PARQUET
from vartok.dataset.formats.wds import WDS
from vartok.dataset.schema import Encoding
from vartok.errors import DatasetError, one_line, quoted
from vartok.tokens import ImageTokens

__all__ = ["FORMATS", "Format", "ShardWriter", "find_format", "open_writer", "read_shard"]

FORMATS = {format.name: format for format in (PARQUET, WDS, JSONL)}
"""All formats by name."""


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        DatasetError: there is no such format.
    """
    if name not in FORMATS:
        raise DatasetError(f"the format of shards is one of {', '.join(FORMATS)}, not {quoted(name)}")
    return FORMATS[name]


def open_writer(format: str, stream: io.RawIOBase, encoding: Encoding) -> ShardWriter:
    """Open a writer of a shard.

    Args:
        format: one of `FORMATS`.
        stream: a stream for writing, without seeking.
        encoding: encoding of the rows that will be added.
    """
    return find_format(format).open_writer(stream, encoding)


def read_shard(format: str, path: Path, encoding: Encoding) -> Iterator[ImageTokens]:
    """Yield all rows of a shard, in order.

    Args:
        format: one of `FORMATS`.
        path: the shard.
        encoding: encoding of the data set.

    Raises:
        DatasetError: the file is broken, has another format, or holds rows of another encoding, if the format
            records the encoding.
        OSError: the file cannot be read.
    """
    try:
        yield from find_format(format).read(path, encoding)
    except (DatasetError, OSError):
        raise
    except Exception as error:  # Arrow, tarfile and numpy raise many types for broken bytes
        raise DatasetError(
            f"is not a {format} shard of tokens: {one_line(error) or type(error).__name__}"
        ) from error
