"""Read token files one image at a time, whatever their format: npz, JSON, JSONL, compressed or not."""

from __future__ import annotations

import codecs
import itertools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vartok import token_files
from vartok.compression import DecompressionError, decompressed
from vartok.errors import TokenFileError, VartokError
from vartok.files import os_error_reason
from vartok.token_files import TokenMetadata, json_metadata, npz_metadata, parse_json, parse_npz
from vartok.tokens import ImageTokens


def iter_tokens(stream: BinaryIO) -> Iterator[ImageTokens | TokenFileError]:
    """Read the images of a token file, one at a time: npz, JSON or JSONL, recognized by content.

    A file that begins with "PK" is an npz. A file that begins with "{" is JSONL if its first line also ends
    with "}" or its second line begins with "{"; otherwise it is one JSON object on several lines. Blank
    lines, a byte order mark, CRLF and a missing last newline make no difference. Files compressed by gzip,
    bzip2, xz or zstd are decompressed.

    Args:
        stream: a buffered binary stream; it is read forward only, so a pipe will do.

    Yields:
        The tokens of an image, or the error of an image that cannot be read. The error of a line of JSONL
        begins with the line's number, as "line 7: ", and the lines after it are still read. Only a few lines
        of JSONL are in memory at once; an npz, or JSON on several lines, is read whole.

    Raises:
        OSError: the stream cannot be read.
    """
    try:
        for prefix, parse, data in _parts(stream):
            item: ImageTokens | TokenFileError
            try:
                item = parse(data)
            except TokenFileError as error:
                item = TokenFileError(f"{prefix}{error}", hint=error.hint)
                _keep_traceback(item, error)
                data = b""  # else the traceback keeps it
            yield item
    except TokenFileError as error:  # of compressed data
        yield error


def read_metadata(path: str | Path) -> Iterator[TokenMetadata]:
    """Read the metadata of a token file's images, one at a time, without the tokens of an npz.

    Raises:
        TokenFileError: the file cannot be read, or is not a token file; the message does not name it.
    """
    metadata = {parse_npz: npz_metadata, parse_json: json_metadata}
    try:
        with open(path, "rb") as stream:
            for prefix, parse, data in _parts(stream):
                try:
                    yield metadata[parse](data)
                except TokenFileError as error:
                    raise TokenFileError(f"{prefix}{error}", hint=error.hint) from None
    except OSError as error:
        raise TokenFileError(os_error_reason(error)) from None


def _parts(
    file: BinaryIO, *, inflate: bool = True
) -> Iterator[tuple[str, Callable[[bytes], ImageTokens], bytes]]:
    """Yield, for each image in a stream, the prefix of its error messages, its parser, and its bytes.

    Args:
        file: the stream.
        inflate: decompress it if it is compressed; what is compressed twice is no token file.

    Raises:
        TokenFileError: compressed data cannot be read, or not to its end.
    """
    lines = read_lines(file)
    first = next(lines, (1, b""))
    if inflate and (inner := _decompressed(file, first[1])):
        try:
            yield from _parts(inner, inflate=False)
        except DecompressionError as error:
            raise TokenFileError(f"cannot be read to its end: {error}") from None
        return
    head = first[1].removeprefix(codecs.BOM_UTF8).strip()
    if head.startswith(b"PK"):
        yield "", parse_npz, _read_on(file, first[1])
    elif not head.startswith(b"{"):
        yield "not a token file: ", parse_json, first[1]
    else:
        ahead = [first]
        if not head.endswith(b"}"):
            ahead.append(next(lines, (2, b"")))
            if not ahead[1][1].startswith(b"{"):
                yield "", parse_json, _read_on(file, first[1] + ahead[1][1])
                return
        for number, line in itertools.chain(ahead, lines):
            yield f"line {number}: ", parse_json, line


def _decompressed(file: BinaryIO, head: bytes) -> BinaryIO | None:
    """Return the decompressed stream of a file after `head`; None if it is not compressed."""
    try:
        return decompressed(file, head)
    except VartokError as error:
        raise TokenFileError(str(error), hint=error.hint) from None


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the bytes of every line that is not blank.

    A line of more than `token_files.MAX_DOCUMENT_BYTES` is cut one byte after them; `parse_json` refuses it.
    """
    for number in itertools.count(1):
        line = file.readline(token_files.MAX_DOCUMENT_BYTES + 1)
        if not line:
            return
        if not line.isspace() or len(line) > token_files.MAX_DOCUMENT_BYTES:
            yield number, line
        while line and not line.endswith(b"\n"):
            line = file.readline(token_files.MAX_DOCUMENT_BYTES)


def _read_on(file: BinaryIO, start: bytes) -> bytes:
    return start + file.read(max(0, token_files.MAX_DOCUMENT_BYTES + 1 - len(start)))


def _keep_traceback(item: TokenFileError, error: TokenFileError) -> None:
    """Give an error the traceback and cause of another, without the data that their frames hold."""
    item.__cause__ = error.__cause__ or error.__context__
    for each in (error, item.__cause__):
        if each is not None:
            traceback.clear_frames(each.__traceback__)
    item.__traceback__ = error.__traceback__
