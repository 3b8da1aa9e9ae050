"""Decompress streams of gzip, bzip2, xz and zstd in bounded memory; write files of gzip and zstd."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from vartok.optional import require

CHUNK = 1 << 16
"""Bytes that are read from a compressed stream at once."""

MAX_RATIO = 2000
"""Largest ratio of decompressed to compressed bytes, past the first `FREE_BYTES`; gzip's own is 1,032."""

FREE_BYTES = 1 << 30
"""Decompressed bytes that may come from any number of compressed bytes."""

MAX_XZ_MEMORY = 1 << 28
"""Memory limit of xz in bytes; `xz -9` needs a quarter of it."""


class DecompressionError(Exception):
    """Compressed data that is broken, ends too early, or has other data after it."""


def decompressed(stream: BinaryIO, head: bytes) -> BinaryIO | None:
    """Return a stream of decompressed bytes, or None if the stream is not compressed.

    Several compressed members in a row are read as one, as by gzip, bzip2 and xz.

    Args:
        stream: stream of compressed bytes after `head`; it need not be seekable.
        head: first bytes of the stream, already read from it; at least 10, if it has so many.

    Reads raise DecompressionError if the data is broken, or if it is a bomb, see `MAX_RATIO`.

    Raises:
        VartokError: the stream is of zstd, and pyarrow is not installed.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return io.BufferedReader(_Decompressed(stream, head, _Gzip), CHUNK)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return io.BufferedReader(_Decompressed(stream, head, bz2.BZ2Decompressor), CHUNK)
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00\x80")):
        return io.BufferedReader(_Decompressed(stream, head, _xz), CHUNK)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        check_zstd()
        return io.BufferedReader(_Zstd(stream, head), CHUNK)
    return None


@contextlib.contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Yield a stream that compresses what is written to `file`, as the end of its name says.

    Equal data give equal bytes.

    Args:
        file: an open file. It may be closed at the end of the block.
        name: its name, which ends in ".gz" or ".zst" if it is to be compressed.

    Raises:
        VartokError: the name ends in ".zst", and pyarrow is not installed.
    """
    if name.lower().endswith(".gz"):
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
            yield stream  # type: ignore[misc]
    elif name.lower().endswith(".zst"):
        check_zstd()
        import pyarrow

        with pyarrow.CompressedOutputStream(pyarrow.PythonFile(_Flushed(file), "w"), "zstd") as stream:
            yield stream
    else:
        yield file


def check_zstd() -> None:
    """Check that zstd can be read and written.

    Raises:
        VartokError: pyarrow is not installed.
    """
    require("pyarrow", extra="dataset", purpose="zstd")


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)


class _Gzip:
    """zlib's decompressor with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


class _Decompressed(io.RawIOBase):
    def __init__(self, stream: BinaryIO, head: bytes, new: Callable[[], Any]) -> None:
        self._stream = stream
        self._new = new
        self._decompressor = new()
        self._magic = head[:2]
        self._input = head
        self._consumed, self._produced = len(head), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        while True:
            if self._decompressor.eof and not self._next_member():
                return b""
            if self._decompressor.needs_input and not self._input and not self._fill():
                raise DecompressionError("unexpected end of data")
            try:
                data: bytes = self._decompressor.decompress(self._input, size)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
                raise DecompressionError("invalid compressed data") from error
            self._input = b""
            self._produced += len(data)
            if self._produced > FREE_BYTES + MAX_RATIO * self._consumed:
                raise DecompressionError(f"its data decompresses to more than {MAX_RATIO:,} times its size")
            if data:
                return data

    def _next_member(self) -> bool:
        """Begin the next compressed member, after any padding of zeros; return False if there is none."""
        self._input = self._decompressor.unused_data.lstrip(b"\0")
        while len(self._input) < len(self._magic):
            if not self._fill():
                break
            self._input = self._input.lstrip(b"\0")
        if not self._input:
            return False
        if not self._input.startswith(self._magic):
            raise DecompressionError("data after its end")
        self._decompressor = self._new()
        return True

    def _fill(self) -> bool:
        more = self._stream.read(CHUNK)
        self._consumed += len(more)
        self._input += more
        return bool(more)


class _Flushed:
    """A file that is flushed after every write, for Arrow, which does not pass its own flush on."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Leave the file open, as it is the caller's."""


class _Counted:
    """A stream that counts the bytes that are read from it, for Arrow."""

    closed = False

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream, self._head = stream, head
        self.count = 0

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._stream.read(size)
        self.count += len(data)
        return data

    def close(self) -> None:
        """Leave the stream open, as it is the caller's."""


class _Zstd(io.RawIOBase):
    """The decompressed bytes of a stream of zstd."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        import pyarrow

        self._source = _Counted(stream, head)
        self._produced = 0
        self._inflated = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._source, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._inflated.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # of the stream
                raise
            raise DecompressionError("invalid compressed data, or an unexpected end of it") from error
        self._produced += len(data)
        if self._produced > FREE_BYTES + MAX_RATIO * self._source.count:
            raise DecompressionError(f"its data decompresses to more than {MAX_RATIO:,} times its size")
        buffer[: len(data)] = data
        return len(data)
