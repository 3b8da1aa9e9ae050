"""Names of output files: from the names of inputs, and as every system can hold them."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

MAX_NAME_BYTES = 255
"""Longest name of a file or folder; most file systems have this limit."""

RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(?=\.|$)", re.IGNORECASE)
"""Beginning of names that belong to devices on Windows, with any suffix."""

FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')
"""Characters that no name on Windows has."""

ENDING = re.compile(r"(\.[A-Za-z0-9]{1,9}){1,2}$")
"""Suffixes of an output's name, as ".tokens.npz"."""


def suffix_of(name: str | PurePath, suffixes: Iterable[str]) -> str:
    """Return the one of `suffixes` that a name ends in, as ".jsonl.gz"; else its suffix in lower case."""
    path = PurePath(name)
    lower = path.name.lower()
    known = [suffix for suffix in suffixes if lower.endswith(suffix) and lower != suffix]
    return max(known, key=len, default=path.suffix.lower())


def stem(name: PurePath, endings: tuple[str, ...] = (), *, full: bool = False) -> PurePath:
    """Return a name without the first of `endings` that it has, else without its suffix.

    Args:
        name: a relative path.
        endings: endings of several suffixes, in lower case, as ".tokens.npz".
        full: return the name as it is.
    """
    if full:
        return name
    for ending in endings:
        if name.name.lower().endswith(ending) and len(name.name) > len(ending):
            return name.with_name(name.name[: -len(ending)])
    return name.with_suffix("")


def safe_name(name: str) -> PurePath:
    """Turn a name that is stored inside a file into a path that stays below the folder of the outputs.

    Such names are keys of a tar and sources of tokens. Roots, the colon of a drive and ".." are removed;
    unprintable characters, and those that Windows cannot hold, become "_"; "image" if nothing remains.
    """
    text = "".join(char if char.isprintable() else "_" for char in name.replace("\\", "/"))
    text = re.sub(r"^/*([A-Za-z]):(?=/|$)", r"\1", text)
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "//", "..")]
    return PurePath(*(FORBIDDEN.sub("_", part) for part in parts)) if parts else PurePath("image")


def portable_name(name: PurePath) -> PurePath:
    """Return an output's name as Windows, macOS and Linux can hold it; nearly every name stays as it is.

    A name that Windows reserves for a device gets "_": "CON_.tokens.npz". "_" replaces `FORBIDDEN`
    characters, and dots and blanks at the end of a folder's name, which Windows drops. A name of more than
    `MAX_NAME_BYTES` is shortened, and gets a hash, so that different names stay different.
    """
    return PurePath(*map(_portable_part, name.parts))


def numbered_name(name: PurePath, number: int) -> PurePath:
    """Return an output's name with a number: "img-2.tokens.npz"."""
    base, ending = _split(name.name)
    return portable_name(name.with_name(f"{base}-{number}{ending}"))


def folded_name(name: PurePath) -> str:
    """Return the text that names have in common which are one name on macOS or Windows.

    Such names differ in case alone, or in the normal form of their Unicode.

    Source: canonical caseless matching, The Unicode Standard, section 3.13, D145.
    """
    folded = unicodedata.normalize("NFD", name.as_posix()).casefold()
    return unicodedata.normalize("NFD", folded)


def _portable_part(part: str) -> str:
    part = FORBIDDEN.sub("_", part)
    part = RESERVED.sub(lambda found: f"{found[0]}_", part, count=1) if RESERVED.match(part) else part
    kept = part.rstrip(" .")
    part = kept + "_" * (len(part) - len(kept))
    if len(os.fsencode(part)) <= MAX_NAME_BYTES:
        return part
    base, ending = _split(part)
    ending = f"-{hashlib.sha256(os.fsencode(part)).hexdigest()[:8]}{ending}"
    while len(os.fsencode(base + ending)) > MAX_NAME_BYTES:
        base = base[:-1]
    return base + ending


def _split(name: str) -> tuple[str, str]:
    """Split an output's name before its suffixes."""
    found = ENDING.search(name)
    start = found.start() if found and found.start() else len(name)
    return name[:start], name[start:]
