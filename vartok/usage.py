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
