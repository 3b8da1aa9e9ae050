"""Find the files of sources by searching folders, lists and URLs. All commands share this search."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from vartok.errors import ArgumentError, SourceError, VartokError
from vartok.files import os_error_reason
from vartok.images import picture_suffixes
from vartok.optional import require_file_system
from vartok.sources.lists import parse_list
from vartok.sources.passed_over import count_suffix, warn_passed_over
from vartok.sources.places import is_url, open_place, shorten_path
from vartok.sources.web import (
    is_web,
    lacks_slash,
    one_slash_error,
    url_name,
    without_login,
    without_query,
)
from vartok.suffixes import LISTS, TABLES, TARS, TOKEN_ENDINGS, TOKEN_FILES

Kind: TypeAlias = Literal["picture", "tar", "table", "tokens", "dataset", "folder", "checkpoint"]

DECODED = re.compile(r"\.(decoded|strip|animated|maps|beside)\.(png|jpg|webp|npy|gif)$")
"""Ends of the names that `vartok decode` gives to pictures.

A search skips these pictures, since they often lie in the folders of the originals.
"""


class FoundFile(NamedTuple):
    """A file of a source, or a folder in it that cannot be searched.

    Attributes:
        name: path below the searched folder or URL; for a file that the caller names, its base name; for a
            file that a list names, the path as written there, or a URL as `url_name` gives it, without a
            query if its path has a known suffix.
        place: path or URL.
        kind: "picture", "tar", "table" (Parquet, Arrow) or "tokens", by the suffix; "dataset" for the folder
            of a data set of tokens; "folder" for one that cannot be searched.
        size: size in bytes; None if unknown, as for pictures in folders, files in lists, and URLs that the
            caller names.
        error: the reason why a folder cannot be searched, or why what a search found is no file to read, as
            for a pipe; None for a file.
    """

    name: str
    place: str
    kind: Kind
    size: int | None = None
    error: str | None = None


@dataclass
class SearchReport:
    """A record of searches: files that were passed over, and the top folders of sources.

    Attributes:
        passed_over: number of files by suffix, in lower case, that a search passed over because of their
            suffixes; "" counts files without one. Hidden files and vartok's token files are not counted.
        folders: names of the folders that lie directly in a searched folder, whether they hold files or not.
    """

    passed_over: Counter[str] = field(default_factory=Counter)
    folders: set[str] = field(default_factory=set)

    def skip(self, name: str) -> None:
        """Count a file that is passed over, unless it is hidden or a token file of vartok."""
        base = posixpath.basename(name.replace(os.sep, "/"))
        if base.startswith(".") or base.lower().endswith(TOKEN_ENDINGS):
            return
        if decoded := DECODED.search(base):
            self.passed_over[decoded[0]] += 1
        else:
            count_suffix(self.passed_over, base)

    def warn(self) -> None:
        """Warn once of all files that were passed over, with their suffixes.

        Warns:
            VartokWarning: files were passed over.
        """
        warn_passed_over(self.passed_over, "file of kinds that are not read", hint=self.hint)

    @property
    def hint(self) -> str | None:
        """How to read arrays that were passed over; None if there are none."""
        hint = "name arrays (.npy), or put their paths into a list (.txt)"
        return hint if self.passed_over[".npy"] else None


def find_files(
    source: str | Path,
    *,
    kinds: tuple[Kind, ...] = ("picture", "tar", "table"),
    exclude: str | Path | None = None,
    is_dataset: Callable[[str], bool] | None = None,
    report: SearchReport | None = None,
) -> list[FoundFile]:
    """List the files of a source.

    A folder is searched in sorted order, its files before its subfolders. Hidden files and folders (".name")
    are skipped, and so are pictures that vartok decoded. Links to folders are followed, each folder once.
    A subfolder that cannot be searched, and a pipe or device with a suffix of `kinds`, becomes a `FoundFile`
    with an error, so that the rest is still found.

    A file may have any suffix if the caller gives its path, or if a list names it. With an unknown suffix it
    counts as a picture, or as tokens if `kinds` has "tokens" but not "picture". A URL with an unknown suffix
    counts as a folder if the caller gives it.

    Args:
        source: path or URL of a folder, a file, or a list (.txt) with a path or URL on each line. A URL may
            belong to any file system of fsspec, and "*" in it is a pattern; pass it as str, since a Path
            loses one of its slashes.
        kinds: kinds of files to return; files of other kinds are left out.
        exclude: a folder that is skipped if it lies in a searched folder.
        is_dataset: tells the folders that are not searched, but returned as data sets; None for none.
        report: record to which this search is added.

    Raises:
        ArgumentError: `source` is empty.
        SourceError: `source` is a path that does not exist, a list that cannot be read, a folder that cannot
            be searched, or a URL that cannot be searched or has no files.
    """
    place = str(source)
    if not place:
        raise ArgumentError("a path is empty")
    report = SearchReport() if report is None else report
    found = []
    remote = is_url(place)
    for file in (
        _find_remote(place, kinds, report)
        if remote
        else _find_local(place, kinds, exclude, is_dataset or (lambda _: False), report)
    ):
        if file.kind in kinds or file.kind in ("dataset", "folder"):
            found.append(file)
        else:  # named by the caller or a list
            report.skip(file.name)
    return found


def _find_local(
    source: str,
    kinds: tuple[Kind, ...],
    exclude: str | Path | None,
    is_dataset: Callable[[str], bool],
    report: SearchReport,
) -> Iterator[FoundFile]:
    try:
        status = os.stat(source)
    except (OSError, ValueError) as error:
        if lacks_slash(source):
            raise one_slash_error(source) from None
        raise SourceError(f"{source}: {os_error_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        yield from _search(source, kinds, exclude, is_dataset, report)
    elif source.lower().endswith(LISTS):
        yield from _read_list(source, kinds)
    else:
        yield FoundFile(os.path.basename(source), source, _kind(source, kinds), status.st_size)


def _search(
    folder: str,
    kinds: tuple[Kind, ...],
    exclude: str | Path | None,
    is_dataset: Callable[[str], bool],
    report: SearchReport,
) -> Iterator[FoundFile]:
    """Yield the files of a folder; not by recursion, as folders may be nested thousands deep."""
    suffixes = _suffixes(kinds)
    excluded = _folder_id(str(exclude)) if exclude is not None and os.path.isdir(exclude) else None
    seen = {_folder_id(folder), excluded}
    todo = [folder]
    while todo:
        root = todo.pop()
        if is_dataset(root):
            yield FoundFile(os.path.relpath(root, folder), root, "dataset")
            continue
        try:
            with os.scandir(root) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if root == folder:
                raise SourceError(f"{root}: cannot be searched: {os_error_reason(error)}") from None
            yield _unsearchable(folder, root, error)
            continue
        subfolders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(root, entry.name)
            try:
                if entry.is_dir():
                    place = _folder_id(path)
                    if root == folder and place != excluded:
                        report.folders.add(entry.name)
                    if place not in seen:
                        seen.add(place)
                        subfolders.append(path)
                    continue
            except OSError as error:  # a broken link, also in a circle, is a file that fails when it is read
                forbidden = isinstance(error, PermissionError) and not _is_wanted(entry.name, suffixes)
                if forbidden or not entry.is_symlink():
                    yield _unsearchable(folder, path, error)
                    continue
            if _is_wanted(entry.name, suffixes):
                kind = _kind(entry.name, kinds)
                size = None if kind == "picture" else _size(path)
                special = "is not a regular file" if _is_special(entry) else None
                yield FoundFile(os.path.relpath(path, folder), path, kind, size, special)
            else:
                report.skip(entry.name)
        todo += reversed(subfolders)


def _folder_id(folder: str) -> tuple[int, int]:
    """Return the device and inode of a folder, which are equal for all links to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _unsearchable(folder: str, place: str, error: OSError) -> FoundFile:
    """Return the `FoundFile` of a subfolder that cannot be searched."""
    reason = f"cannot be searched: {os_error_reason(error)}"
    return FoundFile(os.path.relpath(place, folder), place, "folder", error=reason)


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return True for a pipe, socket or device, which reading might wait for; False for a broken link."""
    try:
        return not (entry.is_file() or stat.S_ISREG(entry.stat().st_mode))
    except OSError:
        return False


def _find_remote(source: str, kinds: tuple[Kind, ...], report: SearchReport) -> Iterator[FoundFile]:
    path = without_query(source)
    listed = path.lower().endswith(LISTS)
    known = path.lower().endswith(_suffixes(("picture", "tar", "table", "tokens"))) or path != source
    known = known and "*" not in path
    if not (is_web(source) and (listed or known)):
        try:
            require_file_system(source)
        except VartokError as error:
            raise SourceError(f"{shorten_path(source)}: {error}", hint=error.hint) from None
    if listed:
        yield from _read_list(source, kinds)
        return
    if known:
        yield FoundFile(
            posixpath.basename(without_login(path)), source, _kind(source, kinds)
        )  # the size costs a request
        return
    suffixes = _suffixes(kinds)
    try:
        import fsspec

        system, root = fsspec.url_to_fs(source)
        found = system.glob(root, detail=True) if "*" in source else system.find(root, detail=True)
    except Exception as error:  # any error of the file system's library
        reason = os_error_reason(error)
        raise SourceError(f"{shorten_path(source)}: cannot be searched: {reason}") from None
    if not found:
        raise SourceError(f"{shorten_path(source)}: no files found there")
    base = root.partition("*")[0].rpartition("/")[0] if "*" in source else root.rstrip("/")
    for path in sorted(found):
        name = path[len(base) :].lstrip("/")
        if found[path]["type"] != "file" or any(part.startswith(".") for part in name.split("/")):
            continue
        if "/" in name:
            report.folders.add(name.partition("/")[0])
        if _is_wanted(path, suffixes):
            place = system.unstrip_protocol(path)
            yield FoundFile(name, place, _kind(path, kinds), found[path].get("size"))
        else:
            report.skip(name)


def _read_list(source: str, kinds: tuple[Kind, ...]) -> Iterator[FoundFile]:
    try:
        with open_place(source) as file:
            places = parse_list(file.read())
    except SourceError as error:
        raise SourceError(f"{shorten_path(source)}: {error}") from None
    except Exception as error:  # any error of the file system's library
        reason = os_error_reason(error)
        raise SourceError(f"{shorten_path(source)}: cannot be read: {reason}") from None
    for place in places:
        name = place
        if is_url(place):  # a picture's query may be all that tells it from others
            path = without_query(place)
            known = path.lower().endswith(_suffixes(("picture", "tar", "table")))
            name = url_name(path if known else place)
        yield FoundFile(name, place, _kind(place, kinds))


def _kind(place: str, kinds: tuple[Kind, ...]) -> Kind:
    """Return the kind of a file by its suffix.

    An unknown suffix gives "tokens" if `kinds` has "tokens" but not "picture", else "picture".
    """
    lower = without_query(place).lower()
    if lower.endswith(TARS):
        return "tar"
    if lower.endswith(TABLES):
        return "table"
    if "tokens" in kinds and (lower.endswith(TOKEN_FILES) or "picture" not in kinds):
        return "tokens"
    return "picture"


def _suffixes(kinds: tuple[Kind, ...]) -> tuple[str, ...]:
    """Return the suffixes of some kinds of files, in lower case."""
    by_kind = {"picture": picture_suffixes(), "tar": TARS, "table": TABLES, "tokens": TOKEN_FILES}
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
