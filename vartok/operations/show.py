"""Draw pictures, tokens and checkpoints for somebody to look at: the function behind `vartok show`."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, Final

from vartok.checkpoints.folders import SUFFIXES as CHECKPOINTS
from vartok.checkpoints.hub_cache import is_hub
from vartok.checkpoints.known import KNOWN, SHIPPED
from vartok.dataset.schema import is_dataset
from vartok.drawing import Tile
from vartok.errors import ArgumentError, CheckpointError, ImageError, VartokError, counted, printable, warn
from vartok.flat_tokens import FlatTokens
from vartok.images import Fit, Picture, picture_suffixes, read_picture
from vartok.maps import MapPainter
from vartok.operations.decode_streams import decode_tokens
from vartok.operations.inputs import PICTURE_KINDS, TOKEN_KINDS, Input, find_inputs, kind_of_stream
from vartok.operations.originals import (
    build_up_heading,
    comparison_tiles,
    has_name,
    original_tile,
    read_original,
)
from vartok.operations.rows import FlatSchedules, Keys, RowSelection
from vartok.operations.settings import check_model
from vartok.sources.places import is_url
from vartok.suffixes import TABLES, TARS, TOKEN_FILES

if TYPE_CHECKING:
    from vartok.schedule import ScheduleLike
    from vartok.token_sources import Row
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens

CHECKPOINT: Final = "checkpoint"
"""The kind of an input that is a checkpoint."""

NATIVE = Fit(mode="native", multiple=1)
"""The fit that leaves a picture's size as it is."""

MAPS_LEGEND = "above: each scale's tokens, in the colours of their codes; below: what it adds"
"""Second line of the heading of token maps."""

FIRST_ROWS = 8
"""Number of rows of a data set, an array or a file of several images that are drawn if none are selected."""


@dataclass(frozen=True)
class Drawing:
    """The drawing of a picture, of an image's tokens, or of a checkpoint.

    Attributes:
        label: its name in messages.
        tiles: the pictures with their captions; empty if it failed.
        heading: text above several pictures of an image's tokens; "" for none.
        notes: remarks for the user.
        error: why it cannot be drawn, or None.
    """

    label: str
    tiles: tuple[Tile, ...] = ()
    heading: str = ""
    notes: tuple[str, ...] = ()
    error: VartokError | None = None


def draw_files(
    inputs: Iterable[str | BinaryIO],
    *,
    load: Callable[[str | None], Tokenizer],
    weights: str | None = None,
    build_up: bool = False,
    maps: bool = False,
    animate: bool = False,
    originals: bool = False,
    any_weights: bool = False,
    keys: Keys = None,
    rows: Iterable[int] | None = None,
    limit: int | None = None,
    schedule: ScheduleLike | None = None,
) -> Iterator[Drawing]:
    """Draw pictures, tokens and checkpoints. Torch is imported for tokens and checkpoints only.

    The original of an image's tokens has the base name of their `image.source`. It is an input or a file in
    the folder of the token file, else the only input of this name, with or without suffix. PSNR compares
    with it; if several inputs may be it, there is no PSNR but a note.

    Args:
        inputs: pictures (paths or URLs); token files, arrays (.npy, [L] or [B, L] integers), data sets and
            their shards; checkpoints, by path or by name; or binary streams of pictures or of tokens.
        load: loads a checkpoint, or the default one for None; called once at most for `weights`.
        weights: the checkpoint that decodes tokens; the default one if None.
        build_up: draw the images decoded from the first 1, 2, ... scales.
        maps: draw the token map of each scale above what the scale adds to the picture; see
            `vartok.maps.MapPainter`.
        animate: draw the frames of an animation, the images of `build_up`.
        originals: draw the original beside each decoded image, where it is at hand and no input itself.
        any_weights: also decode tokens that were made with another codebook or other phis.
        keys: draw only the rows of these keys; a key that is not found is an error.
        rows: draw only the rows of these numbers, from 0, of each data set, array or file of several images.
        limit: draw only the first rows, this many of all inputs together. If `keys`, `rows` and `limit` are
            None, the first `FIRST_ROWS` of each data set, array or file are drawn.
        schedule: (h, w) of every scale of an array's tokens; the checkpoint's own if None.

    Yields:
        A drawing of each picture, row of tokens and checkpoint, in the order of the inputs.

    Raises:
        ArgumentError: an argument is invalid, or a folder has no data set; raised before anything is drawn.
        CheckpointError, DeviceError: `weights` cannot be loaded; raised at the first tokens.

    Warns:
        VartokWarning: `keys`, `rows`, `limit` or `schedule` were not used.
    """
    items = _find(inputs)
    tokens = [item for item in items if item.kind not in ("picture", CHECKPOINT)]
    forms = {"build_up": build_up, "maps": maps, "animate": animate}
    if sum(forms.values()) > 1:
        raise ArgumentError("`build_up`, `maps` and `animate` contradict each other: choose one")
    settings = {"keys": keys, "rows": rows, "limit": limit, **forms, "any_weights": any_weights}
    for name in (name for name, value in settings.items() if value not in (None, False) and not tokens):
        raise ArgumentError(f"`{name}` is for tokens, but no input holds tokens")
    if rows is not None and not any(item.is_collection for item in tokens):
        raise ArgumentError(
            "`rows` is for data sets, arrays and files of several images, but no input is one"
        )
    if keys is None and rows is None and limit is None:
        tokens = [_FirstRows(**vars(item)) if item.is_collection else item for item in tokens]
    schedules, selection = FlatSchedules(schedule), RowSelection(keys, limit, rows)
    build_up = build_up or animate
    drawer = _Drawer(items, functools.cache(load), weights, schedules, build_up, maps, originals, any_weights)
    return _draw(items, selection.read(tokens, schedules), drawer)


def _draw(items: list[Input], rows: Iterator[tuple[Input, Row]], drawer: _Drawer) -> Iterator[Drawing]:
    """Draw everything in the order of the inputs; keys that no row has come last."""
    waiting = [item for item in items if item.kind in ("picture", CHECKPOINT)]
    places = {id(item): number for number, item in enumerate(items)}
    for item, row in rows:
        number = places.get(id(item), len(items))
        while waiting and places[id(waiting[0])] < number:
            yield drawer.draw_file(waiting.pop(0))
        yield drawer.draw_row(item, row)
    yield from map(drawer.draw_file, waiting)
    drawer.schedules.warn_if_unused()


@dataclass(frozen=True)
class _Drawer:
    """Draws inputs; see `draw_files` for the attributes."""

    items: list[Input]
    load: Callable[[str | None], Tokenizer]
    weights: str | None
    schedules: FlatSchedules
    build_up: bool
    maps: bool
    originals: bool
    any_weights: bool
    painter: Callable[[Tokenizer], MapPainter] = field(default_factory=lambda: functools.cache(MapPainter))

    def draw_file(self, item: Input) -> Drawing:
        """Draw a picture or a checkpoint."""
        try:
            if item.error is not None:
                raise item.error
            return self._checkpoint(item) if item.kind == CHECKPOINT else _picture(item)
        except VartokError as error:
            return Drawing(str(item), error=error)
        except MemoryError:
            return Drawing(str(item), error=ImageError("not enough memory to draw it"))

    def draw_row(self, item: Input, row: Row) -> Drawing:
        """Draw a row of tokens.

        Raises:
            CheckpointError, DeviceError: the checkpoint that decodes them cannot be loaded.
        """
        label = str(item) if row.key is None else f"{item}: {printable(row.key)}"
        tokens = row.tokens
        if isinstance(tokens, VartokError):
            return Drawing(label, error=tokens)
        tokenizer = self.load(self.weights)
        try:
            if isinstance(tokens, FlatTokens):
                tokens = self.schedules.complete(tokens, item.source, tokenizer)
            elif not self.any_weights:
                check_model(tokens, tokenizer)
            return self._tokens(item, label, tokens, tokenizer)
        except VartokError as error:
            return Drawing(label, error=error)
        except MemoryError:
            return Drawing(label, error=ImageError("not enough memory to draw it"))

    def _tokens(self, item: Input, label: str, tokens: ImageTokens, tokenizer: Tokenizer) -> Drawing:
        strip = self.build_up or self.maps
        [(_, pictures)] = decode_tokens(tokenizer, [(None, tokens)], strip=strip)
        if isinstance(pictures, VartokError):
            raise pictures
        original, notes, drawn = None, [], False
        try:
            if (found := self._find_original(item, tokens)) is not None:
                read, drawn = found
                original = read_original(read, tokens, tokenizer)
        except VartokError as error:
            notes.append(f"not compared with its original: {error}")
        tiles = comparison_tiles(pictures, tokens, original)
        if self.maps:
            drawn_maps = self.painter(tokenizer).draw_scales(tokens, pictures)
            tiles = [tile._replace(picture=image) for tile, image in zip(tiles, drawn_maps, strict=True)]
        if self.originals and original is not None and not drawn:
            tiles.insert(0, original_tile(original, tokens))
        heading = build_up_heading(pictures, tokens) if strip else ""
        if self.maps:
            heading += f"\n{MAPS_LEGEND}"
        return Drawing(label, tuple(tiles), heading, tuple(notes))

    def _find_original(
        self, item: Input, tokens: ImageTokens
    ) -> tuple[Callable[[Fit], Picture], bool] | None:
        """Return what reads the original of tokens, and whether it is an input; None if it is not at hand.

        Raises:
            ImageError: several inputs may be it.
        """
        name = PurePath(tokens.image.source).name
        found = {
            os.path.abspath(other.place): other
            for other in self.items
            if other.kind == "picture" and other.place is not None
            if has_name(other.name, tokens)
        }
        folder = None if item.place is None else os.path.dirname(os.path.abspath(item.place))
        near = {place: other for place, other in found.items() if os.path.dirname(place) == folder}
        if not near and item.kind == "tokens" and item.place and name.lower().endswith(picture_suffixes()):
            path = Path(item.place).parent / name
            if path.is_file():
                return functools.partial(read_picture, path), False
        candidates = [*(near or found).values()]
        if len(candidates) > 1:
            raise ImageError(f"{len(candidates)} of the pictures may be it: name one only")
        return (functools.partial(_read, candidates[0]), True) if candidates else None

    def _checkpoint(self, item: Input) -> Drawing:
        from vartok.atlas import draw_atlas  # imports torch

        try:
            tokenizer = self.load(item.place)
        except CheckpointError as error:  # its message names the checkpoint too
            raise CheckpointError(str(error).removeprefix(f"{item}: "), hint=error.hint) from None
        config = tokenizer.config
        codes = f"{counted(config.vocab_size, 'code')} of {counted(tokenizer.codebook.shape[1], 'channel')}"
        text = f"{printable(tokenizer.name)}\n{codes}, each decoded alone; similar codes are neighbours"
        return Drawing(str(item), (Tile(draw_atlas(tokenizer), text),))


def _picture(item: Input) -> Drawing:
    picture = _read(item, NATIVE)
    text = f"{item}\n{picture.width} x {picture.height} pixels"
    return Drawing(str(item), (Tile(picture.pixels, text),), notes=picture.notes)


def _read(item: Input, fit: Fit) -> Picture:
    [(_, sample)] = item.samples()
    return sample.read(fit)


class _FirstRows(Input):
    """A collection of which the first rows are read only.

    Warns:
        VartokWarning: there are more; raised while iterating over the rows.
    """

    def rows(self, *, texts: bool = False) -> Iterator[Row]:
        """Yield the first rows."""
        for number, row in enumerate(super().rows(texts=texts)):
            if number == FIRST_ROWS:
                warn(f"{self}: only the first {FIRST_ROWS} rows are drawn; name others by key or number")
                return
            yield row


def _find(inputs: Iterable[str | BinaryIO]) -> list[Input]:
    """Return the inputs with their kinds.

    Raises:
        ArgumentError: a folder holds neither a data set nor a checkpoint.
    """
    found: list[Input] = []
    for source in inputs:
        kind = kind_of_stream(source) if not isinstance(source, str) else _kind(source)
        if kind == CHECKPOINT:
            assert isinstance(source, str)
            found.append(Input(PurePath(source), CHECKPOINT, source))
        else:
            try:
                found += find_inputs(source, PICTURE_KINDS if kind == "picture" else TOKEN_KINDS)
            except ArgumentError as error:
                if not (isinstance(source, str) and os.path.isdir(source)):
                    raise
                raise ArgumentError(str(error), hint="name the files in it") from None
    return found


def holds_checkpoint(folder: str) -> bool:
    """Return whether a folder has a checkpoint by its files' names, and no data set."""
    with contextlib.suppress(OSError):
        return any(entry.endswith(CHECKPOINTS) for entry in os.listdir(folder)) and not is_dataset(folder)
    return False  # find_inputs says what is wrong


def _kind(place: str) -> str:
    """Return "picture", "tokens" or `CHECKPOINT`: by the suffix, and if it tells nothing by the content."""
    name = place.lower()
    if os.path.isdir(place):
        return CHECKPOINT if holds_checkpoint(place) else "tokens"
    if name.endswith(CHECKPOINTS) or is_hub(place):
        return CHECKPOINT
    if place in (*KNOWN, SHIPPED) and not os.path.lexists(place):
        return CHECKPOINT
    if is_url(place) or (name.endswith(picture_suffixes()) and not name.endswith(".npy")):
        return "picture"
    if name.endswith((*(suffix for suffix in TOKEN_FILES if suffix != ".npy"), ".json", *TABLES, *TARS)):
        return "tokens"
    if not os.path.isfile(place):  # it fails when it is read; a word may be a misspelt name of a checkpoint
        return "picture" if os.path.lexists(place) or not re.fullmatch(r"[\w-]+", place) else CHECKPOINT
    with contextlib.suppress(OSError), open(place, "rb") as stream:
        return kind_of_stream(stream)
    return "picture"
