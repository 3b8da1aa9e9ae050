"""Select rows of tokens by number and key, and complete tokens that came without metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeAlias

from vartok.errors import (
    ArgumentError,
    SourceError,
    TokensError,
    VartokError,
    counted,
    printable,
    quoted,
    warn,
)
from vartok.flat_tokens import FlatTokens
from vartok.operations.inputs import Input
from vartok.operations.settings import make_schedule
from vartok.schedule import VAR_256, Schedule, ScheduleLike
from vartok.token_sources import Row
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer

Keys: TypeAlias = str | Iterable[str] | None
"""One or several keys; None for all."""


class FlatSchedules:
    """Chooses the schedule of tokens that came without one.

    Args:
        schedule: schedule of all such tokens, or a text such as "1,2,4" or "var-512"; None for `default`,
            adapted to the size of latent that has as many tokens.

    Attributes:
        default: a checkpoint's own schedule; VAR's until a checkpoint is loaded.

    Raises:
        ArgumentError: `schedule` is not a schedule.
    """

    def __init__(self, schedule: ScheduleLike | None = None) -> None:
        self._schedule = make_schedule(schedule)
        self._used = False
        self.default: Schedule = VAR_256

    def find(self, flat: FlatTokens) -> Schedule:
        """Return the schedule of an image; see `FlatTokens.find_schedule`."""
        self._used = True
        return flat.find_schedule(self._schedule, self.default)

    def misfit(self, flat: FlatTokens) -> TokensError | None:
        """Return why the number of tokens fits no schedule, or None."""
        try:
            self.find(flat)
        except TokensError as error:
            return error
        return None

    def complete(self, tokens: FlatTokens, source: str, tokenizer: Tokenizer) -> ImageTokens:
        """Return tokens with the metadata of an image that this tokenizer has encoded in its native size.

        Args:
            tokens: the tokens.
            source: name of the image, if the tokens have no key.
            tokenizer: the tokenizer that is to decode them.

        Raises:
            TokensError: the number of tokens fits no schedule, or an index is outside the vocabulary.
        """
        self.default = tokenizer.config.patch_nums
        maps = TokenMaps.unflatten(tokens.tokens[None], self.find(tokens))
        [found] = tokenizer.image_tokens(maps, [source if tokens.key is None else tokens.key])
        return found

    def warn_if_unused(self) -> None:
        """Warn once if a schedule was given, but all tokens had one.

        Warns:
            VartokWarning: the schedule was not used.
        """
        if self._schedule is not None and not self._used:
            warn("the schedule was not used: token files and data sets have their own")


class RowSelection:
    """Reads the rows of inputs: those of some keys or numbers, and the first of them.

    Args:
        keys: keys in data sets and arrays, and `image.source` in token files; None for all. Where a picture
            has several views, "a" selects all of them, and "a#1" one.
        limit: largest number of rows of all inputs together, with those that cannot be read; None for all.
        rows: numbers of rows in each data set, array or file of several images, from 0; None for all.

    Raises:
        ArgumentError: a key is not a text or is empty, `limit` is below 1, or a number of a row is below 0.
    """

    def __init__(
        self, keys: Keys = None, limit: int | None = None, rows: Iterable[int] | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise ArgumentError(f"`limit` must be 1 or more, not {limit}")
        given = [keys] if isinstance(keys, str) else list(keys or ())
        for key in given:
            if not isinstance(key, str) or not key:
                raise ArgumentError(f"a key is a text that is not empty, not {quoted(key)}")
        self._keys = None if keys is None else dict.fromkeys(given)
        self._limit = limit
        self._rows = None if rows is None else frozenset(rows)
        if self._rows is not None and min(self._rows, default=0) < 0:
            raise ArgumentError(f"rows are counted from 0: there is no row {min(self._rows)}")

    def needed(self, inputs: list[Input]) -> list[Input]:
        """Return the inputs without those after the limit; one that is no collection has exactly one row."""
        if self._limit is None or self._keys is not None:
            return inputs
        kept: list[Input] = []
        for item in inputs:
            if sum(not other.is_collection for other in kept) >= self._limit:
                break
            kept.append(item)
        return kept

    def read(
        self, inputs: Iterable[Input], schedules: FlatSchedules, *, skipped: int = 0, texts: bool = False
    ) -> Iterator[tuple[Input, Row]]:
        """Yield the selected rows, and the error of every file or row that cannot be read.

        A key that no row has becomes an input of its name, with an error, unless the limit ends the search
        before. An array whose number of tokens fits no schedule is one error, and not one for each row.

        Args:
            inputs: the inputs.
            schedules: schedules of tokens that came without one.
            skipped: number of rows that the limit counts, but that are not read here.
            texts: read the captions and metadata of data sets.
        """
        left = None if self._limit is None else self._limit - skipped
        missing = dict(self._keys or {})
        example: str | None = None
        for item in inputs:
            if left is not None and left <= 0:
                return
            for row in self._numbered(item, texts):
                if not isinstance(row.tokens, VartokError) and self._keys is not None:
                    keys = _keys(item, row)
                    example = example or keys[0]
                    if not self._keys.keys() & set(keys):
                        continue
                    for key in keys:
                        missing.pop(key, None)
                misfit = schedules.misfit(row.tokens) if isinstance(row.tokens, FlatTokens) else None
                yield item, row if misfit is None else Row(misfit)
                left = None if left is None else left - 1
                if left == 0:
                    return
                if misfit is not None and item.kind == "tokens":
                    break
        hint = None if example is None else f"the first row has the key {printable(example, 100)}"
        for key in missing:
            error = SourceError("no row has this key", hint=hint)
            yield Input(PurePath(key), "tokens", key, error=error), Row(error)

    def _numbered(self, item: Input, texts: bool) -> Iterator[Row]:
        """Yield the rows of an input whose numbers are selected; a number that it lacks is an error."""
        if self._rows is None or not item.is_collection:
            yield from item.rows(texts=texts)
            return
        last, count = max(self._rows, default=-1), 0
        for row in item.rows(texts=texts) if self._rows else ():
            if count in self._rows or isinstance(row.tokens, VartokError):
                yield row
            count += 1
            if count > last:
                return
        if lacking := sorted(number for number in self._rows if number >= count):
            yield Row(SourceError(f"has {counted(count, 'row')}, from 0 on, and no row {lacking[0]}"))


def _keys(item: Input, row: Row) -> list[str]:
    """Return the keys by which a row is selected: its own, and that of its picture."""
    keys = [] if row.key is None else [row.key]
    if isinstance(row.tokens, ImageTokens) and (row.key is None or row.tokens.view is not None):
        keys.append(row.tokens.key)
    return keys or [item.source]
