"""Outputs of encoding and decoding: their places, formats and results."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

from vartok.errors import ArgumentError, OutputError, VartokError, printable
from vartok.operations.inputs import Input
from vartok.operations.names import folded_name, portable_name, safe_name, suffix_of
from vartok.sources.places import is_url

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.tokens import ImageTokens

F = TypeVar("F", bound=str)

Output: TypeAlias = str | Path | BinaryIO | None
"""A file, a folder, or an open binary stream; None for the folder of each input."""


COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes that no folder of outputs has by intention."""


@dataclass(frozen=True)
class FileResult:
    """The result of one picture.

    Attributes:
        input: the input's path; "path: name" for a picture of a collection. If the whole run is refused since
            its jsonl file exists, that file's path.
        output: path of the file that was written; None for a stream, or if nothing was written.
        tokens: the picture's tokens; None if it failed or was skipped.
        picture: the decoded pixels, [H, W, C] uint8, or uint16 for npy; None in encoding, or if it failed or
            was skipped.
        error: the reason of a failure; else None.
        notes: remarks for the user, such as "animation: took the first of 12 frames".
        skipped: True if the output existed and `skip_existing` was set.
    """

    input: str
    output: Path | None = None
    tokens: ImageTokens | None = None
    picture: Pixels | None = field(default=None, repr=False)
    error: VartokError | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False


class FileResults(Iterator[FileResult]):
    """Results of a run, computed as they are iterated over.

    Attributes:
        total: number of results; None if an input is a collection, whose pictures are not counted ahead.
        separate: True if every result has a file of its own, which is whole when the result is yielded.
    """

    def __init__(self, results: Iterator[FileResult], total: int | None, *, separate: bool) -> None:
        self._results = results
        self.total = total
        self.separate = separate

    def __next__(self) -> FileResult:
        """Return the next result."""
        return next(self._results)

    def close(self) -> None:
        """Stop the run; an unfinished jsonl file is discarded, and one that it would have replaced stays."""
        close = getattr(self._results, "close", None)
        if close:
            close()


@dataclass(frozen=True)
class Target:
    """Destination of results: a stream, a file, or a folder; without any, the folder of each input.

    Attributes:
        rename: maps an input's name to its output's name.
        rename_member: maps the key of a picture in a collection to its output's name.
        stream: stream that the results are written to, or None.
        file: path of the only output file, or None.
        folder: folder of the output files, or None.
        joined: True if `stream` or `file` takes any number of results, one after the other.
    """

    rename: Callable[[PurePath], PurePath]
    rename_member: Callable[[PurePath], PurePath]
    stream: BinaryIO | None = None
    file: Path | None = None
    folder: Path | None = None
    joined: bool = False

    @property
    def separate(self) -> bool:
        """True if every result has a file of its own."""
        return self.stream is None and not self.joined

    def place(self, item: Input, key: str | None = None, *, is_file: bool = False) -> Place | None:
        """Return the place for the result of an input, or of its picture called `key`; None for a stream.

        Args:
            item: the input.
            key: name of the picture in a collection.
            is_file: the key is the name of a file, and is renamed as that of an input.

        Raises:
            ArgumentError: the input is a URL, and there is no folder for its result.
        """
        if self.stream is not None:
            return None
        if self.file is not None:
            return Place(self.file.parent, PurePath(self.file.name), PurePath(self.file.name))
        rename = self.rename if key is None or is_file else self.rename_member
        name = rename(item.name if key is None else safe_name(key))
        base = self.folder or Path()
        if self.folder is None and item.place is not None:
            if is_url(item.place):
                raise ArgumentError(
                    f"{item} is a URL: nothing can be written there", hint="name a folder with `output`"
                )
            base = Path(item.place).parent
            name = PurePath(name.name) if key is None else name
        return Place(base, portable_name(name), name)


class Place(NamedTuple):
    """The place of an output file.

    Attributes:
        base: a folder that the user named.
        name: path of the file below it, as every system can hold it.
        plain: the path as the input's name gives it.
    """

    base: Path
    name: PurePath
    plain: PurePath

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.base / self.name

    @property
    def identity(self) -> tuple[str, str]:
        """The key that all paths share that are this file on some system."""
        return os.path.abspath(self.base), folded_name(self.name)


def resolve_target(
    output: Output,
    inputs: Sequence[Input],
    rename: Callable[[PurePath], PurePath],
    rename_member: Callable[[PurePath], PurePath],
    *,
    many: bool,
    joined: bool = False,
    suffixes: Collection[str],
) -> Target:
    """Return the destination that `output` names.

    Args:
        output: a path, a stream, or None; a path without a suffix, or with a slash at its end, is a folder.
        inputs: the inputs of the run.
        rename: maps an input's name to its output's name.
        rename_member: maps the key of a picture in a collection to its output's name.
        many: True if there may be several results.
        joined: True if all results go into one file or stream.
        suffixes: suffixes that an output file may have; a joined file may have any.

    Raises:
        ArgumentError: one file or stream for several results, an output file of another suffix, or no file
            name for joined results.
    """
    if output is not None and not isinstance(output, (str, Path)):
        if len(inputs) > 1 and not joined:
            hint = "name a folder with `output`" + ", or set `format` to jsonl" * (".jsonl" in suffixes)
            raise ArgumentError(f"a stream takes one result, but there are {len(inputs)} inputs", hint=hint)
        return Target(rename, rename_member, stream=output, joined=joined)
    if output is None:
        if joined:
            raise ArgumentError(
                "the one jsonl file of all pictures has no name", hint="name it with `output`"
            )
        return Target(rename, rename_member)
    place, path = str(output), Path(output)
    shown = printable(place)
    is_folder = place.endswith(("/", os.sep)) or path.is_dir()
    if joined:
        if is_folder:
            raise ArgumentError(f"{shown} is a folder, but all pictures go into one jsonl file: name it")
        return Target(rename, rename_member, file=path, joined=True)
    suffix = suffix_of(path, suffixes)
    if is_folder:
        return Target(rename, rename_member, folder=path)
    if suffix in suffixes and not many:
        return Target(rename, rename_member, file=path)
    if suffix and not many:
        raise ArgumentError(
            f"{shown} has an unknown suffix: output files end in {', '.join(suffixes)}, folders in /"
        )
    if path.suffix.lower() in COMPRESSED:
        raise ArgumentError(
            f"{shown} is no name for a folder", hint=f"end it in / or in {', '.join(suffixes)}"
        )
    if suffix in suffixes or os.path.lexists(path):
        raise ArgumentError(
            f"{shown} is a file, but there may be several results", hint="name a folder with `output`"
        )
    return Target(rename, rename_member, folder=path)


def check_folder(folder: Path) -> None:
    """Check that a folder of outputs can be written, or made, before any work is done for it.

    Raises:
        OutputError: there is a file in its place, or no permission to write in it.
    """
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not there.is_dir():
        raise OutputError(f"cannot write in {printable(folder)}: {printable(there)} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write in {printable(folder)}: no permission")


def choose_format(output: Output, format: F | None, suffixes: Mapping[str, F], *, default: F) -> F:
    """Return `format`; if it is None, the format of the suffix of `output`, else `default`.

    Raises:
        ArgumentError: there is no such format, or the suffix of `output` is that of another format.
    """
    if format is not None and format not in suffixes.values():
        names = ", ".join(dict.fromkeys(suffixes.values()))
        raise ArgumentError(f"`format` is one of {names}, not {format!r}")
    name = output if isinstance(output, (str, Path)) else ""
    told = suffixes.get(suffix_of(name, suffixes))
    if format and told and told != format:
        raise ArgumentError(
            f"{printable(name)} is {told} by its suffix, but `format` is {format}: change one of them"
        )
    return format or told or default


def write_stream(stream: BinaryIO, data: bytes) -> None:
    """Write a result to a stream and flush it, so that the reader of a pipe gets it at once.

    Raises:
        OSError: the stream cannot be written; `filename` is the stream's name, or "the stream".
    """
    try:
        stream.write(data)
        stream.flush()
    except OSError as error:
        name: Any = getattr(stream, "name", None)
        error.filename = name if isinstance(name, str) else "the stream"
        raise
