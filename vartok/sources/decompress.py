"""Decompress streams of gzip, bzip2 and xz, in bounded memory."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

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
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return io.BufferedReader(_Decompressed(stream, head, _Gzip), CHUNK)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return io.BufferedReader(_Decompressed(stream, head, bz2.BZ2Decompressor), CHUNK)
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00\x80")):
        return io.BufferedReader(_Decompressed(stream, head, _xz), CHUNK)
    return None


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
