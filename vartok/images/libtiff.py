"""Collect libtiff's errors while Pillow decodes, of which Pillow passes few on.

Warnings cannot be heard: Pillow switches them off whenever it decodes. See `tiff_strips` for what libtiff
only warns of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

import PIL._imaging

from vartok.errors import DamagedImageError, one_line

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_DAMAGE = (
    "JPEGLib",
    "Fax3",
    "Fax4",
    "LZW",
    "PackBits",
    "ZIP",
    "ZSTD",
    "LZMA",
    "WebP",
    "TIFFFill",
    "TIFFRead",
)
_HARMLESS = ("extraneous bytes", "TIFFReadDirectory", "TIFFReadCustomDirectory")


class _Messages(threading.local):
    """Messages of libtiff in this thread while it decodes for `refuse_damage`; None at other times."""

    heard: list[str] | None = None


_messages = _Messages()
_handlers: list[object] = []  # libtiff holds pointers to them


def listen(*, quiet: bool) -> None:
    """Take over libtiff's errors in the whole process; `refuse_damage` does so if need be.

    Args:
        quiet: if False, they are also written to stderr, as libtiff does.
    """
    vsnprintf: Any = None
    with contextlib.suppress(
        AttributeError, OSError, TypeError
    ):  # Windows has no such name for its C library
        vsnprintf = ctypes.CDLL(None).vsnprintf

    def hear(module: bytes | None, form: bytes, values: int | None) -> None:
        buffer = ctypes.create_string_buffer(form, max(300, len(form) + 1))
        if vsnprintf is not None:
            vsnprintf(buffer, ctypes.c_size_t(300), form, ctypes.c_void_p(values))
        text = f"{(module or b'libtiff').decode(errors='replace')}: {buffer.value.decode(errors='replace')}"
        if _messages.heard is not None:
            _messages.heard.append(text)
        if not quiet:
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode())

    with contextlib.suppress(AttributeError, OSError):  # a Pillow without libtiff
        library = ctypes.CDLL(PIL._imaging.__file__)
        handler = _HANDLER(hear)
        _handlers.append(handler)
        library.TIFFSetErrorHandler(handler)


@contextlib.contextmanager
def refuse_damage() -> Iterator[None]:
    """A context in which Pillow decodes a TIFF file.

    Raises:
        DamagedImageError: libtiff said that pixels were damaged or missing; it fills them with anything.
    """
    if not _handlers:
        listen(quiet=False)
    _messages.heard = []
    try:
        yield
        for text in _messages.heard:
            if text.startswith(_DAMAGE) and not any(harmless in text for harmless in _HARMLESS):
                raise DamagedImageError(f"is damaged: {one_line(text)}")
    finally:
        _messages.heard = None
