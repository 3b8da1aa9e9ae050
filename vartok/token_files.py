"""Token files: npz, JSON, JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vartok.errors import TokenFileError
from vartok.files import os_error_reason
from vartok.tokens import ImageTokens, read_tokens


def dump_npz(tokens: ImageTokens) -> bytes:
    """Return the bytes of an npz file."""
    return tokens.to_npz()


def dump_json(tokens: ImageTokens) -> str:
    """Return a JSON object on one line, without a newline."""
    return tokens.to_json()


def iter_tokens(stream: BinaryIO) -> Iterator[ImageTokens | TokenFileError]:
    """Yield the images of a token file, or, in their place, why they cannot be read."""
    return read_tokens(stream)


def load_tokens(path: str | Path) -> ImageTokens:
    """Read a token file of one image.

    Raises:
        TokenFileError: it cannot be read, or it holds another number of images.
    """
    try:
        with open(path, "rb") as stream:
            found = list(iter_tokens(stream))
    except OSError as error:
        raise TokenFileError(f"{path}: {os_error_reason(error)}") from None
    for item in found:
        if isinstance(item, TokenFileError):
            raise TokenFileError(f"{path}: {item}", hint=item.hint)
        if len(found) == 1:
            return item
    raise TokenFileError(f"{path}: holds {len(found)} images, not one")
