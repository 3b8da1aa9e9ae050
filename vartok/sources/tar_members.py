"""Read the members of a tar in its order, in bounded memory, whatever its headers claim.

Python's tarfile takes the sizes in headers on trust, ends at the first end mark, and cannot follow links in
a stream.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias

from vartok.compression import decompressed
from vartok.errors import ImageError

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
"""Bytes that are skipped at once."""

ZEROS = 1 << 16
"""Bytes after an end mark that are read at once."""

MAX_TAR_HEADER = 1 << 20
"""Size limit in bytes of an extended header, which holds the long name of a file."""

MAX_EXTENTS = 1 << 16
"""Largest number of extents, which are runs of bytes, of a sparse file."""

MAX_DIGITS = 20
"""Largest number of decimal digits of a number in an extended header."""

PAX_FIELDS = {
    *("path", "linkpath", "size", "GNU.sparse.name", "GNU.sparse.size", "GNU.sparse.realsize"),
    *("GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.minor"),
}

Extents = list[tuple[int, int]]

Kind: TypeAlias = Literal["file", "folder", "link", "symlink", "other"]

KINDS: dict[bytes, Kind] = {
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "symlink",
}


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: its path in the tar.
        kind: "link" is a hard link, to an earlier member; "other" is, for example, a pipe.
        size: size of its content in bytes, as its header claims.
        target: path of a link's target; "" if it is no link.
        archive: number of the archive in the file, from 0; tars that are joined are several.
        position: where its content begins in the (decompressed) tar.
        extents: (offset, size) of each run of bytes that a sparse file stores; None if it stores all.
    """

    name: str
    kind: Kind
    size: int
    target: str
    archive: int
    position: int
    extents: Extents | None = None


class TarReader:
    """Reads a tar, plain or compressed by gzip, bzip2 or xz, or several joined. Iterate over it once.

    Attributes:
        seekable: True if `read_at` works.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending = _read_full(stream, BLOCK)
        self._position = 0
        self._left = 0  # bytes of the current member that have not been read
        self._end: int | None = None
        inner = decompressed(stream, self._pending)
        self.seekable = inner is None and stream.seekable()
        if inner is not None:
            self._stream, self._pending = inner, b""
        else:
            self._end = _file_size(stream, len(self._pending))

    def __iter__(self) -> Iterator[Member]:
        """Yield the members.

        Raises:
            tarfile.ReadError: the tar is broken, has no end mark, or has other data after it.
            DecompressionError: the compressed data is broken.
        """
        archive, ended, members = 0, False, 0
        pax: dict[str, str] = {}
        once: dict[str, str] = {}
        sparse_map: Extents = []
        while True:
            self._skip(self._left)
            block = self._take(BLOCK)
            if not block.strip(b"\0"):
                if once:
                    raise tarfile.ReadError("a header has no file")
                if len(block) == BLOCK:
                    ended = True
                    self._skip_zeros()
                    continue
                if ended:
                    return
                raise tarfile.ReadError("it has no end mark" if members else "empty file")
            if ended and members:
                archive, pax = archive + 1, {}
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if header.size < 0:
                    raise tarfile.HeaderError("invalid header")
            except (tarfile.HeaderError, ValueError) as error:
                text = "data after its end" if ended and members else str(error)
                raise tarfile.ReadError(text) from error
            ended = False
            kind = header.type
            if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                fields, extents = _parse_pax(self._extended(header.size))
                if kind == tarfile.XGLTYPE:
                    pax |= fields
                else:
                    once |= fields
                    sparse_map = extents
                continue
            if kind == tarfile.GNUTYPE_LONGNAME:
                once.setdefault("path", _text(self._extended(header.size).partition(b"\0")[0]))
                continue
            if kind == tarfile.GNUTYPE_LONGLINK:
                once.setdefault("linkpath", _text(self._extended(header.size).partition(b"\0")[0]))
                continue
            yield self._member(header, block, pax | once, sparse_map, archive)
            members += 1
            once, sparse_map = {}, []

    def read(self, member: Member) -> bytes:
        """Return the content of the member that was yielded last; the caller checks its size first.

        Raises:
            ImageError: the member is a sparse file whose extents are not in it.
            tarfile.ReadError: the tar ends before it.
        """
        if member.extents is None:
            self._check_end(member.size)
            data = self._exact(member.size)
            self._left -= len(data)
            return data
        at = 0
        extents = [(offset, size) for offset, size in member.extents if size]
        for offset, size in extents:
            if offset < at or offset + size > member.size:
                raise ImageError("is a sparse file that is broken")
            at = offset + size
        if sum(size for _, size in extents) > self._left:
            raise ImageError("is a sparse file that is broken")
        self._check_end(self._left)
        content = bytearray(member.size)
        for offset, size in extents:
            content[offset : offset + size] = self._exact(size)
            self._left -= size
        return bytes(content)

    def read_at(self, position: int, size: int) -> bytes:
        """Return bytes of an earlier member; the tar must be `seekable`.

        Raises:
            OSError, ValueError: the stream cannot seek.
        """
        here = self._stream.tell()
        self._stream.seek(here - len(self._pending) - self._position + position)
        try:
            return _read_full(self._stream, size)
        finally:
            self._stream.seek(here)

    def _member(
        self, header: tarfile.TarInfo, block: bytes, pax: dict[str, str], sparse_map: Extents, archive: int
    ) -> Member:
        name = (pax.get("GNU.sparse.name") or pax.get("path") or header.name).rstrip("/")
        stored = _number(pax["size"]) if "size" in pax else header.size
        has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        self._left = _padded(stored) if has_data else 0
        size, extents = stored, None
        if header.type == tarfile.GNUTYPE_SPARSE:
            size, extents = self._gnu_extents(block)
        elif "GNU.sparse.map" in pax:
            size = _number(pax.get("GNU.sparse.size", ""))
            numbers = [_number(text) for text in pax["GNU.sparse.map"].split(",")]
            extents = list(zip(numbers[::2], numbers[1::2], strict=False))
        elif "GNU.sparse.size" in pax:
            size, extents = _number(pax["GNU.sparse.size"]), sparse_map
        elif (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor")) == ("1", "0"):
            size, extents = _number(pax.get("GNU.sparse.realsize", "")), self._pax_extents()
        kind: Kind = "file" if header.isreg() else KINDS.get(header.type, "other")
        target = pax.get("linkpath") or header.linkname if kind in ("link", "symlink") else ""
        return Member(name, kind, size, target, archive, self._position, extents)

    def _gnu_extents(self, block: bytes) -> tuple[int, Extents]:
        extents = _binary_extents(block[386:482])
        more = block[482]
        while more:
            extension = self._exact(BLOCK)
            if len(extents) <= MAX_EXTENTS:  # more of them are skipped, and `read` refuses the file
                extents += _binary_extents(extension[:504])
            more = extension[504]
        if len(extents) > MAX_EXTENTS:
            extents = [(-1, 1)]
        return _binary_number(block[483:495]), extents

    def _pax_extents(self) -> Extents:
        """Read the extents that stand as text before the content, padded to blocks."""
        text, lines, wanted = bytearray(), 0, 1
        while lines < wanted:
            if self._left < BLOCK:
                return [(-1, 1)]
            block = self._exact(BLOCK)
            self._left -= BLOCK
            text += block
            lines += block.count(b"\n")
            if lines and wanted == 1:
                wanted = 1 + 2 * _number(text.partition(b"\n")[0].decode("latin-1"))
                if wanted > 1 + 2 * MAX_EXTENTS:
                    return [(-1, 1)]
            elif b"\n" not in block:
                return [(-1, 1)]
        numbers = [_number(line.decode("latin-1")) for line in bytes(text).split(b"\n")[1:wanted]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _extended(self, size: int) -> bytes:
        if size > MAX_TAR_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes, more than {MAX_TAR_HEADER:,}")
        return self._exact(_padded(size))[:size]

    def _check_end(self, size: int) -> None:
        if self._end is not None and self._position + size > self._end:
            raise tarfile.ReadError("unexpected end of data")

    def _exact(self, size: int) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def _skip(self, size: int) -> None:
        self._check_end(size)
        while size:
            size -= len(self._exact(min(size, CHUNK)))
        self._left = 0

    def _skip_zeros(self) -> None:
        """Skip blocks of zeros."""
        while True:
            data = self._take(ZEROS)
            if data and data == bytes(len(data)):  # faster than lstrip
                continue
            rest = len(data.lstrip(b"\0"))
            skipped = (len(data) - rest) // BLOCK * BLOCK
            self._pending = data[skipped:] + self._pending
            self._position -= len(data) - skipped
            return

    def _take(self, size: int) -> bytes:
        """Return the next bytes; fewer than `size` only at the end."""
        data, self._pending = self._pending[:size], self._pending[size:]
        if len(data) < size:
            data += _read_full(self._stream, size - len(data))
        self._position += len(data)
        return data


def _parse_pax(data: bytes) -> tuple[dict[str, str], Extents]:
    """Return the fields of a pax header that are used here, and the extents of a sparse file of version 0.0.

    Raises:
        tarfile.ReadError: the header is broken.
    """
    fields: dict[str, str] = {}
    numbers: list[int] = []
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + MAX_DIGITS + 1].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        end = at + length
        keyword, equals, value = data[at + len(digits) + 1 : max(at, end - 1)].partition(b"=")
        if not length or not equals or data[max(0, end - 1) : end] != b"\n":
            raise tarfile.ReadError("invalid header")
        name = keyword[:40].decode("utf-8", "replace")
        if name in PAX_FIELDS:
            fields[name] = _text(value)
        elif name in ("GNU.sparse.offset", "GNU.sparse.numbytes") and len(numbers) <= 2 * MAX_EXTENTS:
            numbers.append(_number(_text(value)))
        at = end
    if len(numbers) > 2 * MAX_EXTENTS or fields.get("GNU.sparse.map", "").count(",") > 2 * MAX_EXTENTS:
        raise tarfile.ReadError(f"a file of more than {MAX_EXTENTS:,} extents")
    return fields, list(zip(numbers[::2], numbers[1::2], strict=False))


def _binary_extents(data: bytes) -> Extents:
    extents = []
    for at in range(0, len(data), 24):
        if not data[at] or not data[at + 12]:
            break
        extents.append((_binary_number(data[at : at + 12]), _binary_number(data[at + 12 : at + 24])))
    return extents


def _binary_number(field: bytes) -> int:
    """Return a number of a header: octal digits, or bytes after a first byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise tarfile.ReadError("invalid header") from None


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        raise tarfile.ReadError("invalid header")
    return int(text)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_full(stream: BinaryIO, size: int) -> bytes:
    """Return the next `size` bytes; fewer only at the end."""
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


def _file_size(stream: BinaryIO, read: int) -> int | None:
    """Return the size of a regular file, counted from `read` bytes before; None for other streams."""
    try:
        status = os.fstat(stream.fileno())
        begin = stream.tell()
    except (AttributeError, OSError, ValueError):
        return None
    return status.st_size + read - begin if stat.S_ISREG(status.st_mode) else None
