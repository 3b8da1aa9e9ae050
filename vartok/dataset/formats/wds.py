"""WebDataset shards: a tar with KEY.tokens.npy, KEY.json and optionally the picture of every row.

Source: github.com/webdataset/webdataset. Its readers end a sample's key at the first dot after the last
slash.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vartok.dataset.formats.base import MAX_ROW_BYTES, Format, build_row, row_fields
from vartok.dataset.schema import Encoding
from vartok.errors import DatasetError, one_line
from vartok.tokens import ImageTokens

PICTURE_SUFFIXES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"GIF8", "gif"),
    (b"II*", "tif"),
    (b"MM", "tif"),
    (b"BM", "bmp"),
)
"""First bytes of picture files, and the suffix by which WebDataset's readers recognize each format."""


class TarWriter:
    """Writes rows as files of a tar, without times and owners, so that the same rows give the same bytes."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._key: str | None = None

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row: its tokens, its other columns, and the picture file unless `picture` is None.

        Raises:
            DatasetError: the previous row has the same key, so that readers would join the two rows.
        """
        key = tokens.image.source
        if key == self._key:
            raise DatasetError(
                "has the key of the picture before it, and readers of a tar would join the two: rename one"
            )
        self._key = key
        array = io.BytesIO()
        np.lib.format.write_array(array, tokens.flatten(), version=(1, 0), allow_pickle=False)
        stem = escape_key(key)
        self._write(f"{stem}.tokens.npy", array.getvalue())
        self._write(f"{stem}.json", json.dumps(row_fields(tokens)).encode())
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


def read_wds(path: Path, encoding: Encoding) -> Iterator[ImageTokens]:
    """Yield the rows of a tar.

    A tar does not record its encoding: rows of another one are noticed only by the number of tokens, or by a
    token outside the vocabulary.

    Raises:
        DatasetError: a row is broken, or a file of it is larger than `MAX_ROW_BYTES`.
        Exception: tarfile, numpy or json cannot read the file.
    """
    key, parts = "", dict[str, bytes]()
    with tarfile.open(path, "r|") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # or all headers would stay in memory
            match = re.fullmatch(r"((?:.*/)?[^./]+)\.(tokens\.npy|json)", member.name)
            if not match or not member.isreg():
                continue
            if member.size > MAX_ROW_BYTES:
                raise DatasetError(f"{one_line(member.name)} is larger than {MAX_ROW_BYTES:,} bytes")
            if match[1] != key and parts:
                yield _read_row(key, parts, encoding)
                parts = {}
            key = match[1]
            file = archive.extractfile(member)
            parts[match[2]] = file.read() if file else b""
    if parts:
        yield _read_row(key, parts, encoding)


def _read_row(key: str, parts: dict[str, bytes], encoding: Encoding) -> ImageTokens:
    """Build a row from `parts`, the content of its files by suffix: "tokens.npy" and "json".

    Raises:
        DatasetError: a file is missing or broken, or the row does not fit the encoding.
        Exception: numpy or json cannot read a file.
    """
    if parts.keys() != {"tokens.npy", "json"}:
        raise DatasetError(f"{one_line(key)}: its .tokens.npy or its .json is missing")
    stream = io.BytesIO(parts["tokens.npy"])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DatasetError(f"{one_line(key)}: its .tokens.npy is not of npy version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if (
        len(shape) != 1
        or dtype.kind not in "iu"
        or len(parts["tokens.npy"]) - stream.tell() != shape[0] * dtype.itemsize
    ):
        raise DatasetError(f"{one_line(key)}: its .tokens.npy is not a complete 1-d array of integers")
    tokens = np.frombuffer(parts["tokens.npy"], dtype, offset=stream.tell())
    return build_row(json.loads(parts["json"]), tokens, encoding)


WDS = Format("wds", ".tar", TarWriter, read_wds, keeps_pictures=True)
