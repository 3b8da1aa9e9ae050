"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".vartok-"
"""What the names of temporary files begin with."""

ABANDONED = 3600.0
"""Seconds after which nobody works on a small temporary file any more."""


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    Whatever ends the block or the process early leaves `path` as it was before.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or it is no regular file.
        OSError: the folder cannot be written to, or the disk is full.
    """
    _refuse_existing(path, overwrite)
    scratch = path.parent / f"{_scratch_stem(path)}{secrets.token_hex(8)}.tmp"
    try:
        with open(scratch, "xb") as file:
            yield file
        if not overwrite:
            _place_new(scratch, path)
        else:
            os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def remove_stale_temp_files(path: Path, *, age: float = 0.0) -> None:
    """Remove what processes that were killed have left of `path`, if it is older than `age` seconds."""
    for scratch in path.parent.glob(f"{_scratch_stem(path)}*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime >= age:
                scratch.unlink()


def _scratch_stem(path: Path) -> str:
    """What the names of a file's temporary files begin with; short, however long its own is."""
    return f"{TEMPORARY}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


def _place_new(scratch: Path, path: Path) -> None:
    """Give a file its name, unless another process has meanwhile taken it."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists") from None
    except OSError:  # a file system without hard links
        _refuse_existing(path, overwrite=False)
        os.replace(scratch, path)
    else:
        scratch.unlink()


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    if os.path.lexists(path) and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file")  # a device would become one
