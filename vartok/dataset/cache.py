"""The row cache: all rows of a bucket in one memory-mapped file, for random access.

The file is a header, then the columns of fixed width one after another, then the texts of all rows. Its
layout follows from dataset.json, and its header holds the digest of that: the cache of another state of the
data set is not read, but written again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.formats.base import VIEW_COLUMNS
from vartok.dataset.lock import folder_lock
from vartok.dataset.rows import DatasetBucket, FinishedDataset
from vartok.dataset.schema import CACHE
from vartok.errors import DatasetError
from vartok.files import atomic_write, os_error_reason, user_cache
from vartok.schedule import token_count
from vartok.tokens import ImageTokens, token_dtype

MAGIC = b"vartok.rows 1\n"
"""First bytes of a row cache; the sha256 in hex of all that its content follows from comes after them."""

HEADER_SIZE = 128
"""Bytes before the first column."""

CHUNK_ROWS, CHUNK_TEXT = 1024, 1 << 24
"""Largest number of rows, and about the number of characters of their texts, that are written at once."""

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""System errors of a folder in which the cache cannot be, so that another folder is tried."""


class Column(NamedTuple):
    """A column of fixed width.

    Attributes:
        dtype: dtype of its values.
        shape: shape of a row's value.
        offset: offset of the first row's value in the file, in bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class RowCache:
    """Reads a row cache.

    Attributes:
        columns: the columns of fixed width by name, each [N, ...], memory-mapped: "tokens" [N, L] uint16, or
            uint32 above 65,536 codes; "width" and "height" int32; "label" int64, -1 if unknown;
            with views "view" int32, "box" [N, 4] float64 and "flipped" bool; with latents "latent"
            [N, C, h, w] float16.
        text_columns: names of the columns of text, among them "key".

    Args:
        path: the file.
        bucket: the bucket that it is of.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the cache of this state of the data set, or is cut short.
    """

    def __init__(self, path: Path, bucket: DatasetBucket) -> None:
        layout, end = _layout(bucket)
        with open(path, "rb") as file:
            if file.read(len(header := _header(bucket))) != header or _size(file) < end:
                raise ValueError("the cache of another data set, or cut short")
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {name: self._array(column, bucket.rows) for name, column in layout.items()}
        self._ends: NDArray[np.int64] = arrays.pop("ends").reshape(-1)
        self._texts = end
        if len(self._file) != end + (int(self._ends[-1]) if len(self._ends) else 0):
            raise ValueError("it is cut short")
        self.columns = arrays
        self.text_columns = _text_columns(bucket)

    def texts(self, name: str, rows: Iterable[int]) -> list[str]:
        """Return the values of a column of text, "" where a row has none.

        Args:
            name: one of `text_columns`.
            rows: numbers of the rows, 0 to N - 1.
        """
        width, column = len(self.text_columns), self.text_columns.index(name)
        last = np.asarray(rows, np.int64) * width + column
        ends = (self._ends[last] + self._texts).tolist()
        starts = (np.where(last > 0, self._ends[last - 1], 0) + self._texts).tolist()
        return [self._file[start:end].decode() for start, end in zip(starts, ends, strict=True)]

    def _array(self, column: Column, rows: int) -> NDArray[Any]:
        count = rows * math.prod(column.shape)
        flat = np.frombuffer(self._file, column.dtype, count, column.offset)
        return flat.reshape(rows, *column.shape)


def open_caches(dataset: FinishedDataset) -> list[RowCache]:
    """Open the row cache of each bucket, and write those first of which there is none of this state.

    A cache is in the data set's folder; if that cannot be written, in the user's folder of caches. Of several
    processes that open the data set at once, one writes the cache, and the others wait for it where the file
    system has locks; elsewhere each writes the same bytes. When one is written, the caches beside it of
    buckets that the data set no longer has are removed.

    Raises:
        DatasetError: a shard is broken, or no folder can be written.
    """
    known = {_file_name(bucket) for bucket in dataset.buckets}
    return [_open(dataset.folder, bucket, known) for bucket in dataset.buckets]


def _open(folder: Path, bucket: DatasetBucket, known: Collection[str]) -> RowCache:
    """Open the row cache of a bucket; `known` are the names of the data set's caches."""
    name = _file_name(bucket)
    places = (folder / CACHE, user_rows(folder))
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            return RowCache(place / name, bucket)
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with folder_lock(place):
                with contextlib.suppress(OSError, ValueError):
                    return RowCache(place / name, bucket)  # another process has written it meanwhile
                _write(place / name, bucket)
                for path in place.glob("rows*.bin"):
                    if path.name not in known:
                        with contextlib.suppress(OSError):
                            path.unlink()  # a process that has mapped it keeps it
                return RowCache(place / name, bucket)
        except OSError as error:
            reason = os_error_reason(error)
            if error.errno not in UNWRITABLE:
                break
    raise DatasetError(
        f"cannot write the row cache of {folder} in {place}: {reason}",
        hint="make room or a folder that can be written, or use `TokenStream`, which needs no cache",
    )


def _file_name(bucket: DatasetBucket) -> str:
    return f"rows-{bucket.name}.bin" if bucket.name else "rows.bin"


def user_rows(folder: Path) -> Path:
    """Return the folder in the user's folder of caches for the row cache of a data set."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return user_cache() / f"rows-{digest[:16]}"


def _text_columns(bucket: DatasetBucket) -> tuple[str, ...]:
    return ("key", *(name for name in bucket.columns if name != "label"))


def _header(bucket: DatasetBucket) -> bytes:
    """Return the first bytes of a data set's cache."""
    return MAGIC + bucket.digest.encode()


def _layout(bucket: DatasetBucket) -> tuple[dict[str, Column], int]:
    """Return the columns of fixed width by name, and the offset of the first text in the file.

    "ends" holds, for each text of each row, the offset of its end, from the first text's start.
    """
    shapes: dict[str, tuple[np.dtype[Any] | str, tuple[int, ...]]] = {
        "tokens": (token_dtype(bucket.encoding.model.vocab_size), (token_count(bucket.encoding.grids),)),
        "width": ("<i4", ()),
        "height": ("<i4", ()),
        "ends": ("<i8", (len(_text_columns(bucket)),)),
    }
    if "label" in bucket.columns:
        shapes["label"] = ("<i8", ())
    if bucket.encoding.has_views:
        shapes |= {"view": ("<i4", ()), "box": ("<f8", (4,)), "flipped": ("?", ())}
    if bucket.encoding.latent_shape is not None:
        shapes["latent"] = ("<f2", bucket.encoding.latent_shape)
    columns, offset = dict[str, Column](), HEADER_SIZE
    for name, (kind, shape) in shapes.items():
        dtype = np.dtype(kind)
        columns[name] = Column(dtype, shape, offset)
        size = bucket.rows * math.prod(shape) * dtype.itemsize
        offset += -(-size // 64) * 64  # aligned to the lines of a processor's cache
    return columns, offset


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _write(path: Path, bucket: DatasetBucket) -> None:
    """Write the row cache of a data set; the rows are read once, in order.

    Raises:
        DatasetError: a shard is broken, or is not the one that dataset.json states.
        OSError: the file cannot be written.
    """
    layout, end = _layout(bucket)
    names = _text_columns(bucket)
    for shard in bucket.shards:
        shard.check_content()
    rows = chain.from_iterable(map(bucket.read, bucket.shards))
    with atomic_write(path, overwrite=True, durable=True) as file:
        file.write(_header(bucket))
        file.truncate(end)
        first, text_size = 0, 0
        for chunk in _chunks(rows, names):
            texts = [text.encode() for row in chunk for text in _texts(row, names)]
            ends = text_size + np.cumsum([len(text) for text in texts], dtype=np.int64)
            for name, column in layout.items():
                values = ends if name == "ends" else _values(chunk, name)
                file.seek(column.offset + first * math.prod(column.shape) * column.dtype.itemsize)
                file.write(np.asarray(values, column.dtype).tobytes())
            file.seek(end + text_size)
            file.write(b"".join(texts))
            first, text_size = first + len(chunk), int(ends[-1])


def _chunks(rows: Iterable[ImageTokens], names: Sequence[str]) -> Iterator[list[ImageTokens]]:
    """Divide rows into lists, none of which is empty."""
    chunk, size = list[ImageTokens](), 0
    for row in rows:
        chunk.append(row)
        size += sum(map(len, _texts(row, names)))
        if len(chunk) == CHUNK_ROWS or size > CHUNK_TEXT:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _texts(row: ImageTokens, names: Sequence[str]) -> list[str]:
    return [getattr(row, name) or "" for name in names]


def _values(rows: Sequence[ImageTokens], name: str) -> Any:
    """Return the values of a column of fixed width."""
    if name == "tokens":
        return [row.flatten() for row in rows]
    if name == "label":
        return [-1 if row.label is None else row.label for row in rows]
    if name == "latent":
        return [row.latent for row in rows]
    if name in VIEW_COLUMNS:
        attribute = "number" if name == "view" else name
        return [getattr(row.view, attribute) for row in rows]
    return [getattr(row.image, name) for row in rows]
