"""A picture of one code: alone, beside its neighbours, at each scale, and where tokens have it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vartok.codebook import CodeReport
from vartok.drawing import Tile, fit_inside, sheet
from vartok.errors import counted
from vartok.images import to_pixels
from vartok.maps import enlarge
from vartok.operations.diff_maps import SIDE, draw_shares
from vartok.tokenizer import Tokenizer
from vartok.usage import CodeUses

COLUMNS = 10
"""Largest number of pictures in a row."""

CODE_SIDE = 96
"""Pixels of a side of a code that is decoded alone."""


def draw_code_sheet(
    tokenizer: Tokenizer, report: CodeReport, uses: CodeUses | None = None
) -> NDArray[np.uint8]:
    """Draw a code and its neighbours, each alone; the code in one cell of each scale; and where it is used.

    Args:
        tokenizer: the tokenizer.
        report: the code and its neighbours.
        uses: where tokens have the code; None leaves this part out.

    Returns:
        [H, W, 3] uint8.
    """
    codes = [report.code, *(code for code, _ in report.neighbours)]
    side = tokenizer.config.downsample
    side *= max(1, CODE_SIDE // side)
    pictures = [enlarge(picture, (side, side)) for picture in to_pixels(tokenizer.draw_codes(codes))]
    captions = [f"code {report.code}", *(f"{code}\n{distance:.3g}" for code, distance in report.neighbours)]
    parts = [
        Tile(
            sheet(list(map(Tile, pictures, captions)), columns=COLUMNS),
            "decoded alone, and the nearest codes with their distances",
        )
    ]
    scales = [
        Tile(fit_inside(picture, SIDE, SIDE), f"scale {k}, {h}x{w}")
        for k, (picture, (h, w)) in enumerate(
            zip(to_pixels(tokenizer.draw_code(report.code)), tokenizer.config.patch_nums, strict=True)
        )
    ]
    parts.append(Tile(sheet(scales, columns=COLUMNS), "in the middle cell of each scale, and nothing else"))
    if uses is not None:
        maps = [
            Tile(draw_shares(count / max(1, count.max())), f"scale {k}: {used:,} of {tokens:,}")
            for k, (count, (tokens, used)) in enumerate(zip(uses.maps, uses.scales, strict=False))
        ]
        told = f"where {counted(uses.mapped, 'picture')} of one schedule have it: red most often"
        parts.append(Tile(sheet(maps, columns=COLUMNS), told))
    return np.asarray(sheet(parts, columns=1, text_size=16))
