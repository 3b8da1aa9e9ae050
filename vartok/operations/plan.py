"""Plan the outputs of a run: refuse two of one name, and refuse or skip those that exist."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeAlias

from vartok.errors import (
    ArgumentError,
    OutputError,
    OutputExistsError,
    StorageError,
    VartokError,
    counted,
    printable,
    warn,
)
from vartok.operations.inputs import Input
from vartok.operations.names import folded_name, numbered_name, portable_name
from vartok.operations.outputs import FileResult, Place, Target, check_folder
from vartok.sources.places import absolute

if TYPE_CHECKING:
    from vartok.token_files import TokenMetadata

Compare: TypeAlias = "Callable[[Input | None, Path, TokenMetadata | None], str | None]"
"""Tells how an existing output differs from what a run would make; None if it does not.

Takes an input, None for all inputs of a joined file; the output's path; and in decoding the metadata of the
tokens, None if they are still to be read. Raises a VartokError if the output cannot be compared.
"""


class OutputPlan:
    """Plans the path of every result, so that no two results share one and none replaces an input.

    Names that differ in case or Unicode normal form alone count as one name, as macOS and Windows take them.

    Args:
        target: the destination.
        inputs: the inputs of the run.
        overwrite: replace files that exist.
        skip_existing: skip inputs whose output exists and is what the run would make.
        compare: tells how an existing output differs from what the run would make; used with `skip_existing`.

    Attributes:
        todo: inputs to encode or decode.
        refused: results of the inputs whose output exists: skipped, or with an error.
        is_full: True once a picture was refused because the only file or stream has one: no other has room.

    Raises:
        ArgumentError: two inputs would write one file, a result would replace an input, or both
            `overwrite` and `skip_existing` are set.
        OutputError: the folder of the outputs cannot be written.

    Warns:
        VartokWarning: outputs do not get the names of their inputs, which other systems cannot hold.
    """

    def __init__(
        self,
        target: Target,
        inputs: Sequence[Input],
        *,
        overwrite: bool,
        skip_existing: bool,
        compare: Compare,
    ) -> None:
        if overwrite and skip_existing:
            raise ArgumentError("`overwrite` and `skip_existing` contradict each other")
        self._target, self._overwrite, self._skip, self._compare = target, overwrite, skip_existing, compare
        self._sources = {os.path.realpath(item.place) for item in inputs if item.place}
        self._planned: dict[tuple[str, str], tuple[Input, Path]] = {}
        self._taken: set[tuple[str, str]] = set()
        self._renamed = RenameCount("not every system can hold the name")
        self._numbered = RenameCount("another picture of the run has the name")
        self.is_full = False
        self.todo: list[Input] = []
        self.refused: list[FileResult] = []
        if target.joined:
            self._plan_joined(inputs)
            return
        for item in inputs:
            place = None if item.is_collection or item.error else target.place(item)
            if place is None:
                self.todo.append(item)
                continue
            self._protect_inputs(place.path)
            other, path = self._planned.setdefault(place.identity, (item, place.path))
            if other is not item:
                raise _conflict(other, item, path, place.path)
            self._renamed.add(place.plain, place.name)
            refused = self._refuse_existing(item, str(item), place.path, None)
            if refused:
                self.refused.append(refused)
            else:
                self.todo.append(item)
        self._renamed.warn()
        if self.todo and target.folder is not None:
            check_folder(target.folder)

    def claim(
        self,
        item: Input,
        key: str | None = None,
        made: TokenMetadata | None = None,
        *,
        is_file: bool = False,
    ) -> tuple[str, Path | None] | FileResult:
        """Reserve the path for a result.

        Args:
            item: an input.
            key: name of the picture in a collection. If another result has its output's name, it gets a
                number.
            made: metadata of the tokens to decode; None in encoding.
            is_file: see `Target.place`.

        Returns:
            The result's name in messages, and its path: None for a stream, a joined file or an input with an
            error. Or a `FileResult` to report instead, skipped or with an error, if the path exists by now,
            is an input, or belongs to another result.
        """
        label = str(item) if key is None else f"{item}: {printable(key)}"
        if self._target.joined or item.error:
            return label, None
        try:
            place = self._target.place(item, key, is_file=is_file)
            if place is not None and key is not None and self._target.file is None:
                self._renamed.add(place.plain, place.name)
                first = place.name
                for number in itertools.count(2):
                    if not self._is_taken(place, item):
                        break
                    place = place._replace(name=numbered_name(first, number))
                if place.name != first:
                    self._numbered.add(first, place.name)
            if place is not None:
                self._protect_inputs(place.path)
        except ArgumentError as error:
            return FileResult(label, error=error)
        path = place and place.path
        identity = place.identity if place else ("", "the stream")
        if identity in self._taken:
            if path is None or self._target.file:
                self.is_full = True
                takes = f"{printable(path or identity[1])} takes one: the others are left out"
                more = OutputError(
                    f"has more than one picture, but {takes}", hint="name a folder with `output`"
                )
                return FileResult(str(item), error=more)
            hint = "a token file of several images needs the suffix .jsonl"
            taken = OutputError(f"{printable(path)} is taken by another picture of this run", hint=hint)
            return FileResult(label, error=taken)
        self._taken.add(identity)
        refused = path and self._refuse_existing(item, label, path, made)
        return refused or (label, path)

    def refuse_new(
        self, label: str, path: Path | None, error: VartokError, made: TokenMetadata | None = None
    ) -> FileResult:
        """Return the result of a picture whose file cannot be written.

        If another process wrote the file meanwhile, the file is skipped or refused as any that exists; else
        the result has `error`.

        Args:
            label: the result's name in messages.
            path: path of its file.
            error: the reason of the failure.
            made: metadata of the tokens to decode; None in encoding.
        """
        refused = None
        if isinstance(error, OutputExistsError) and path is not None:
            refused = self._refuse_existing(None, label, path, made)
        if isinstance(error, StorageError):
            instead = " in place of `overwrite`" * self._overwrite
            error = StorageError(
                f"{error}; the run ends here",
                hint=f"make room, then set `skip_existing`{instead} to do the rest",
            )
        return refused or FileResult(label, error=error)

    def warn(self) -> None:
        """Warn of the pictures of collections that got other names than their own.

        Warns:
            VartokWarning: there are such pictures.
        """
        self._renamed.warn()
        self._numbered.warn()

    def _is_taken(self, place: Place, item: Input) -> bool:
        planned = self._planned.get(place.identity)
        return place.identity in self._taken or (planned is not None and planned[0] is not item)

    def _plan_joined(self, inputs: Sequence[Input]) -> None:
        file = self._target.file
        if file is not None:
            self._protect_inputs(file)
            refused = self._refuse_existing(None, printable(file), file, None)
            if refused and refused.skipped:
                warn(f"{printable(file)} exists, so all inputs are skipped, even those that it lacks")
                self.refused = [FileResult(str(item), skipped=True) for item in inputs]
            elif refused:
                self.refused = [refused]
            if refused:
                return
        self.todo = [*inputs]

    def _refuse_existing(
        self, item: Input | None, label: str, path: Path, made: TokenMetadata | None
    ) -> FileResult | None:
        """Return the result of an output that exists: skipped if it is what the run would make."""
        if self._overwrite or not os.path.lexists(path):
            return None
        shown = "" if label == printable(path) else f"{printable(path)} "  # a report adds the label
        if not self._skip:
            hint = "set `overwrite` to replace it, or `skip_existing` to skip it"
            return FileResult(label, error=OutputExistsError(f"{shown}exists", hint=hint))
        try:
            difference = self._compare(item, path, made)
            told = f"{shown}was made with other settings ({difference})"
        except VartokError as error:
            difference = str(error)
            told = f"{shown}exists, but {difference}"
        if not difference:
            return FileResult(label, skipped=True)
        other = "another folder" if self._target.file is None else "another file"
        hint = f"set `overwrite` in place of `skip_existing` to replace it, or name {other} with `output`"
        return FileResult(label, error=OutputExistsError(told, hint=hint, difference=difference))

    def _protect_inputs(self, path: Path) -> None:
        if os.path.realpath(path) in self._sources:
            raise ArgumentError(f"{printable(path)} is an input, which would be lost")


class RenameCount:
    """Counts outputs that get other names than their own, for one warning.

    Args:
        cause: why, as "another picture has the name".
    """

    def __init__(self, cause: str) -> None:
        self._cause = cause
        self._number = 0
        self._example = ""

    def add(self, own: PurePath, given: PurePath) -> None:
        """Count an output if the name that it is given is not its own."""
        if own != given:
            self._number += 1
            self._example = self._example or f"{printable(given, 100)} for {printable(own, 100)}"

    def warn(self) -> None:
        """Warn of the outputs that were counted, and forget them.

        Warns:
            VartokWarning: there are such outputs.
        """
        if self._number:
            warn(f"{counted(self._number, 'output')} got another name, since {self._cause}: {self._example}")
        self._number, self._example = 0, ""


def _conflict(one: Input, other: Input, path: Path, second: Path) -> ArgumentError:
    if one.place == other.place:
        return ArgumentError(f"{other} is named twice")
    cure = "set `full_names`"
    if folded_name(portable_name(one.name)) == folded_name(portable_name(other.name)):
        cure = "name the folder above them and set `recursive`"
        if _folder(one) == _folder(other):
            cure = "rename one of them" if one.kind == "tokens" else "set `format` to jsonl"
    told = f"would both be written to {printable(path)}"
    if path != second:
        told = (
            f"would be written to {printable(path)} and {printable(second)}, which are one file on macOS and "
            "Windows, as only case or the Unicode form differs"
        )
    hint = f"{cure}, or give each its own `output` in its own run"
    return ArgumentError(f"{one} and {other} {told}", hint=hint)


def _folder(item: Input) -> str:
    return os.path.dirname(absolute(item.place or ""))
