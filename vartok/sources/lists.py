"""Parse lists of paths and URLs, in the encodings that shells write."""

from __future__ import annotations

import codecs
import os
import re

from vartok.errors import SourceError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks at the beginning of a list, and the encodings that they announce."""


def parse_list(data: bytes, *, null: bool = False) -> list[str]:
    """Return the paths and URLs that a list names, one on each line or each ended by NUL.

    Names are bytes of the file system's encoding. With a byte order mark the list is UTF-8, UTF-16 or UTF-32
    text, as PowerShell writes it; UTF-16 without a mark is recognized by its NUL bytes,
    unless `null` is set.

    Args:
        data: the bytes of the list.
        null: names end in NUL, and may contain line breaks.

    Raises:
        SourceError: the list is not valid text of the encoding that its byte order mark announces.
    """
    encoding = _detect_encoding(data, guess=not null)
    if encoding is None:
        ends_in_null = data.rstrip(b"\r\n").endswith(b"\0")
        pieces = data.split(b"\0") if null or ends_in_null else data.splitlines()
        if ends_in_null and not null:  # a line break after the last NUL names nothing
            pieces[-1] = b""
        names = [os.fsdecode(piece.removeprefix(codecs.BOM_UTF8)) for piece in pieces]
    else:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            raise SourceError(f"is not valid {encoding[:6].upper()} text") from None
        # str.splitlines would also split at characters that names may contain, such as U+2028.
        parts = text.split("\0") if null else re.split(r"\r\n|\n|\r|\0", text)
        names = [part.removeprefix("\ufeff") for part in parts]
    return [name for name in names if name]


def _detect_encoding(data: bytes, *, guess: bool) -> str | None:
    """Return the encoding of a list in UTF-16 or UTF-32; None for a list in bytes or UTF-8.

    Args:
        data: the bytes of the list.
        guess: recognize UTF-16 without a byte order mark too.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return encoding
    if guess and len(data) % 2 == 0:
        for encoding, line_break, high in (("utf-16-le", b"\n\0", 1), ("utf-16-be", b"\0\n", 0)):
            if line_break in data and 4 * data[high::2].count(0) > len(data[high::2]):
                # As many NUL bytes in the other half would be names that end in NUL.
                return encoding if 8 * data[1 - high :: 2].count(0) < data[high::2].count(0) else None
    return None
