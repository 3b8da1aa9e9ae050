"""Draw labelled pictures and sheets of them, in Pillow's own font. Importing this module imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from vartok.errors import ImageError, printable
from vartok.images import MAX_PIXELS
from vartok.images.tensors import as_pil, drawable

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels

    Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

Drawable: TypeAlias = "Image.Image | Pixels"
"""A PIL image of any mode, or [H, W, C] uint8 or uint16 pixels, drawn as `drawable` shows them."""

PAPER, INK = (255, 255, 255), (0, 0, 0)
"""RGB levels of the background and of the text."""

GAP = 8
"""Pixels between two pictures of a sheet."""

MIN_TEXT_SIZE, MAX_TEXT_SIZE = 12, 36
"""Heights of the font in pixels; between them, a line of text holds about 48 letters."""

INSET = 4
"""Pixels left of a caption, and at least right of it."""

MIN_LABEL_WIDTH = 96
"""Smallest width in pixels of a picture with a caption."""


class Tile(NamedTuple):
    """A picture of a sheet.

    Attributes:
        picture: the picture.
        caption: text below it, of one or several lines; "" for none.
    """

    picture: Drawable
    caption: str = ""


def label(picture: Drawable, caption: str, *, width: int = 0, text_size: int | None = None) -> Image.Image:
    """Draw a caption below a picture.

    Lines that are too long are wrapped, and words that are too long are shortened in the middle.

    Args:
        picture: the picture; it is not scaled.
        caption: the text, of one or several lines; with "" only the width may change.
        width: smallest width of the result, in pixels; the picture is at its left.
        text_size: height of the font in pixels; if None, by the width, from 12 to 36.

    Returns:
        An RGB image, at least as wide as the picture, and with a caption as `MIN_LABEL_WIDTH`.

    Raises:
        ImageError: it would have more than `MAX_PIXELS` pixels.
    """
    picture = _as_rgb(picture)
    width = max(width, picture.width, MIN_LABEL_WIDTH if caption else 0)
    font = _font(text_size or text_size_for(width))
    lines = wrap(caption, font, width - 2 * INSET)
    line_height = sum(_metrics(font))
    height = picture.height + (len(lines) * line_height + 2 if lines else 0)
    labelled = Image.new("RGB", check_room(width, height), PAPER)
    labelled.paste(picture)
    draw = ImageDraw.Draw(labelled)
    for number, line in enumerate(lines):
        draw.text((INSET, picture.height + 2 + number * line_height), line, INK, font)
    return labelled


def sheet(
    tiles: Sequence[Tile],
    *,
    columns: int | None = None,
    text_size: int | None = None,
) -> Image.Image:
    """Draw labelled pictures on one sheet, row by row.

    A column is as wide as its widest picture, and a row as high as its highest with its caption.

    Args:
        tiles: the pictures and their captions.
        columns: number of pictures in a row; all are in one row if None.
        text_size: height of the font in pixels; if None, by the width of the narrowest column.

    Returns:
        An RGB image, with `GAP` white pixels between the pictures.

    Raises:
        ImageError: there are no tiles, or the sheet would have more than `MAX_PIXELS` pixels.
    """
    if not tiles:
        raise ImageError("a sheet needs at least one picture")
    columns = min(columns or len(tiles), len(tiles))
    sizes = [as_image(tile.picture).size for tile in tiles]
    least = MIN_LABEL_WIDTH if any(tile.caption for tile in tiles) else 0
    widths = [max(least, *(width for width, _ in sizes[k::columns])) for k in range(columns)]
    text_size = text_size or text_size_for(min(widths))
    rows = range(0, len(tiles), columns)
    whole = sum(widths) + GAP * (columns - 1)
    check_room(whole, sum(max(high for _, high in sizes[row : row + columns]) for row in rows))
    labelled = [
        label(tile.picture, tile.caption, width=widths[k % columns], text_size=text_size)
        for k, tile in enumerate(tiles)
    ]
    heights = [max(picture.height for picture in labelled[row : row + columns]) for row in rows]
    drawn = Image.new("RGB", check_room(whole, sum(heights) + GAP * (len(heights) - 1)), PAPER)
    for k, picture in enumerate(labelled):
        row, column = divmod(k, columns)
        at = (sum(widths[:column]) + GAP * column, sum(heights[:row]) + GAP * row)
        drawn.paste(picture, at)
    return drawn


def draw_headed(parts: Sequence[tuple[str, Image.Image]], *, text_size: int = 14) -> Image.Image:
    """Draw pictures one below the other, each below its heading.

    Args:
        parts: headings, of one or several lines, or "" for none; and their pictures.
        text_size: height of the font in pixels.

    Raises:
        ImageError: the result would have more than `MAX_PIXELS` pixels.
    """
    width = max(picture.width for _, picture in parts)
    nothing = Image.new("RGB", (width, 0))
    tiles = []
    for n, (heading, picture) in enumerate(parts):
        apart = "\n" if n else ""  # an empty line, so that a heading is nearer to its own picture
        tiles += [Tile(label(nothing, f"{apart}{heading}", text_size=text_size))] if heading else []
        tiles.append(Tile(picture))
    return sheet(tiles, columns=1)


def fit_inside(picture: Drawable, width: int, height: int) -> Image.Image:
    """Scale a picture to the largest size of its proportions that is at most `width` x `height` pixels."""
    picture = as_image(picture)
    ratio = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    if picture.size == size:
        return picture
    # With a gap of 3 it can hardly be told from a filter of all pixels, and takes a fifth of the time.
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def text_size_for(width: int) -> int:
    """Return the height in pixels of a font for captions of so many pixels."""
    return min(max(width // 24, MIN_TEXT_SIZE), MAX_TEXT_SIZE)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; unprintable characters become question marks."""
    lines = []
    for paragraph in text.split("\n") if text else ():
        line = ""
        for word in printable(paragraph, 200).split():
            word = _shorten(word, font, width)
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def as_image(picture: Drawable) -> Image.Image:
    """Return a picture as a PIL image.

    Raises:
        ImageError: an array is not [H, W, C] pixels.
    """
    return picture if isinstance(picture, Image.Image) else as_pil(drawable(picture))


def check_room(width: int, height: int) -> tuple[int, int]:
    """Return the size of a picture that is to be drawn.

    Raises:
        ImageError: it has more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the picture would have {width:,} x {height:,} pixels, more than {MAX_PIXELS:,} in all",
            hint="draw fewer or smaller pictures",
        )
    return width, height


def _as_rgb(picture: Drawable) -> Image.Image:
    return as_image(picture).convert("RGB")


def _shorten(word: str, font: Font, width: int) -> str:
    """Return a word without as many letters of its middle as it needs to be at most `width` pixels wide."""
    kept = len(word)
    short = word
    while kept > 1 and font.getlength(short) > width:
        kept -= 1
        short = f"{word[: kept - kept // 2]}…{word[len(word) - kept // 2 :]}"
    return short


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _metrics(font: Font) -> tuple[int, int]:
    """Return the pixels of a line above and below its base; Pillow without FreeType has one font of 11."""
    return font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (11, 0)
