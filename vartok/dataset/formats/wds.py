"""WebDataset shards: a tar with KEY.tokens.npy, KEY.json and optionally the picture of every row.

With views, the files of view 0 are KEY#0.tokens.npy and KEY#0.json, and so on: each view is a sample of
WebDataset's. A picture that is kept is in its view 0. A latent is KEY.latent.npy.

Source: github.com/webdataset/webdataset. Its readers end a sample's key at the first dot after the last
slash.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats.base import (
    ALL_COLUMNS,
    MAX_ROW_BYTES,
    Format,
    build_row,
    check_fields,
    read_latent,
    row_fields,
)
from vartok.dataset.schema import LATENT
from vartok.errors import DatasetError, VartokError, one_line, printable
from vartok.flat_tokens import FlatTokens
from vartok.npy import MAGIC, read_npy_header
from vartok.sources.tar_members import TarReader
from vartok.tokens import ImageTokens, row_key

PICTURE_SUFFIXES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"GIF8", "gif"),
    (b"II*", "tif"),
    (b"MM", "tif"),
    (b"BM", "bmp"),
    (MAGIC, "npy"),
)
"""First bytes of picture files, and the suffix by which WebDataset's readers recognize each format."""


class TarWriter:
    """Writes rows as files of a tar, without times and owners, so that the same rows give the same bytes."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._stem: str | None = None

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row: its tokens, its other columns, and the picture file unless `picture` is None.

        Raises:
            DatasetError: the previous row has the same key, so that readers would join the two rows.
        """
        stem = row_key(escape_key(tokens.key), None if tokens.view is None else tokens.view.number)
        if stem == self._stem:
            raise DatasetError(
                "has the key of the picture before it, and readers of a tar would join the two: rename one"
            )
        self._stem = stem
        self._write(f"{stem}.tokens.npy", _npy(tokens.flatten()))
        self._write(f"{stem}.json", json.dumps(row_fields(tokens)).encode())
        if tokens.latent is not None:
            self._write(f"{stem}.latent.npy", _npy(tokens.latent))
        if picture is not None:
            self._write(f"{stem}.{picture_suffix(picture)}", picture)

    def close(self) -> None:
        """Write the end of the archive."""
        self._archive.close()

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._archive.addfile(member, io.BytesIO(data))
        self._archive.members.clear()  # type: ignore[attr-defined]  # or all headers would stay in memory


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def escape_key(key: str) -> str:
    """Return the path of a row in a tar, without suffix.

    Two keys give different paths. "%", control characters, dots in the last part, and the dots of "." and
    ".." become "%" and their code in hex. An empty part becomes "%", so that no path is absolute.
    """
    *folders, name = map(_escape_part, key.split("/"))
    folders = [folder.replace(".", "%2E") if folder in (".", "..") else folder for folder in folders]
    return "/".join([*folders, name.replace(".", "%2E")])


def _escape_part(part: str) -> str:
    return re.sub(r"[%\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"%{ord(found[0]):02X}", part) or "%"


def picture_suffix(picture: bytes) -> str:
    """Return the suffix of a picture file by its first bytes, as "png"; "img" for an unknown format."""
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in PICTURE_SUFFIXES if picture.startswith(start)), "img")


def read_wds(
    path: Path, encoding: Encoding, columns: Collection[str] = ALL_COLUMNS
) -> Iterator[ImageTokens | VartokError]:
    """Yield the rows of a tar, or the error of a row that is broken.

    A tar does not record its encoding: rows of another one are noticed only by the number of tokens, or by a
    token outside the vocabulary.

    Args:
        path: the shard.
        encoding: encoding of the data set.
        columns: the columns of `ALL_COLUMNS` to read.

    Raises:
        Exception: the file is not a tar, or is broken from here on.
    """
    latents = encoding.latents and LATENT in columns
    for row in _read_rows(path, latents=latents):
        try:
            if isinstance(row, VartokError):
                yield row
                continue
            latent = read_latent(row.latent, encoding) if latents else None
            yield build_row(row.fields, row.tokens, encoding, columns=columns, latent=latent)
        except DatasetError as error:
            yield error


def read_flat_wds(path: Path) -> Iterator[FlatTokens | VartokError]:
    """Yield the tokens of the rows of a tar whose encoding is not known, or the error of a broken row.

    Raises:
        DatasetError: the tar holds no rows.
        Exception: the file is not a tar, or is broken from here on.
    """
    rows = 0
    for row in _read_rows(path):
        rows += 1
        try:
            if isinstance(row, VartokError):
                yield row
                continue
            key, view = check_fields(row.fields)["key"], row.fields.get("view")
            yield FlatTokens(row_key(key, view if type(view) is int else None), row.tokens)
        except DatasetError as error:
            yield error
    if not rows:
        raise DatasetError("holds no tokens: a row is a file that ends in .tokens.npy, and one in .json")


class _Row(NamedTuple):
    """The content of a row's files, unchecked.

    Attributes:
        fields: the JSON document.
        tokens: [L] integers.
        latent: an array; None if it was not read.
    """

    fields: Any
    tokens: NDArray[Any]
    latent: NDArray[Any] | None


def _read_rows(path: Path, *, latents: bool = False) -> Iterator[_Row | DatasetError]:
    """Yield the rows, unchecked, or the error of a broken row.

    Args:
        path: the shard.
        latents: read the latents too.
    """
    suffixes = r"tokens\.npy|json|latent\.npy" if latents else r"tokens\.npy|json"
    key, parts = "", dict[str, bytes | None]()
    with open(path, "rb") as file:
        reader = TarReader(file)
        for member in reader:
            match = re.fullmatch(rf"((?:.*/)?[^./]+)\.({suffixes})", member.name)
            if not match or member.kind != "file":
                continue
            if parts and (match[1] != key or match[2] in parts):
                yield _read_row(key, parts)
                parts = {}
            key = match[1]
            parts[match[2]] = reader.read(member) if member.size <= MAX_ROW_BYTES else None
    if parts:
        yield _read_row(key, parts)


def _read_row(key: str, parts: dict[str, bytes | None]) -> _Row | DatasetError:
    """Return a row, or why it cannot be read.

    Args:
        key: name of its files in the tar.
        parts: content of its files by suffix, such as "tokens.npy"; None for one that is too large.
    """
    array, document, latent = map(parts.get, ("tokens.npy", "json", "latent.npy"))
    try:
        if array is None or document is None:
            raise DatasetError(
                f"its .tokens.npy or its .json is missing, or has more than {MAX_ROW_BYTES:,} bytes"
            )
        tokens = _parse_npy(array)
        if tokens is None or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DatasetError("its .tokens.npy is not a complete 1-d array of integers")
        return _Row(json.loads(document), tokens, None if latent is None else _parse_npy(latent))
    except (DatasetError, ValueError, RecursionError) as error:
        return DatasetError(f"row {printable(key, 100)}: {one_line(error)}")


def _parse_npy(data: bytes) -> NDArray[Any] | None:
    """Return the array of an npy file; None if it is not whole, not row by row, or of objects.

    Raises:
        ValueError: the file is no npy.
    """
    stream = io.BytesIO(data)
    shape, fortran_order, dtype = read_npy_header(stream)
    start = stream.tell()
    order_matters = len(shape) > 1 and fortran_order
    if order_matters or dtype.hasobject or len(data) - start != math.prod(shape) * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


WDS = Format("wds", ".tar", TarWriter, read_wds, keeps_pictures=True)
