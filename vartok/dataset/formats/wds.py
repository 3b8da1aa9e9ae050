"""WebDataset shards: a tar with KEY.tokens.npy, KEY.json and, if wanted, the picture of every row.

Source: github.com/webdataset/webdataset, whose readers end a sample's key at the first dot after the last
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
"""First bytes of picture files, and the suffix by which WebDataset's readers recognize the format."""


class TarWriter:
    """Writes rows as tar members, without times and owners."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._key: str | None = None

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row, and the picture file if there is one.

        Raises:
            DatasetError: the row before has the same key, and readers would join the two.
        """
        key = tokens.image.source
        if key == self._key:
            raise DatasetError("has the key of the picture before it, and a tar cannot tell them apart")
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
    """Return a key as a path of a tar: unique, below the archive's root, without dots in its name.

    Dots, "%" and control characters become %XX, as in URLs; an empty part becomes "%".
    """
    *folders, name = map(_escape_part, key.split("/"))
    folders = [folder.replace(".", "%2E") if folder in (".", "..") else folder for folder in folders]
    return "/".join([*folders, name.replace(".", "%2E")])


def _escape_part(part: str) -> str:
    return re.sub(r"[%\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"%{ord(found[0]):02X}", part) or "%"


def picture_suffix(picture: bytes) -> str:
    """Return the suffix, without a dot, of a picture file by its first bytes; "img" if unknown."""
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in PICTURE_SUFFIXES if picture.startswith(start)), "img")


def read_wds(path: Path, encoding: Encoding) -> Iterator[ImageTokens]:
    """Yield the rows of a tar. A tar does not record its encoding, so only the tokens' number is checked.

    Raises:
        DatasetError: a row is broken, or larger than `MAX_ROW_BYTES`.
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
    """Build a row from the bytes of its members, by suffix: "tokens.npy" and "json"."""
    if parts.keys() != {"tokens.npy", "json"}:
        raise DatasetError(f"{one_line(key)}: lacks its .tokens.npy or its .json")
    stream = io.BytesIO(parts["tokens.npy"])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DatasetError(f"{one_line(key)}: tokens of another version of npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if (
        len(shape) != 1
        or dtype.kind not in "iu"
        or len(parts["tokens.npy"]) - stream.tell() != shape[0] * dtype.itemsize
    ):
        raise DatasetError(f"{one_line(key)}: not an array of tokens")
    tokens = np.frombuffer(parts["tokens.npy"], dtype, offset=stream.tell())
    return build_row(json.loads(parts["json"]), tokens, encoding)


WDS = Format("wds", ".tar", TarWriter, read_wds, keeps_pictures=True)
