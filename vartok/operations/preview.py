"""Tell what a run of `encode_files` or `decode_files` would read and write, for `dry_run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vartok.errors import SourceError, VartokError
from vartok.files import os_error_reason
from vartok.images import picture_suffixes
from vartok.operations.inputs import Input, kind_of_stream
from vartok.operations.outputs import FileResult, FileResults, Target
from vartok.operations.plan import OutputPlan
from vartok.sources.places import is_url
from vartok.suffixes import TOKEN_FILES
from vartok.token_sources import picture_error

EACH = "a file for each picture"
"""The note of a collection, whose pictures are not read, so that their names are not known."""

BY_KEY = "if it has one of the keys"
"""The note of an input whose rows are chosen by their keys."""


def preview(plan: OutputPlan, target: Target, *, by_key: bool = False) -> FileResults:
    """Return the results of a run that reads no picture and writes nothing.

    Args:
        plan: the plan of the run.
        target: the destination.
        by_key: only rows of some keys are taken, which reading would tell.

    Returns:
        A result for each input: skipped or with an error where the run would give that; else with the file
        that would be written as `output`, or for a collection the folder, and the note `EACH`; with `by_key`
        also the note `BY_KEY`. Errors that only reading would tell are not among them.
    """
    notes = (BY_KEY,) * by_key
    return FileResults(_results(plan, target, notes), None, separate=target.separate)


def _results(plan: OutputPlan, target: Target, notes: tuple[str, ...]) -> Iterator[FileResult]:
    yield from plan.refused
    for item in plan.todo:
        error = item.error or _unreadable(item)
        if error is not None:
            yield FileResult(str(item), error=error)
            continue
        try:
            found = _result(item, target)
            yield replace(found, notes=found.notes + notes)
        except VartokError as refused:  # a URL, which has no folder
            yield FileResult(str(item), error=refused)


def _result(item: Input, target: Target) -> FileResult:
    if target.stream is not None or target.file is not None:
        return FileResult(str(item), output=target.file)
    if item.is_collection:
        folder = target.folder or Path(item.place or "").parent
        return FileResult(str(item), output=folder, notes=(EACH,))
    place = target.place(item)
    return FileResult(str(item), output=place and place.path)


def _unreadable(item: Input) -> VartokError | None:
    """Return why a local file cannot be read, as far as its name and its first bytes tell; else None."""
    if item.place is None or is_url(item.place):
        return None
    name = item.place.lower()
    try:
        os.stat(item.place)
        if not os.path.isfile(item.place):
            return None
        if item.kind == "tokens" and name.endswith(picture_suffixes()):
            with open(item.place, "rb") as stream:
                return None if kind_of_stream(stream) == "tokens" else picture_error()
        if item.kind == "picture" and name.endswith((*TOKEN_FILES, ".json")):
            with open(item.place, "rb") as stream:
                tokens = kind_of_stream(stream) == "tokens"
            return SourceError("holds tokens, and is no picture", hint="decode it") if tokens else None
    except (OSError, ValueError) as error:
        return SourceError(os_error_reason(error))
    return None
