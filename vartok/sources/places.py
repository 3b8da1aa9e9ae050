"""Places of files: paths and URLs. They are opened, and named in messages."""

from __future__ import annotations

import os
from typing import BinaryIO

from vartok.files import check_regular
from vartok.optional import require_file_system
from vartok.sources.web import hide_secrets, is_web, open_web


def open_place(place: str) -> BinaryIO:
    """Open a path or URL for reading, in binary.

    Raises:
        VartokError: a package is missing that opens such a URL.
        OSError: the file cannot be opened, or is not a regular file, see `check_regular`. For a URL that is
            not http, its file system's library may raise other errors too.
    """
    if not is_url(place):
        check_regular(place)
        return open(place, "rb")
    if is_web(place):
        return open_web(place)
    require_file_system(place)
    import fsspec

    stream: BinaryIO = fsspec.open(place, "rb").open()
    return stream


def is_url(place: str) -> bool:
    """Return True for a URL, which has "://" in it, and False for a path."""
    return "://" in place


def absolute(place: str) -> str:
    """Return the absolute path of a path, and a URL unchanged."""
    return place if is_url(place) else os.path.abspath(place)


def shorten_path(path: str) -> str:
    """Return a path for a message: the middle of one of more than 500 characters becomes "...".

    A URL is shown without its password and without a long query, which may hold a signature.
    """
    path = hide_secrets(path)
    return path if len(path) <= 500 else f"{path[:200]}...{path[-200:]}"
