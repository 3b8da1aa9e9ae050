"""Layouts of a decoded picture: alone, a strip, an animation, the token maps, or beside its original."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vartok import images
from vartok.drawing import draw_headed, sheet
from vartok.errors import ArgumentError, printable
from vartok.files import check_regular
from vartok.images.animation import (
    ANIMATIONS,
    FRAME_TIME,
    animated_size,
    check_timing,
    encode_animation,
)
from vartok.maps import MapPainter
from vartok.operations.decode_streams import join_pictures, restore_pictures
from vartok.operations.originals import (
    build_up_heading,
    comparison_tiles,
    has_name,
    original_tile,
    read_original,
)

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens


class PictureFile(NamedTuple):
    """A picture file before it is written.

    Attributes:
        pixels: [H, W, C] uint8 or uint16; those of the last frame of an animation.
        data: bytes of the file.
        notes: remarks for the user.
    """

    pixels: Pixels
    data: bytes
    notes: tuple[str, ...] = ()


class Layout:
    """The decoded picture alone.

    Attributes:
        word: part of the names of files, as in img.decoded.png.
        prefixes: whether the images of the first 1, 2, ... scales are needed, and not the last alone.
        suffixes: formats that it can be written in, by suffix.
        default: the format where none is asked for.
    """

    word = "decoded"
    prefixes = False
    suffixes: Mapping[str, str] = images.SUFFIXES
    default = "png"

    def start(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer that decodes the pictures, before the first is drawn."""

    def size(self, width: int, height: int, scales: int) -> tuple[int, int]:
        """Return the width and height of the file's picture.

        Args:
            width: width of one decoded picture in pixels.
            height: its height.
            scales: number of scales that are decoded.
        """
        return width, height

    def draw(self, pictures: Sequence[Pixels], tokens: ImageTokens, *, restore_size: bool) -> Pixels:
        """Return the picture of an image.

        Args:
            pictures: [H, W, C] arrays: the image decoded from all scales, or with `prefixes` from the first
                1, 2, ... scales.
            tokens: its tokens.
            restore_size: scale each picture to the width and height of the original.

        Raises:
            ImageError: the fit cannot be undone, see `images.restore_size`.
        """
        return join_pictures(pictures, tokens.image, restore_size=restore_size)

    def encode(
        self, pictures: Sequence[Pixels], tokens: ImageTokens, format: str, *, restore_size: bool
    ) -> PictureFile:
        """Return the picture file of an image, in one of the formats of `suffixes`; else as `draw`."""
        pixels = self.draw(pictures, tokens, restore_size=restore_size)
        return PictureFile(pixels, images.encode_picture(pixels, format))


class Strip(Layout):
    """The images decoded from the first 1, 2, ... scales, side by side."""

    word, prefixes = "strip", True

    def size(self, width: int, height: int, scales: int) -> tuple[int, int]:
        """Return the width and height of the strip; see `Layout.size`."""
        return width * scales, height


class Animation(Layout):
    """The images decoded from the first 1, 2, ... scales, one after the other; see `encode_animation`.

    Args:
        frame_time: time of each frame in seconds; 0.5 if None.
        loops: number of times that it plays; without end if None.

    Raises:
        ArgumentError: an argument is out of range.
    """

    word, prefixes, suffixes, default = "animated", True, ANIMATIONS, "webp"

    def __init__(self, frame_time: float | None, loops: int | None) -> None:
        self._frame_time = FRAME_TIME if frame_time is None else frame_time
        self._loops = loops or 0
        check_timing(self._frame_time, self._loops)

    def size(self, width: int, height: int, scales: int) -> tuple[int, int]:
        """Return the width and height of the frames; see `Layout.size`."""
        return animated_size(width, height)

    def encode(
        self, pictures: Sequence[Pixels], tokens: ImageTokens, format: str, *, restore_size: bool
    ) -> PictureFile:
        """Return the animation; see `Layout.encode`."""
        height, width = pictures[0].shape[:2]
        if restore_size:
            width, height = tokens.image.width, tokens.image.height
        columns, rows = animated_size(width, height)
        if restore_size:
            pictures = restore_pictures(pictures, replace(tokens.image, width=columns, height=rows))
        data = encode_animation(pictures, format, frame_time=self._frame_time, loops=self._loops)
        note = f"{columns:,} x {rows:,} pixels instead of {width:,} x {height:,}, the most for an animation"
        return PictureFile(pictures[-1], data, (note,) if (columns, rows) != (width, height) else ())


class Maps(Layout):
    """The token maps above what each scale adds to the picture; see `MapPainter`."""

    word, prefixes = "maps", True
    suffixes: Mapping[str, str] = {
        suffix: format for suffix, format in images.SUFFIXES.items() if format != "npy"
    }

    def start(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer; see `Layout.start`."""
        self._painter = MapPainter(tokenizer)

    def size(self, width: int, height: int, scales: int) -> tuple[int, int]:
        """Return the width and height of the maps; see `Layout.size`."""
        return width * scales, 2 * height

    def draw(self, pictures: Sequence[Pixels], tokens: ImageTokens, *, restore_size: bool) -> Pixels:
        """Return the maps; see `Layout.draw`. `restore_size` is false."""
        return self._painter.draw(tokens, pictures)


class Beside(Layout):
    """The original beside what its tokens decode to, labelled; see `originals`.

    Args:
        picture: path of the original, a regular file.
        strip: beside the images decoded from the first 1, 2, ... scales.
        scales: number of scales that are decoded; all if None.

    Raises:
        OSError: the original is missing, or no regular file.
    """

    word = "beside"
    suffixes = Maps.suffixes

    def __init__(self, picture: str | Path, *, strip: bool, scales: int | None) -> None:
        check_regular(picture)
        self.prefixes = strip
        self._read, self._scales = functools.partial(images.read_picture, picture), scales
        self._name = PurePath(picture)

    def start(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer; see `Layout.start`."""
        self._tokenizer = tokenizer

    def draw(self, pictures: Sequence[Pixels], tokens: ImageTokens, *, restore_size: bool) -> Pixels:
        """Return the sheet; see `Layout.draw`. `restore_size` is false.

        Raises:
            ImageError: the original cannot be read, or is another picture.
        """
        original = read_original(self._read, tokens, self._tokenizer)
        tiles = comparison_tiles(pictures, tokens, original, scales=self._scales)
        drawn = sheet([original_tile(original, tokens), *tiles])
        if len(pictures) > 1:
            drawn = draw_headed([(build_up_heading(pictures, tokens), drawn)])
        return np.asarray(drawn)

    def encode(
        self, pictures: Sequence[Pixels], tokens: ImageTokens, format: str, *, restore_size: bool
    ) -> PictureFile:
        """Return the sheet, with a note if the tokens name another picture; see `Layout.encode`."""
        drawn = super().encode(pictures, tokens, format, restore_size=restore_size)
        source = printable(tokens.image.source)
        note = f"its tokens are of {source}, by their source, and {printable(self._name.name)} is beside it"
        return drawn._replace(notes=() if has_name(self._name, tokens) else (note,))


def make_layout(
    *,
    strip: bool = False,
    animate: bool = False,
    maps: bool = False,
    beside: str | Path | None = None,
    frame_time: float | None = None,
    loops: int | None = None,
    scales: int | None = None,
    restore_size: bool = False,
    skip_existing: bool = False,
) -> Layout:
    """Return the layout of checked settings; see `decode_files`.

    Raises:
        ArgumentError: a value is out of range, or settings contradict each other.
        OSError: the picture `beside` is missing, or no regular file.
    """
    if strip + animate + maps > 1:
        raise ArgumentError("`strip`, `animate` and `maps` contradict each other: choose one")
    if not animate and (frame_time is not None or loops is not None):
        name = "`loops`" if frame_time is None else "`frame_time`"
        raise ArgumentError(f"{name} is only for animations", hint="set `animate`")
    if maps and restore_size:
        raise ArgumentError("`maps` are drawn in the size of the tokens' picture: leave `restore_size` out")
    if beside is None:
        return Animation(frame_time, loops) if animate else Maps() if maps else Strip() if strip else Layout()
    other = {"animate": animate, "maps": maps, "restore_size": restore_size, "skip_existing": skip_existing}
    for name in (name for name, given in other.items() if given):
        raise ArgumentError(f"`{name}` is not for a picture `beside` the decoded one: leave one of them out")
    return Beside(beside, strip=strip, scales=scales)
