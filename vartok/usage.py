"""Count codebook usage in token files and data sets, for `vartok inspect-codebook --usage`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vartok.codebook import UsageReport, count_codes, describe_usage
from vartok.dataset.formats import find_format, read_shard
from vartok.dataset.schema import DATASET, FORMAT, check_regular, open_dataset
from vartok.errors import DatasetError, SourceError, TokensError, VartokError
from vartok.files import os_error_reason
from vartok.schedule import Schedule
from vartok.sources import find_files
from vartok.sources.find import shorten_path
from vartok.token_files import iter_tokens
from vartok.tokenizer import Tokenizer
from vartok.tokens import ImageTokens

Source: TypeAlias = str | Path | BinaryIO


@dataclass(frozen=True, kw_only=True)
class TokenUsage:
    """Usage of a codebook by the tokens of files.

    Attributes:
        images: number of images that were counted.
        schedule: (h, w) of every scale; None if images have several schedules.
        usage: statistics of the usage, by all scales together and by each scale.
        failures: names of files that were not counted, or not in full, and the reasons.
    """

    images: int
    schedule: Schedule | None
    usage: UsageReport
    failures: tuple[tuple[str, VartokError], ...]


def count_usage(
    sources: Source | Iterable[Source],
    tokenizer: Tokenizer,
    *,
    progress: Callable[[str, VartokError | None], None] | None = None,
) -> TokenUsage:
    """Count how token files and data sets use a tokenizer's codebook.

    An image whose number of scales is not the first image's is a failure, and is not counted.

    Args:
        sources: token files, folders of them (searched), folders that hold a data set, or binary streams.
        tokenizer: tokenizer that the tokens were made with; tokens of another checkpoint are failures.
        progress: called after every image with the name of its file and None; after a failure, with the
            name of the file and the error.

    Raises:
        TokensError: no image was counted.
    """
    given = [sources] if isinstance(sources, str | Path) or hasattr(sources, "read") else sources
    failures: list[tuple[str, VartokError]] = []
    schedules: set[Schedule] = set()
    counts: NDArray[np.int64] | None = None
    images = 0
    for source in cast(Iterable[Source], given):
        for name, found in _read_source(source, tokenizer):
            error = found if isinstance(found, VartokError) else None
            if not isinstance(found, VartokError):
                scales = len(found.scales)
                if counts is None:
                    counts = np.zeros((scales, tokenizer.config.vocab_size), np.int64)
                if scales == len(counts):
                    counts += count_codes([found.scales], tokenizer.config.vocab_size, scales)
                    schedules.add(found.schedule)
                    images += 1
                else:
                    error = TokensError(f"has {scales} scales, but the first image has {len(counts)}")
            if progress is not None:
                progress(name, error)
            if error is not None:
                error.__cause__ = error.__context__ = None  # with tracebacks they would keep the data
                failures.append((name, error.with_traceback(None)))
    if counts is None:
        told = "every source failed or is empty"
        if failures and progress is None:  # nobody has been told the causes
            told = f"{failures[0][0]}: {failures[0][1]}"
        raise TokensError(f"there are no tokens to count: {told}")
    return TokenUsage(
        images=images,
        schedule=schedules.pop() if len(schedules) == 1 else None,
        usage=describe_usage(counts),
        failures=tuple(failures),
    )


def is_dataset(folder: str | Path) -> bool:
    """Return whether a folder holds a data set, even an incomplete or broken one."""
    try:
        check_regular(Path(folder, DATASET))
        with open(Path(folder, DATASET), "rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(1000)
    except (DatasetError, OSError):
        return False


def _read_source(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[str, ImageTokens | VartokError]]:
    """Yield, for every image, the name of its file and its tokens or error; for a failed file, its error."""
    if not isinstance(source, str | Path):
        yield from _read_stream("standard input", source, tokenizer)
    elif is_dataset(source):
        yield from _read_dataset(Path(source), tokenizer)
    elif os.path.isdir(source):
        try:
            files = find_files(source, kinds=("tokens",))
            if not files:
                raise SourceError("holds no token files, by their names")
        except SourceError as error:
            yield str(source), error
            return
        for file in files:
            if file.error is not None:  # a pipe, or a folder that cannot be searched
                yield shorten_path(file.place), SourceError(file.error)
            else:
                yield from _read_file(Path(file.place), tokenizer)
    else:
        yield from _read_file(Path(source), tokenizer)


def _read_file(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, ImageTokens | VartokError]]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            yield str(path), SourceError(os_error_reason(error))
            return
        yield from _read_stream(str(path), file, tokenizer)


def _read_stream(
    name: str, stream: BinaryIO, tokenizer: Tokenizer
) -> Iterator[tuple[str, ImageTokens | VartokError]]:
    try:
        for tokens in iter_tokens(stream):
            if isinstance(tokens, VartokError):
                yield name, tokens
            else:
                yield name, _checked(tokens, tokenizer)
    except OSError as error:
        yield name, SourceError(os_error_reason(error))


def _read_dataset(folder: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, ImageTokens | VartokError]]:
    try:
        description, encoding = open_dataset(folder)
        find_format(description["files"])
    except VartokError as error:
        yield str(folder), error
        return
    for shard in description.get("shards", ()):
        path = folder / shard["name"]
        try:
            for row in read_shard(description["files"], path, encoding):
                yield str(path), _checked(row, tokenizer)
        except VartokError as error:
            yield str(path), error
        except OSError as error:
            yield str(path), SourceError(os_error_reason(error))


def _checked(tokens: ImageTokens, tokenizer: Tokenizer) -> ImageTokens | VartokError:
    """Return an image's tokens, or an error if another checkpoint made them."""
    try:
        tokenizer.check_model(tokens.model)
    except VartokError as error:
        return error
    return tokens
