"""The run of `decode_files`: reads tokens, and draws and writes the decoded pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vartok import images
from vartok.errors import ImageError, StorageError, TokenFileError, VartokError, printable
from vartok.files import write_bytes
from vartok.flat_tokens import FlatTokens
from vartok.operations.outputs import FileResult, write_stream
from vartok.operations.plan import OutputPlan
from vartok.operations.rows import FlatSchedules, RowSelection
from vartok.operations.settings import check_model
from vartok.parallel import map_ordered
from vartok.token_files import TokenMetadata
from vartok.tokens import ImageTokens

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.operations.layouts import Layout
    from vartok.operations.outputs import Target
    from vartok.tokenizer import Tokenizer


class Job(NamedTuple):
    """A picture to decode.

    Attributes:
        label: name of the picture in messages.
        path: path of its file; None for a stream, or if its tokens cannot be read.
        tokens: its tokens; None if they cannot be read.
    """

    label: str
    path: Path | None
    tokens: ImageTokens | None


class DecodeRun:
    """Reads the tokens of a plan's inputs, and writes the decoded pictures."""

    def __init__(
        self,
        plan: OutputPlan,
        target: Target,
        format: str,
        layout: Layout,
        overwrite: bool,
        restore_size: bool,
        selection: RowSelection,
        schedules: FlatSchedules,
    ) -> None:
        self._plan, self._target = plan, target
        self._format, self._layout = format, layout
        self._overwrite, self._restore_size = overwrite, restore_size
        self._selection, self._schedules = selection, schedules

    def tokens(
        self, tokenizer: Tokenizer, *, any_weights: bool
    ) -> Iterator[tuple[Job | FileResult, ImageTokens | VartokError]]:
        """Yield the input of `decode_tokens`: an id, and tokens or an error.

        The id is a `Job`; or the picture's result, if `OutputPlan.claim` gives one instead of a path.

        Args:
            tokenizer: tokens of another codebook or other phis are errors.
            any_weights: they are not.
        """
        skipped = len(self._plan.refused)
        for item, row in self._selection.read(self._plan.todo, self._schedules, skipped=skipped):
            tokens, key, is_file = row.tokens, row.key, False
            if isinstance(tokens, ImageTokens) and key is None and item.is_collection:
                key, is_file = tokens.image.source, True
            try:
                if isinstance(tokens, FlatTokens):
                    tokens = self._schedules.complete(tokens, item.source, tokenizer)
            except VartokError as error:
                label = str(item) if key is None else f"{item}: {printable(key)}"
                yield Job(label, None, None), error
                continue
            if isinstance(tokens, VartokError):
                yield Job(str(item), None, None), tokens
                continue
            claimed = self._plan.claim(item, key, _metadata(tokens), is_file=is_file)
            if isinstance(claimed, FileResult):
                yield claimed, VartokError("not decoded")
                if self._plan.is_full:
                    break
                continue
            try:
                if row.tokens is tokens and not any_weights:
                    check_model(tokens, tokenizer)
                yield Job(*claimed, tokens), tokens
            except TokenFileError as error:
                yield Job(*claimed, tokens), error
        self._schedules.warn_if_unused()

    def results(
        self,
        decoded: Iterator[tuple[Job | FileResult, list[Pixels] | VartokError]],
        workers: int,
    ) -> Iterator[FileResult]:
        """Write each picture in a thread when it is decoded, and yield the results in order."""
        yield from self._plan.refused
        finished = map_ordered(self._finish, decoded, workers=workers, limit=2 * workers)
        with contextlib.closing(finished):
            for result, data in finished:
                if data is not None and self._target.stream is not None:
                    write_stream(self._target.stream, data)
                yield result
                if isinstance(result.error, StorageError):
                    break
        self._plan.warn()

    def _finish(
        self, item: tuple[Job | FileResult, list[Pixels] | VartokError]
    ) -> tuple[FileResult, bytes | None]:
        """Write the file of one decoded picture, if it has a path.

        Returns:
            The picture's result, and the bytes of its file; no bytes but None if it failed or was skipped.
        """
        job, pictures = item
        if isinstance(job, FileResult):
            return job, None
        if isinstance(pictures, VartokError) or job.tokens is None:
            return FileResult(job.label, error=pictures if isinstance(pictures, VartokError) else None), None
        image = job.tokens.image
        pixels_out = image.width * image.height if self._restore_size else 0
        result = FileResult(job.label, output=job.path, tokens=job.tokens)
        try:
            with images.large_image_lock(len(pictures) * pixels_out):
                drawn = self._layout.encode(
                    pictures, job.tokens, self._format, restore_size=self._restore_size
                )
            if job.path is not None:
                write_bytes(job.path, drawn.data, overwrite=self._overwrite)
        except VartokError as error:
            return self._plan.refuse_new(job.label, job.path, error, _metadata(job.tokens)), None
        except MemoryError:
            return FileResult(job.label, error=ImageError("not enough memory to decode it")), None
        return replace(result, picture=drawn.pixels, notes=drawn.notes), drawn.data


def _metadata(tokens: ImageTokens) -> TokenMetadata:
    return TokenMetadata(tokens.model, tokens.image, tokens.schedule, len(tokens.scales))
