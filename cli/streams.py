"""The standard streams: one that is closed, or whose encoding lacks a character, costs no traceback."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from typing import Any, TextIO

from vartok.errors import printable

PLAIN = dict(zip("─━│█▇▆▅▄▃▂▁▉▊▋▌▍▎▏…‖", "--|#*+=-:._===----~|", strict=True))
"""Characters of one cell in place of those of tables and bars, for encodings that lack them."""

ERRORS = "vartok-plain"
"""Name of the error handler of stdout and stderr, as `errors` of `open` takes it."""


def prepare_streams() -> None:
    """Open closed streams again, and give stdout and stderr the error handler.

    Reading a closed stdin and writing to a closed stdout fail, and a closed stderr takes everything. This
    comes before any file is opened, which would get a closed stream's descriptor.
    """
    sys.stdin = sys.stdin or _open_null("<stdin>", os.O_WRONLY, "r")
    sys.stdout = sys.stdout or _open_null("<stdout>", os.O_RDONLY, "w")
    sys.stderr = sys.stderr or _open_null("<stderr>", os.O_WRONLY, "w")
    codecs.register_error(ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _open_null(name: str, access: int, mode: str) -> TextIO:
    """Open the null device as a standard stream.

    Args:
        name: name of the stream.
        access: flag of `os.open`; if it does not suit `mode`, every use of the stream fails with EBADF.
        mode: mode of the stream.
    """
    binary: Any = open(os.open(os.devnull, access), f"{mode}b")  # noqa: SIM115
    binary.raw.name = name
    return io.TextIOWrapper(binary, encoding="utf-8")


def for_stderr(text: str) -> str:
    """Return printable text with the characters that stderr has; Click itself may write others."""
    encoding = sys.stderr.encoding or "ascii"
    return printable(text).encode(encoding, ERRORS).decode(encoding)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: those of tables, letters with accents, others by "?"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or _without_accent(char) for char in lacking), error.end


def _without_accent(char: str) -> str:
    base = unicodedata.normalize("NFKD", char)[0]
    return base if base.isascii() and base.isprintable() else "?"
