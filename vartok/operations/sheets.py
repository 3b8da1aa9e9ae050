"""Lay out the pictures of several drawings on one sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from PIL import Image

from vartok.drawing import PAPER, Tile, as_image, draw_headed, fit_inside, sheet
from vartok.errors import VartokError

MAX_TILES = 400
"""Largest number of pictures of a sheet."""

MAX_TILE_SIDE = 1024
"""Longest side in pixels of a picture of a sheet; a larger one is made smaller."""

MAX_ROW = 4
"""Largest number of pictures that a sheet has in one row; more are laid out in a square."""

MAX_RATIO = 8
"""Largest width of a picture of a sheet, in heights."""

MIN_HEIGHT = 256
"""Smallest height in pixels to which the pictures of a sheet are brought, if their heights differ."""


def collect_tiles(drawings: Iterable[Sequence[Tile]]) -> list[list[Tile]]:
    """Return the tiles of every drawing; if there are several, with pictures small enough for a sheet.

    Args:
        drawings: the tiles of each drawing.

    Raises:
        VartokError: they are more than `MAX_TILES`.
    """
    groups: list[list[Tile]] = []
    for tiles in drawings:
        groups.append(list(tiles))
        if sum(map(len, groups)) > MAX_TILES:
            raise VartokError(
                f"one picture holds at most {MAX_TILES} others", hint="set `limit`, or name fewer files"
            )
        if len(groups) > 1:
            groups[-2:] = [[_smaller(tile) for tile in group] for group in groups[-2:]]
    return groups


def _smaller(tile: Tile) -> Tile:
    """Return a tile whose picture has no side of more than `MAX_TILE_SIDE` pixels."""
    if max(as_image(tile.picture).size) <= MAX_TILE_SIDE:
        return tile
    return tile._replace(picture=fit_inside(tile.picture, MAX_TILE_SIDE, MAX_TILE_SIDE))


def lay_out(groups: list[list[Tile]]) -> tuple[list[Tile], int]:
    """Return the tiles of a sheet, of one height, and its number of columns.

    If a drawing has several pictures, each drawing is a row of its own.
    """
    columns = max(map(len, groups))
    heights = {as_image(tile.picture).height for group in groups for tile in group}
    if len(heights) > 1:
        height = max(MIN_HEIGHT, min(heights))
        groups = [[_scaled(tile, height) for tile in group] for group in groups]
    if columns == 1:
        columns = len(groups) if len(groups) <= MAX_ROW else math.ceil(math.sqrt(len(groups)))
        return [tile for group in groups for tile in group], columns
    blank = Tile(Image.new("RGB", (1, 1), PAPER))
    return [tile for group in groups for tile in group + [blank] * (columns - len(group))], columns


def draw_groups(groups: list[list[Tile]], headings: Sequence[str]) -> Image.Image:
    """Draw the tiles of every drawing on one sheet; with headings, each drawing below its own.

    Args:
        groups: the tiles of each drawing, as `collect_tiles` returns them.
        headings: the heading of each drawing, "" for none.

    Raises:
        ImageError: the sheet would be too large.
    """
    if any(headings):
        drawn = [sheet(lay_out([group])[0]) for group in groups]
        return draw_headed(list(zip(headings, drawn, strict=True)))
    tiles, columns = lay_out(groups)
    return sheet(tiles, columns=columns)


def _scaled(tile: Tile, height: int) -> Tile:
    return tile._replace(picture=fit_inside(tile.picture, height * MAX_RATIO, height))
