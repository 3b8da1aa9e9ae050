"""Compare tokens: two token files, tokens and a picture, or two data sets by their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from vartok.errors import (
    ArgumentError,
    SourceError,
    TokenFileError,
    TokensError,
    VartokError,
    counted,
    printable,
)
from vartok.flat_tokens import FlatTokens
from vartok.images import picture_suffixes
from vartok.operations.encode import encode_file
from vartok.operations.inputs import TOKEN_KINDS, Input, Source, find_inputs
from vartok.operations.originals import may_be_one_picture
from vartok.operations.rows import FlatSchedules, Keys, RowSelection
from vartok.operations.settings import resolve_tokenizer
from vartok.schedule import Schedule, ScheduleLike, describe
from vartok.tokens import ImageTokens, split_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_WAITING_BYTES = 1 << 30
"""Memory for rows of one data set whose key the other one has not shown yet."""

MAX_MAPS = 16
"""Largest number of schedules whose cells are counted one by one."""

Progress: TypeAlias = "Callable[[str, VartokError | None], None]"


class ScaleDiff(NamedTuple):
    """The difference of one scale, over all pictures that were compared.

    Attributes:
        tokens: number of tokens, those that only one side has too.
        differing: number of those that differ.
    """

    tokens: int
    differing: int


@dataclass
class TokensDiff:
    """The difference between two sources of tokens.

    Attributes:
        pictures: number of pictures that both sides have.
        differing: number of those with other tokens.
        only: number of pictures that only the first side has, and only the second.
        first_only: key of the first such picture of each side, or None.
        failed: number of pictures that could not be read or compared.
        scales: the difference of every scale.
        maps: for each schedule, the number of pictures and K arrays: array k is [h_k, w_k] int64, the number
            of pictures whose cell differs. Schedules after the first `MAX_MAPS` have none.
        uncharted: number of pictures of those schedules.
        sources: the sources of two single images, if their names differ; None for data sets.
    """

    pictures: int = 0
    differing: int = 0
    only: tuple[int, int] = (0, 0)
    first_only: tuple[str | None, str | None] = (None, None)
    failed: int = 0
    scales: list[ScaleDiff] = field(default_factory=list)
    maps: dict[Schedule, tuple[int, list[NDArray[np.int64]]]] = field(default_factory=dict)
    uncharted: int = 0
    sources: tuple[str, str] | None = None

    @property
    def equal(self) -> bool:
        """True if both sides have the same pictures, with the same tokens, and all of them were read."""
        return not (self.differing or any(self.only) or self.failed)


def diff_tokens(
    a: Source,
    b: Source,
    *,
    keys: Keys = None,
    limit: int | None = None,
    schedule: ScheduleLike | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> TokensDiff:
    """Compare tokens, scale by scale.

    Two token files of one image are compared whatever their names. Data sets, jsonl files, arrays and folders
    are compared by keys: those of rows, `image.source` in jsonl files, the number of an array's row, and the
    path of a file below its folder. A picture is encoded with the settings of the tokens that it is compared
    with. Of two files with different numbers of scales, the tokens that only one has count as differing.

    Args:
        a: a token file, an array (.npy), a data set or a shard of one, a folder of these, a stream, or a
            picture.
        b: another one; at most one of them is a picture or a stream.
        keys: compare only the rows of these keys; a key that is not found is a failure.
        limit: compare only the first rows of each, this many.
        schedule: (h, w) of every scale of an array's tokens, or a text such as "1,2,4" or "var-512"; if None,
            VAR's for as many tokens.
        weights: the checkpoint that encodes a picture; the shipped one if None.
        device: torch device that encodes a picture, or "auto".
        progress: called after every pair, with its name and None; after a failure, with the error.

    Raises:
        ArgumentError: both are pictures, or an argument is invalid.
        VartokError: the tokens of a single picture cannot be read, belong to another codebook or schedule, or
            are compared with several.

    Warns:
        VartokWarning: `schedule` was not used.
    """
    pictures = [is_picture(source) for source in (a, b)]
    if all(pictures):
        raise ArgumentError("both are pictures", hint="encode one of them first")
    schedules = FlatSchedules(schedule)
    diff = _Diff(schedules, progress)
    if any(pictures):
        tokens, picture = (b, a) if pictures[0] else (a, b)
        known = _read_single(_Side(tokens, keys, limit, schedules), schedules)
        made = _encode_alike(str(picture), known, weights, device)
        diff.compare(printable(picture), *((made, known) if pictures[0] else (known, made)))
    else:
        sides = [_Side(source, keys, limit, schedules) for source in (a, b)]
        if all(side.is_collection for side in sides):
            _pair_by_key(sides, diff)
        else:
            if any(side.is_collection for side in sides):  # `keys` choose in that one
                sides = [
                    side if side.is_collection else _Side(source, None, None, schedules)
                    for side, source in zip(sides, (a, b), strict=True)
                ]
            found = {}
            for n in sorted((0, 1), key=lambda n: sides[n].is_collection):  # a missing file is told first
                found[n] = _read_single(sides[n], schedules)
            one, other = found[0], found[1]
            diff.compare(sides[0].name, one, other)
    schedules.warn_if_unused()
    return diff.result


class _Tokens(NamedTuple):
    """The tokens of an image, for a comparison.

    Attributes:
        flat: [L] tokens.
        grids: (h, w) of the K scales.
        schedule: (h, w) of every scale, which begins with these.
        fingerprint: that of the checkpoint, or None if it is not known.
        whole: the tokens with their metadata; None for those of an array, and in a comparison by key.
    """

    flat: NDArray[Any]
    grids: Schedule
    schedule: Schedule
    fingerprint: str | None
    whole: ImageTokens | None = None

    @classmethod
    def of(cls, tokens: ImageTokens | FlatTokens | VartokError, schedules: FlatSchedules) -> _Tokens:
        """Make it of a row; an error is raised."""
        if isinstance(tokens, VartokError):
            raise tokens
        if isinstance(tokens, FlatTokens):
            grids = schedules.find(tokens)
            return cls(tokens.tokens, grids, grids, None)
        return cls(tokens.flatten(), tokens.grids, tokens.schedule, tokens.model.fingerprint, tokens)

    @property
    def nbytes(self) -> int:
        """About the bytes of memory that it takes without the metadata."""
        return self.flat.nbytes + 500


class _Side:
    """One of the two sources of tokens."""

    def __init__(self, source: Source, keys: Keys, limit: int | None, schedules: FlatSchedules) -> None:
        self._inputs = find_inputs(source, TOKEN_KINDS, recursive=True)
        self._selection = RowSelection(keys, limit)
        self._schedules = schedules
        self.is_collection = len(self._inputs) != 1 or self._inputs[0].is_collection
        self.name = str(self._inputs[0]) if len(self._inputs) == 1 else printable(source)

    def rows(self) -> Iterator[tuple[str, str, ImageTokens | FlatTokens | VartokError]]:
        """Yield the label, the key, and the tokens of each image or an error."""
        for item, row in self._selection.read(self._inputs, self._schedules):
            key = row.key
            if key is None:
                in_file = isinstance(row.tokens, ImageTokens) and item.is_collection
                key = row.tokens.key if in_file and isinstance(row.tokens, ImageTokens) else item.source
            if isinstance(row.tokens, FlatTokens) and _is_array(item):
                key = key.rpartition("/")[2]  # the number of the row
            label = str(item) if row.key is None else f"{item}: {printable(row.key)}"
            yield label, key, row.tokens


def _is_array(item: Input) -> bool:
    return item.place is None or item.place.lower().endswith(".npy")


def is_picture(source: Source) -> bool:
    """Return whether `diff_tokens` takes a source for a picture."""
    return isinstance(source, (str, Path)) and str(source).lower().endswith(picture_suffixes())


def _read_single(side: _Side, schedules: FlatSchedules) -> _Tokens:
    """Return the tokens of a side with a single image."""
    found = []
    for label, _, tokens in side.rows():
        try:
            found.append(_Tokens.of(tokens, schedules))
        except VartokError as error:
            raise type(error)(f"{label}: {error}", hint=error.hint) from None
        if len(found) > 1:
            raise SourceError(
                f"{side.name} holds several pictures, and is compared with one", hint="choose one by `keys`"
            )
    if not found:
        raise SourceError(f"{side.name}: holds no tokens")
    return found[0]


def _encode_alike(picture: str, known: _Tokens, weights: str | Path | None, device: str) -> _Tokens:
    """Encode a picture with the settings of tokens."""
    if known.whole is None:
        raise TokensError("an array of tokens does not say how a picture is encoded", hint="encode it first")
    if known.whole.view is not None:
        raise TokensError("the tokens are of one of several views of a picture, and not of its centre")
    image = known.whole.image
    tokenizer = resolve_tokenizer(None, weights, device, image.dtype)
    try:
        tokenizer.check_model(known.whole.model)
    except TokensError as error:
        raise TokenFileError(str(error), hint="give the checkpoint of the tokens as `weights`") from None
    made = encode_file(
        picture,
        tokenizer=tokenizer,
        size=None if image.fit == "native" else image.size,
        fit="crop" if image.fit == "bucket" else image.fit,
        zoom=image.zoom,
        resample=image.resample,
        background=image.background,
        schedule=known.schedule,
        scales=len(known.grids),
        allow_damaged=image.damaged is not None,
    )
    return _Tokens.of(made, FlatSchedules())


def _pair_by_key(sides: list[_Side], diff: _Diff) -> None:
    """Read both sides at once, and compare the rows of the same key; rows wait until their key appears."""
    readers = [side.rows() for side in sides]
    waiting: tuple[dict[str, list[_Tokens]], ...] = ({}, {})
    nbytes, running = 0, [True, True]
    while any(running):
        for n in (0, 1):
            row = next(readers[n], None) if running[n] else None
            if row is None:
                running[n] = False
                continue
            label, key, tokens = row
            try:
                found = _Tokens.of(tokens, diff.schedules)._replace(whole=None)
            except VartokError as error:
                diff.fail(label, error)
                continue
            if partners := waiting[1 - n].get(key):
                partner = partners.pop(0)
                if not partners:
                    del waiting[1 - n][key]
                nbytes -= partner.nbytes
                pair = (partner, found) if n else (found, partner)
                try:
                    diff.compare(label, *pair)
                except VartokError as error:
                    diff.fail(label, error)
                continue
            waiting[n].setdefault(key, []).append(found)
            nbytes += found.nbytes
            if nbytes > MAX_WAITING_BYTES:
                told = f"{counted(sum(map(len, waiting)), 'row')} wait for one of the same key"
                raise TokensError(
                    f"{told}, more than there is room for: keys or their order differ",
                    hint="choose rows by `keys`",
                )
    if not (diff.result.pictures or diff.result.failed or any(waiting)):
        raise SourceError(f"{sides[0].name} and {sides[1].name} hold no tokens")
    left = [sum(map(len, side.values())) for side in waiting]
    diff.result.only = (left[0], left[1])
    diff.result.first_only = (next(iter(waiting[0]), None), next(iter(waiting[1]), None))


class _Diff:
    """Adds up the differences of pairs."""

    def __init__(self, schedules: FlatSchedules, progress: Progress | None) -> None:
        self.schedules = schedules
        self.result = TokensDiff()
        self._progress = progress or (lambda label, error: None)

    def fail(self, label: str, error: VartokError) -> None:
        """Count a picture that cannot be read or compared."""
        self.result.failed += 1
        self._progress(label, error)

    def compare(self, label: str, one: _Tokens, other: _Tokens) -> None:
        """Count the tokens of a pair that differ.

        Raises:
            TokensError: they have other codebooks or schedules.
        """
        if one.schedule != other.schedule:
            told = f"the schedules differ: {describe(one.schedule)} and {describe(other.schedule)}"
            raise TokensError(f"{told}, so no token has a counterpart")
        prints = {tokens.fingerprint for tokens in (one, other)} - {None}
        if len(prints) > 1:
            told = " and ".join(sorted(str(text)[:12] for text in prints))
            raise TokensError(
                f"the tokens are of two codebooks (fingerprints {told}), so no token has a counterpart"
            )
        grids = max(one.grids, other.grids, key=len)
        pairs = zip(split_tokens(one.flat, one.grids), split_tokens(other.flat, other.grids), strict=False)
        cells = [a != b for a, b in pairs]
        cells += [np.ones(grid, bool) for grid in grids[len(cells) :]]
        self._add(one.schedule, grids, cells)
        if one.whole and other.whole and not may_be_one_picture(one.whole, other.whole):
            self.result.sources = one.whole.image.source, other.whole.image.source
        self._progress(label, None)

    def _add(self, schedule: Schedule, grids: Schedule, cells: list[NDArray[np.bool_]]) -> None:
        result = self.result
        result.pictures += 1
        result.differing += any(bool(part.any()) for part in cells)
        result.scales += [ScaleDiff(0, 0)] * (len(cells) - len(result.scales))
        for k, part in enumerate(cells):
            tokens, differing = result.scales[k]
            result.scales[k] = ScaleDiff(tokens + part.size, differing + int(part.sum()))
        if schedule not in result.maps and len(result.maps) == MAX_MAPS:
            result.uncharted += 1
            return
        number, sums = result.maps.setdefault(schedule, (0, []))
        sums += [np.zeros(grid, np.int64) for grid in grids[len(sums) :]]
        for total, part in zip(sums, cells, strict=False):
            total += part
        result.maps[schedule] = number + 1, sums
