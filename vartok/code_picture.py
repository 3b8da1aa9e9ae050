"""A picture of one code: alone, beside its neighbours, at each scale, and where tokens have it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vartok.codebook import CodeReport
from vartok.drawing import Tile, draw_headed, fit_inside, sheet
from vartok.errors import counted
from vartok.images import to_pixels
from vartok.maps import MapPainter, enlarge
from vartok.operations.diff_maps import SIDE, draw_shares
from vartok.tokenizer import Tokenizer
from vartok.usage import CodeUses

COLUMNS = 10
"""Largest number of pictures in a row."""

CODE_SIDE = 96
"""Pixels of a side of a code that is decoded alone."""

CONTRAST, MAX_GAIN = 64, 16
"""Levels to which the largest difference of a weak code from the blank picture is raised, and the most by
which it is multiplied."""


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
    captions = [f"code {report.code}", *(f"{code}\n{distance:#.3g}" for code, distance in report.neighbours)]
    parts = [
        (
            "decoded alone, and the nearest codes with their distances",
            sheet(list(map(Tile, pictures, captions)), columns=COLUMNS),
        )
    ]
    blank = MapPainter(tokenizer).draw_blank(tokenizer.config.patch_nums[-1])
    scales = []
    for number, (picture, (h, w)) in enumerate(
        zip(to_pixels(tokenizer.draw_code(report.code)), tokenizer.config.patch_nums, strict=True), 1
    ):
        enlarged, gain = _raise_contrast(picture, blank)
        told = f"\ncontrast x {gain:.2g}" if gain > 1 else ""
        scales.append(Tile(fit_inside(enlarged, SIDE, SIDE), f"scale {number}, {h}x{w}{told}"))
    told = "in the middle cell of each scale, and nothing else; weak differences are enlarged"
    parts.append((told, sheet(scales, columns=COLUMNS)))
    if uses is not None:
        maps = [
            Tile(draw_shares(count / max(1, count.max())), f"scale {number}: {used:,} of {tokens:,}")
            for number, (count, (tokens, used)) in enumerate(zip(uses.maps, uses.scales, strict=False), 1)
        ]
        told = f"where it is in {counted(uses.mapped, 'picture')} of one schedule: red most often"
        parts.append((told, sheet(maps, columns=COLUMNS)))
    return np.asarray(draw_headed(parts, text_size=16))


def _raise_contrast(picture: NDArray[np.uint8], blank: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Multiply the difference of a picture from the blank one, both [H, W, C], so that it can be seen.

    Returns:
        The picture, and the factor, from 1 to `MAX_GAIN`.
    """
    difference = picture.astype(np.float64) - blank
    gain = min(max(CONTRAST / max(np.abs(difference).max(), 1), 1.0), MAX_GAIN)
    return np.rint(blank + gain * difference).clip(0, 255).astype(np.uint8), gain
