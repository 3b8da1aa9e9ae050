"""Find the files of sources by searching folders, lists and URLs. All commands share this search."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NoReturn, TypeAlias

from vartok.errors import ArgumentError, ImageError, SourceError
from vartok.files import os_error_reason
from vartok.images import picture_suffixes

Kind: TypeAlias = Literal["picture", "tar", "table", "tokens"]

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
TABLES = (".parquet",)
TOKENS = (".npz", ".tokens.json", ".jsonl")
LISTS = (".txt",)

DECODED = re.compile(r"\.(decoded|strip)\.(png|jpg|webp)$")
"""Ends of the names that `vartok decode` gives to pictures.

A search skips these pictures, since they often lie in the folders of the originals.
"""


class FoundFile(NamedTuple):
    """A file of a source.

    Attributes:
        name: path below the searched folder or URL; for a file that the caller names, its base name; for a
            file that a list names, the path as written there, or a URL without its "scheme://".
        place: path or URL.
        kind: "picture", "tar", "table" (Parquet) or "tokens", by the suffix.
        size: size in bytes; None if unknown, as for pictures in folders, files in lists, and URLs that the
            caller names.
    """

    name: str
    place: str
    kind: Kind
    size: int | None = None


def find_files(
    source: str | Path,
    *,
    kinds: tuple[Kind, ...] = ("picture", "tar", "table"),
    exclude: str | Path | None = None,
) -> list[FoundFile]:
    """List the files of a source.

    A folder is searched in sorted order, its files before its subfolders. Hidden files and folders (".name")
    are skipped, and so are pictures that vartok decoded. Links to folders are followed, each folder once.

    A file may have any suffix if the caller gives its path, or if a list names it. With an unknown suffix it
    counts as a picture, or as tokens if `kinds` has "tokens" but not "picture". A URL with an unknown suffix
    counts as a folder if the caller gives it.

    Args:
        source: path or URL of a folder, a file, or a list (.txt) with a path or URL on each line. A URL may
            belong to any file system of fsspec, and "*" in it is a pattern; pass it as str, since a Path
            loses one of its slashes.
        kinds: kinds of files to return; files of other kinds are left out.
        exclude: a folder that is skipped if it lies in a searched folder.

    Raises:
        ArgumentError: `source` is empty.
        SourceError: `source` is a path that does not exist, a list that cannot be read, a folder that cannot
            be searched, or a URL that cannot be searched or has no files.
    """
    place = str(source)
    if not place:
        raise ArgumentError("a path is empty")
    found = _find_remote(place, kinds) if is_url(place) else _find_local(place, kinds, exclude)
    return [file for file in found if file.kind in kinds]


def open_place(place: str) -> BinaryIO:
    """Open a path or URL for reading, in binary.

    Raises:
        ImageError: the path is not of a regular file but, for example, of a pipe, which might never end.
        OSError: the file cannot be opened. For a URL, its file system's library may raise other errors too.
    """
    if not is_url(place):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise ImageError("is not a regular file")
        return open(place, "rb")
    import fsspec

    stream: BinaryIO = fsspec.open(place, "rb").open()
    return stream


def is_url(place: str) -> bool:
    """Return True for a URL, which has "://" in it, and False for a path."""
    return "://" in place


def absolute(place: str) -> str:
    """Return the absolute path of a path, and a URL unchanged."""
    return place if is_url(place) else os.path.abspath(place)


def _find_local(source: str, kinds: tuple[Kind, ...], exclude: str | Path | None) -> Iterator[FoundFile]:
    try:
        status = os.stat(source)
    except (OSError, ValueError) as error:
        raise SourceError(f"{source}: {os_error_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        yield from _search(source, kinds, exclude)
    elif source.lower().endswith(LISTS):
        yield from _read_list(source, kinds)
    else:
        yield FoundFile(os.path.basename(source), source, _kind(source, kinds), status.st_size)


def _search(folder: str, kinds: tuple[Kind, ...], exclude: str | Path | None) -> Iterator[FoundFile]:
    suffixes = _suffixes(kinds)
    seen = {os.path.realpath(folder)}
    if exclude is not None:
        seen.add(os.path.realpath(exclude))
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        places = {name: os.path.realpath(os.path.join(root, name)) for name in sorted(folders)}
        folders[:] = []  # os.walk enters only the folders that this list gets below
        for name, place in places.items():
            if place not in seen and not name.startswith("."):
                seen.add(place)
                folders.append(name)
        for name in sorted(files):
            path = os.path.join(root, name)
            if _is_wanted(name, suffixes):
                kind = _kind(name, kinds)
                size = None if kind == "picture" else _size(path)
                yield FoundFile(os.path.relpath(path, folder), path, kind, size)


def _find_remote(source: str, kinds: tuple[Kind, ...]) -> Iterator[FoundFile]:
    if source.lower().endswith(LISTS):
        yield from _read_list(source, kinds)
        return
    if source.lower().endswith(_suffixes(("picture", "tar", "table", "tokens"))) and "*" not in source:
        yield FoundFile(posixpath.basename(source), source, _kind(source, kinds))  # the size costs a request
        return
    suffixes = _suffixes(kinds)
    try:
        import fsspec

        system, root = fsspec.url_to_fs(source)
        found = system.glob(root, detail=True) if "*" in source else system.find(root, detail=True)
    except Exception as error:  # any error of the file system's library
        raise SourceError(f"{source}: cannot be searched: {os_error_reason(error)}") from None
    if not found:
        raise SourceError(f"{source}: no files found there")
    base = root.partition("*")[0].rpartition("/")[0] if "*" in source else root.rstrip("/")
    for path in sorted(found):
        name = path[len(base) :].lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if found[path]["type"] == "file" and _is_wanted(path, suffixes) and not hidden:
            place = system.unstrip_protocol(path)
            yield FoundFile(name, place, _kind(path, kinds), found[path].get("size"))


def _read_list(source: str, kinds: tuple[Kind, ...]) -> Iterator[FoundFile]:
    try:
        with open_place(source) as file:
            lines = file.read().splitlines()
    except Exception as error:  # any error of the file system's library
        raise SourceError(f"{source}: cannot be read: {os_error_reason(error)}") from None
    for line in lines:
        if line:
            place = os.fsdecode(line)
            name = place.partition("://")[2] if is_url(place) else place
            yield FoundFile(name, place, _kind(place, kinds))


def _kind(place: str, kinds: tuple[Kind, ...]) -> Kind:
    """Return the kind of a file by its suffix.

    An unknown suffix gives "tokens" if `kinds` has "tokens" but not "picture", else "picture".
    """
    lower = place.lower()
    if lower.endswith(TARS):
        return "tar"
    if lower.endswith(TABLES):
        return "table"
    if "tokens" in kinds and (lower.endswith(TOKENS) or "picture" not in kinds):
        return "tokens"
    return "picture"


def _suffixes(kinds: tuple[Kind, ...]) -> tuple[str, ...]:
    """Return the suffixes of some kinds of files, in lower case."""
    by_kind = {"picture": picture_suffixes(), "tar": TARS, "table": TABLES, "tokens": TOKENS}
    return tuple(suffix for kind in kinds for suffix in by_kind[kind])


def _is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = posixpath.basename(name).startswith(".")
    return name.lower().endswith(suffixes) and not hidden and not DECODED.search(name)


def _size(path: str) -> int | None:
    """Return a file's size in bytes; None for a broken link, which fails when it is read."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise SourceError(f"{error.filename}: cannot be searched: {os_error_reason(error)}")
