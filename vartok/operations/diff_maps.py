"""Heat maps of the tokens that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vartok.drawing import Tile, draw_headed, sheet
from vartok.errors import TokensError, counted
from vartok.maps import enlarge
from vartok.schedule import describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vartok.operations.diff import TokensDiff

SIDE = 160
"""Pixels of the longer side of a scale's map; larger grids have one pixel for each cell."""

COLUMNS = 10
"""Largest number of maps in a row."""

EQUAL, DIFFERENT = np.array([235, 235, 235]), np.array([178, 24, 43])
"""RGB levels of cells that never differ, and of those that differ in all pictures."""


def draw_diff(diff: TokensDiff, names: tuple[str, str] | None = None) -> NDArray[np.uint8]:
    """Draw the maps of every scale, labelled, below a legend; a row, or several, for each schedule.

    Args:
        diff: the difference, of one picture or more.
        names: the two sides, which are then named above the maps.

    Returns:
        [H, W, 3] uint8: a cell is light grey if it never differs, red if it differs in all pictures, and in
        between by its share of them.

    Raises:
        TokensError: no pictures were compared.
        ImageError: the picture would be too large.
    """
    if not diff.maps:
        raise TokensError("no pictures were compared: there is nothing to draw")
    parts = []
    for schedule, (pictures, counts) in diff.maps.items():
        tiles = []
        for number, count in enumerate(counts, 1):
            cells = draw_shares(count / pictures)
            tiles.append(Tile(cells, f"scale {number}: {count.sum() / (count.size * pictures):.1%}"))
        drawn = sheet(tiles, columns=COLUMNS)
        parts.append((f"{describe(schedule)}: {counted(pictures, 'picture')}", drawn))
    legend = "grey: equal; red: differs"
    if any(pictures > 1 for pictures, _ in diff.maps.values()):
        legend += ", the redder in the more pictures"
    told = [f"{side}: {name}" for side, name in zip("AB", names or (), strict=False)]
    parts[0] = ("\n".join([*told, legend, parts[0][0]]), parts[0][1])
    return np.asarray(draw_headed(parts, text_size=14))


def draw_shares(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw [h, w] shares from 0 to 1 as cells from light grey to red: [H, W, 3] uint8; see `SIDE`."""
    h, w = shares.shape
    scale = max(1.0, SIDE / max(h, w))
    enlarged = enlarge(shares, (round(h * scale), round(w * scale)))[..., None]
    levels: NDArray[np.uint8] = np.rint(EQUAL + enlarged * (DIFFERENT - EQUAL)).astype(np.uint8)
    return levels
