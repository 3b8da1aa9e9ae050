"""The file formats of shards. Each has a module with a writer and a reader, and an entry in `FORMATS`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats.base import ALL_COLUMNS, Format, ShardWriter
from vartok.dataset.formats.jsonl import JSONL
from vartok.dataset.formats.parquet import PARQUET
from vartok.dataset.formats.wds import WDS
from vartok.dataset.schema import OPTIONAL_COLUMNS
from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.files import check_regular
from vartok.optional import require
from vartok.tokens import ImageTokens

__all__ = [
    "ALL_COLUMNS",
    "FORMATS",
    "Format",
    "ShardWriter",
    "find_format",
    "iter_rows",
    "open_writer",
    "read_shard",
    "shard_errors",
]

FORMATS = {format.name: format for format in (PARQUET, WDS, JSONL)}
"""All formats by name."""


def find_format(name: str) -> Format:
    """Return the format that is called `name`.

    Raises:
        DatasetError: there is no such format.
        VartokError: a package that the format needs is not installed.
    """
    if name not in FORMATS:
        raise DatasetError(f"the format of shards is one of {', '.join(FORMATS)}, not {quoted(name)}")
    format = FORMATS[name]
    require(*format.packages, extra="dataset", purpose=f"{name} shards")
    return format


def open_writer(format: str, stream: io.RawIOBase, encoding: Encoding) -> ShardWriter:
    """Return a writer for the rows of one shard.

    Args:
        format: name of a format, one of `FORMATS`.
        stream: stream that the shard is written to; the writer does not seek in it.
        encoding: encoding of the rows that will be added.

    Raises:
        DatasetError: there is no such format.
        VartokError: a package that the format needs is not installed.
    """
    return find_format(format).open_writer(stream, encoding)


def read_shard(
    format: str, path: Path, encoding: Encoding, columns: Collection[str] = ALL_COLUMNS
) -> Iterator[ImageTokens]:
    """Yield all rows of a shard, in order.

    Args:
        format: name of a format, one of `FORMATS`.
        path: path of the shard.
        encoding: encoding of the data set.
        columns: the columns of `ALL_COLUMNS` to read; the others are None.

    Raises:
        DatasetError: the file is broken or has another format, or its rows do not have this encoding, as far
            as the format records it.
        OSError: the file cannot be read.
        VartokError: a package that the format needs is not installed.
    """
    found = find_format(format)
    with shard_errors(format):
        check_regular(path)
        for row in found.read(path, encoding, columns):
            if isinstance(row, VartokError):
                raise row
            yield row


def iter_rows(
    format: str, path: Path, encoding: Encoding, *, texts: bool = False
) -> Iterator[ImageTokens | VartokError]:
    """Yield the rows of a shard in order, without latents, and the error of a broken row.

    Args:
        format: name of a format, one of `FORMATS`.
        path: path of the shard.
        encoding: encoding of the data set.
        texts: read captions and metadata.

    Raises:
        DatasetError, OSError: see `read_shard`; the rows before the fault are yielded first.
    """
    found = find_format(format)
    with shard_errors(format):
        check_regular(path)
        yield from found.read(path, encoding, OPTIONAL_COLUMNS if texts else ("label",))


@contextlib.contextmanager
def shard_errors(format: str) -> Iterator[None]:
    """Turn an exception that bytes of a broken shard cause into a DatasetError."""
    try:
        yield
    except (DatasetError, OSError, MemoryError):
        raise
    except VartokError as error:
        raise DatasetError(f"is not a {format} shard of tokens: {error}", hint=error.hint) from None
    except Exception as error:  # Arrow, tarfile and numpy raise many types for broken bytes
        raise DatasetError(
            f"is not a {format} shard of tokens: {one_line(error) or type(error).__name__}"
        ) from error
