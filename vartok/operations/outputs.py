"""Outputs of encoding and decoding: choose their paths, and refuse or skip those that exist."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

from vartok.errors import ArgumentError, OutputError, VartokError, printable
from vartok.operations.inputs import Input
from vartok.sources.find import is_url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vartok.tokens import ImageTokens

F = TypeVar("F", bound=str)

Output: TypeAlias = str | Path | BinaryIO | None
"""A file, a folder, or an open binary stream; None for the folder of each input."""


@dataclass(frozen=True)
class FileResult:
    """The result of one picture.

    Attributes:
        input: the input's path; "path: name" for a picture of a collection. If the whole run is refused since
            its jsonl file exists, that file's path.
        output: path of the file that was written; None for a stream, or if nothing was written.
        tokens: the picture's tokens; None if it failed or was skipped.
        picture: [H, W, 3] uint8 sRGB, the decoded pixels; None in encoding, or if it failed or was skipped.
        error: the reason of a failure; else None.
        notes: remarks for the user, such as "animation: took the first of 12 frames".
        skipped: True if the output existed and `skip_existing` was set.
    """

    input: str
    output: Path | None = None
    tokens: ImageTokens | None = None
    picture: NDArray[np.uint8] | None = field(default=None, repr=False)
    error: VartokError | None = None
    notes: tuple[str, ...] = ()
    skipped: bool = False


class FileResults(Iterator[FileResult]):
    """Results of a run, computed as they are iterated over.

    Attributes:
        total: number of results; None if an input is a collection, whose pictures are not counted ahead.
    """

    def __init__(self, results: Iterator[FileResult], total: int | None) -> None:
        self._results = results
        self.total = total

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

    def path(self, item: Input, key: str | None = None, *, is_file: bool = False) -> Path | None:
        """Return the path for the result of an input, or of its picture called `key`; None for a stream.

        Args:
            item: the input.
            key: name of the picture in a collection.
            is_file: the key is the name of a file, and is renamed as that of an input.

        Raises:
            ArgumentError: the input is a URL, and there is no folder for its result.
        """
        if self.stream is not None or self.file is not None:
            return self.file
        rename = self.rename if key is None or is_file else self.rename_member
        name = rename(item.name if key is None else safe_name(key))
        if self.folder is not None:
            return self.folder / name
        if item.place is None:
            return Path(name)
        if is_url(item.place):
            raise ArgumentError(
                f"{item} is a URL: nothing can be written there", hint="name a folder with `output`"
            )
        beside = Path(item.place).parent
        return beside / (name.name if key is None else name)


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
    suffix = path.suffix.lower()
    if is_folder:
        return Target(rename, rename_member, folder=path)
    if suffix in suffixes and not many:
        return Target(rename, rename_member, file=path)
    if suffix and not many:
        raise ArgumentError(
            f"{shown} has an unknown suffix: output files end in {', '.join(suffixes)}, folders in /"
        )
    if suffix in suffixes or os.path.lexists(path):
        raise ArgumentError(
            f"{shown} is a file, but there may be several results", hint="name a folder with `output`"
        )
    return Target(rename, rename_member, folder=path)


class OutputPlan:
    """Plans the path of every result, so that no two results share one and none replaces an input.

    Args:
        target: the destination.
        inputs: the inputs of the run.
        overwrite: replace files that exist.
        skip_existing: skip inputs whose output exists.

    Attributes:
        todo: inputs to encode or decode.
        refused: results of the inputs whose output exists: skipped, or with an error.

    Raises:
        ArgumentError: two inputs would write one file, a result would replace an input, or both
            `overwrite` and `skip_existing` are set.
    """

    def __init__(
        self, target: Target, inputs: Sequence[Input], *, overwrite: bool, skip_existing: bool
    ) -> None:
        if overwrite and skip_existing:
            raise ArgumentError("`overwrite` and `skip_existing` contradict each other")
        self._target, self._overwrite, self._skip = target, overwrite, skip_existing
        self._sources = {os.path.realpath(item.place) for item in inputs if item.place}
        self._taken: set[str] = set()
        self.todo: list[Input] = []
        self.refused: list[FileResult] = []
        if target.joined:
            self._plan_joined(inputs)
            return
        planned: dict[str, Input] = {}
        for item in inputs:
            path = None if item.is_collection or item.error else target.path(item)
            if path is None:
                self.todo.append(item)
                continue
            self._protect_inputs(path)
            other = planned.setdefault(os.path.abspath(path), item)
            if other is not item:
                raise _conflict(other, item, path)
            refused = self._refuse_existing(str(item), path)
            if refused:
                self.refused.append(refused)
            else:
                self.todo.append(item)

    def claim(
        self, item: Input, key: str | None = None, *, is_file: bool = False
    ) -> tuple[str, Path | None] | FileResult:
        """Reserve the path for a result.

        Args:
            item: an input.
            key: name of the picture in a collection.
            is_file: see `Target.path`.

        Returns:
            The result's name in messages, and its path: None for a stream, a joined file or an input with an
            error. Or a `FileResult` to report instead, skipped or with an error, if the path exists by now,
            is an input, or belongs to another result.
        """
        label = str(item) if key is None else f"{item}: {printable(key)}"
        if self._target.joined or item.error:
            return label, None
        try:
            path = self._target.path(item, key, is_file=is_file)
            if path is not None:
                self._protect_inputs(path)
        except ArgumentError as error:
            return FileResult(label, error=error)
        place = os.path.abspath(path) if path else "the stream"
        if place in self._taken:
            hint = "a token file of several images needs the suffix .jsonl"
            if path is None or self._target.file:
                hint = "name a folder with `output`"
            elif item.is_collection:
                hint = "two pictures of the input have this name"
            taken = OutputError(
                f"{printable(path or place)} is taken by another picture of this run", hint=hint
            )
            return FileResult(label, error=taken)
        refused = path and self._refuse_existing(label, path)
        if refused:
            return refused
        self._taken.add(place)
        return label, path

    def refuse_new(self, label: str, path: Path | None, error: VartokError) -> FileResult:
        """Return the result of a picture that cannot be written.

        If `path` exists by now, since another process wrote it, the result is skipped or refused as for any
        file that exists; else it has `error`.
        """
        return (path and self._refuse_existing(label, path)) or FileResult(label, error=error)

    def _plan_joined(self, inputs: Sequence[Input]) -> None:
        file = self._target.file
        if file is not None:
            self._protect_inputs(file)
            refused = self._refuse_existing(printable(file), file)
            if refused and self._skip:
                import warnings

                from vartok.errors import VartokWarning

                warnings.warn(
                    f"{printable(file)} exists, so all inputs are skipped, even those that it lacks",
                    VartokWarning,
                    stacklevel=4,
                )
                self.refused = [FileResult(str(item), skipped=True) for item in inputs]
            elif refused:
                self.refused = [refused]
            if refused:
                return
        self.todo = [*inputs]

    def _refuse_existing(self, label: str, path: Path) -> FileResult | None:
        if self._overwrite or not os.path.lexists(path):
            return None
        if self._skip:
            return FileResult(label, skipped=True)
        hint = "set `overwrite` to replace it, or `skip_existing` to skip it"
        return FileResult(label, error=OutputError(f"{printable(path)} exists", hint=hint))

    def _protect_inputs(self, path: Path) -> None:
        if os.path.realpath(path) in self._sources:
            raise ArgumentError(f"{printable(path)} is an input, which would be lost")


def _conflict(one: Input, other: Input, path: Path) -> ArgumentError:
    if one.place == other.place:
        return ArgumentError(f"{other} is named twice")
    hint = "set `full_names`, or give each its own `output` in its own run"
    if one.name == other.name:
        hint = "name the folder above them and set `recursive`, or give each its own `output` in its own run"
    return ArgumentError(f"{one} and {other} would both be written to {printable(path)}", hint=hint)


def choose_format(output: Output, format: F | None, suffixes: Mapping[str, F], *, default: F) -> F:
    """Return `format`; if it is None, the format of the suffix of `output`, else `default`.

    Raises:
        ArgumentError: there is no such format, or the suffix of `output` is that of another format.
    """
    if format is not None and format not in suffixes.values():
        names = ", ".join(dict.fromkeys(suffixes.values()))
        raise ArgumentError(f"`format` is one of {names}, not {format!r}")
    name = output if isinstance(output, (str, Path)) else ""
    told = suffixes.get(PurePath(name).suffix.lower())
    if format and told and told != format:
        raise ArgumentError(
            f"{printable(name)} is {told} by its suffix, but `format` is {format}: change one of them"
        )
    return format or told or default


def safe_name(name: str) -> PurePath:
    """Turn a name that is stored inside a file into a path that stays below the folder of the outputs.

    Such names are keys of a tar and sources of tokens. Roots and ".." are removed, and unprintable
    characters become "_"; "image" if nothing remains.
    """
    text = "".join(char if char.isprintable() else "_" for char in name.replace("\\", "/"))
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "//", "..")]
    return PurePath(*parts) if parts else PurePath("image")


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
