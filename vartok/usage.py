"""Count codebook usage in token files and data sets, for `vartok inspect-codebook --usage`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vartok.codebook import UsageReport, count_codes, describe_usage
from vartok.errors import TokensError, VartokError
from vartok.flat_tokens import FlatTokens
from vartok.operations import FlatSchedules, RowSelection, find_inputs
from vartok.operations.inputs import TOKEN_KINDS, Input, Source
from vartok.operations.rows import Keys
from vartok.schedule import Schedule, ScheduleLike
from vartok.token_sources import Found
from vartok.tokenizer import Tokenizer
from vartok.tokens import ImageTokens

TOP_IMAGES = 5
"""Largest number of images that are named as those with most tokens of a code."""


@dataclass(frozen=True, kw_only=True)
class TokenUsage:
    """Usage of a codebook by the tokens of files.

    Attributes:
        images: number of images that were counted.
        schedule: (h, w) of every scale; None if images have several schedules.
        usage: statistics of the usage, by all scales together and by each scale.
        failures: names of files that were not counted, or not in full, and the reasons.
        counts: [K, V] int64, how often each scale uses each code.
    """

    images: int
    schedule: Schedule | None
    usage: UsageReport
    failures: tuple[tuple[str, VartokError], ...]
    counts: NDArray[np.int64] = field(repr=False, compare=False)


def count_usage(
    sources: Source | Iterable[Source],
    tokenizer: Tokenizer,
    *,
    schedule: ScheduleLike | None = None,
    keys: Keys = None,
    limit: int | None = None,
    progress: Callable[[str, VartokError | None], None] | None = None,
) -> TokenUsage:
    """Count how token files, arrays of tokens and data sets use a tokenizer's codebook.

    An image whose number of scales is not the first image's is a failure, and is not counted.

    Args:
        sources: token files, arrays (.npy, [L] or [B, L]), data sets, shards of data sets, folders of these
            (searched), or binary streams.
        tokenizer: tokenizer that the tokens were made with; tokens of another checkpoint are failures.
        schedule: (h, w) of every scale of an array's tokens, or a text such as "1,2,4" or "var-512"; if None,
            the checkpoint's own for as many tokens.
        keys: count only the rows of these keys; a key that is not found is a failure.
        limit: count only the first rows, this many of all sources together.
        progress: called after every image with the name of its file and None; after a failure, with the
            name of the file and the error.

    Raises:
        ArgumentError: `schedule`, `keys` or `limit` has an invalid value.
        TokensError: no image was counted.

    Warns:
        VartokWarning: `schedule` was not used.
    """
    schedules, selection = FlatSchedules(schedule), RowSelection(keys, limit)
    schedules.default = tokenizer.config.patch_nums
    failures: list[tuple[str, VartokError]] = []
    found: set[Schedule] = set()
    counts: NDArray[np.int64] | None = None
    images = 0
    for item, row in selection.read(find_inputs(sources, TOKEN_KINDS, recursive=True), schedules):
        error: VartokError | None = None
        try:
            tokens = _checked(item, row.tokens, tokenizer, schedules)
            scales = len(tokens.scales)
            if counts is None:
                counts = np.zeros((scales, tokenizer.config.vocab_size), np.int64)
            if scales != len(counts):
                raise TokensError(f"has {scales} scales, but the first image has {len(counts)}")
            counts += count_codes([tokens.scales], tokenizer.config.vocab_size, scales)
            found.add(tokens.schedule)
            images += 1
        except VartokError as failure:
            error = failure
        if progress is not None:
            progress(str(item), error)
        if error is not None:
            error.__cause__ = error.__context__ = None  # with tracebacks they would keep the data
            failures.append((str(item), error.with_traceback(None)))
    schedules.warn_if_unused()
    if counts is None:
        told = "every source failed or is empty"
        if failures and progress is None:  # nobody has been told the causes
            told = f"{failures[0][0]}: {failures[0][1]}"
        raise TokensError(f"there are no tokens to count: {told}")
    return TokenUsage(
        images=images,
        schedule=found.pop() if len(found) == 1 else None,
        usage=describe_usage(counts),
        failures=tuple(failures),
        counts=counts,
    )


@dataclass(frozen=True, kw_only=True)
class CodeUses:
    """Where tokens have one code.

    Attributes:
        images: number of images that were read.
        with_code: number of those that have the code.
        scales: for each scale the number of its tokens, and of those that are the code.
        schedule: (h, w) of every scale of the first image.
        maps: array k is [h_k, w_k] int64: the number of images of this schedule with the code in a cell.
        mapped: number of the images of this schedule.
        top: name and number of tokens of the images that have the code most often, five at most.
    """

    images: int
    with_code: int
    scales: tuple[tuple[int, int], ...]
    schedule: Schedule
    maps: tuple[NDArray[np.int64], ...]
    mapped: int
    top: tuple[tuple[str, int], ...]


def find_uses(
    sources: Source | Iterable[Source],
    tokenizer: Tokenizer,
    code: int,
    *,
    schedule: ScheduleLike | None = None,
    keys: Keys = None,
    limit: int | None = None,
    progress: Callable[[str, VartokError | None], None] | None = None,
) -> CodeUses:
    """Find where tokens have one code; see `count_usage` for the arguments, and for what is raised.

    Args:
        sources: see there.
        tokenizer: see there.
        code: index in [0, V).
        schedule: see there.
        keys: see there.
        limit: see there.
        progress: see there.
    """
    schedules, selection = FlatSchedules(schedule), RowSelection(keys, limit)
    schedules.default = tokenizer.config.patch_nums
    images = with_code = mapped = 0
    grids: Schedule = ()
    scales: list[tuple[int, int]] = []
    maps: list[NDArray[np.int64]] = []
    top: list[tuple[str, int]] = []
    for item, row in selection.read(find_inputs(sources, TOKEN_KINDS, recursive=True), schedules):
        error: VartokError | None = None
        try:
            tokens = _checked(item, row.tokens, tokenizer, schedules)
            found = [scale == code for scale in tokens.scales]
            counts = [int(cells.sum()) for cells in found]
            scales += [(0, 0)] * (len(found) - len(scales))
            for k, (cells, count) in enumerate(zip(found, counts, strict=True)):
                scales[k] = scales[k][0] + cells.size, scales[k][1] + count
            grids = grids or tokens.schedule
            if tokens.schedule == grids:
                mapped += 1
                maps += [np.zeros(cells.shape, np.int64) for cells in found[len(maps) :]]
                for total, cells in zip(maps, found, strict=False):
                    total += cells
            images += 1
            with_code += any(counts)
            if any(counts):
                top.append((str(item) if row.key is None else f"{item}: {row.key}", sum(counts)))
                top = sorted(top, key=lambda entry: -entry[1])[:TOP_IMAGES]
        except VartokError as failure:
            error = failure
        if progress is not None:
            progress(str(item), error)
    schedules.warn_if_unused()
    if not images:
        raise TokensError("there are no tokens to count: every source failed or is empty")
    return CodeUses(
        images=images,
        with_code=with_code,
        scales=tuple(scales),
        schedule=grids,
        maps=tuple(maps),
        mapped=mapped,
        top=tuple(top),
    )


def _checked(item: Input, tokens: Found, tokenizer: Tokenizer, schedules: FlatSchedules) -> ImageTokens:
    """Return an image's tokens, completed if they came without metadata.

    Raises:
        VartokError: `tokens` is an error, or tokens that are not of the tokenizer.
    """
    if isinstance(tokens, VartokError):
        raise tokens
    if isinstance(tokens, FlatTokens):
        return schedules.complete(tokens, item.source, tokenizer)
    tokenizer.check_model(tokens.model)
    return tokens
