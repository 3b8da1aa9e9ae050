"""Schedules: the (h, w) grid of every scale, coarse to fine."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from vartok.errors import ScheduleError, quoted

Grid = tuple[int, int]
Schedule = tuple[Grid, ...]

ScheduleLike: TypeAlias = str | Sequence[int | Sequence[int]]
"""A schedule as callers may give it: grids or sides, or a text that `parse_schedule` reads."""

MAX_SCALES = 64
MAX_GRID_SIDE = 1 << 14  # cells; a picture of 262,144 pixels a side


def square(*sides: int) -> Schedule:
    """Return the schedule of square grids with the given sides."""
    return tuple((side, side) for side in sides)


VAR_256 = square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""VAR's schedule for 256x256 pixels: 680 tokens."""


def check_schedule(value: object) -> Schedule:
    """Return a schedule, after checking it.

    Args:
        value: a list or tuple with 1 to 64 grids, coarse to fine, each a side or an (h, w) pair.

    Raises:
        ScheduleError: `value` is not such a list, or a grid is higher or wider than the last one.
    """
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_SCALES:
        raise ScheduleError(f"a schedule must be a list of 1 to {MAX_SCALES} grids, not {quoted(value)}")
    schedule = tuple(_check_grid(grid) for grid in value)
    height, width = schedule[-1]
    for k, (h, w) in enumerate(schedule):
        if h > height or w > width:
            raise ScheduleError(
                f"scale {k}, {h}x{w}, is higher or wider than the last scale, {height}x{width}"
            )
    return schedule


def _check_grid(grid: object) -> Grid:
    sides: list[Any] = list(grid) if isinstance(grid, (list, tuple)) else [grid, grid]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_GRID_SIDE for side in sides):
        raise ScheduleError(
            f"a grid must be a side or an [h, w] pair, each 1 to {MAX_GRID_SIDE} cells, not {quoted(grid)}"
        )
    return sides[0], sides[1]


def parse_schedule(text: str) -> Schedule:
    """Parse a text like "1,2,3x4,16x24": the grid of every scale as a side, or as h x w, coarse to fine.

    Raises:
        ScheduleError: the text has another form, or `check_schedule` refuses the schedule.
    """
    try:
        grids = [[int(side) for side in part.split("x")] for part in text.split(",")]
    except ValueError:
        raise ScheduleError(
            f'a schedule must look like "1,2,4,8,16" or "1,2x3,16x24" (h x w), not {quoted(text)}'
        ) from None
    return check_schedule([grid * 2 if len(grid) == 1 else grid for grid in grids])


def as_schedule(value: ScheduleLike) -> Schedule:
    """Return the schedule that a text such as "1,2,3x4,16x24", or a sequence of sides and pairs, describes.

    Raises:
        ScheduleError: `value` is neither, or `check_schedule` refuses the schedule.
    """
    return parse_schedule(value) if isinstance(value, str) else check_schedule(value)


def adapt_schedule(schedule: Schedule, grid: Grid) -> Schedule:
    """Stretch a schedule to a latent of another size or aspect ratio.

    Every scale keeps its fraction of the latent's height and width, rounded to whole cells, at least one.
    The number of scales, and with it each scale's phi, stays the same. A 1x1 scale stays 1x1, as next-scale
    models start from it.

    Args:
        schedule: (h, w) of every scale.
        grid: (h, w) of the latent, which becomes the last scale.
    """
    height, width = grid
    last_h, last_w = schedule[-1]

    def stretched(h: int, w: int) -> Grid:
        if (h, w) == (1, 1):
            return h, w
        return max(1, round(h * height / last_h)), max(1, round(w * width / last_w))

    return (*(stretched(h, w) for h, w in schedule[:-1]), grid)


def schedule_of_length(schedule: Schedule, tokens: int) -> Schedule | None:
    """Return the schedule, stretched to a latent of another size, that has this number of tokens.

    Args:
        schedule: (h, w) of every scale.
        tokens: number of tokens of a picture.

    Returns:
        `schedule` itself, or what `adapt_schedule` makes of it for a square latent; None if no size fits.
    """
    if token_count(schedule) == tokens:
        return schedule
    sides = range(1, MAX_GRID_SIDE + 1)
    side = bisect.bisect_left(sides, tokens, key=lambda n: token_count(adapt_schedule(schedule, (n, n)))) + 1
    found = adapt_schedule(schedule, (side, side))
    return found if token_count(found) == tokens and side <= MAX_GRID_SIDE else None


def token_count(schedule: Iterable[Grid]) -> int:
    """Return the number of tokens of a picture with this schedule."""
    return sum(math.prod(grid) for grid in schedule)


@functools.lru_cache(maxsize=1024)
def phi_index(k: int, scales: int, phis: int) -> int:
    """Return the index of the phi for a scale: the phi whose tick is nearest to k / (scales - 1).

    The ticks and their float64 rounding are VAR's (`PhiPartiallyShared`, `PhiNonShared`):
    ten scales over four phis have two exact ties, which only this arithmetic breaks as VAR does.

    Args:
        k: index of the scale, from 0.
        scales: number of scales of the whole schedule.
        phis: number of phis.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    position = k / (scales - 1) if scales > 1 else 0.0
    return int(np.argmin(np.abs(ticks - position)))


def to_json(schedule: Schedule) -> list[Any]:
    """Return the schedule as a list for JSON: the side of each square grid, [h, w] of each other grid."""
    return [h if h == w else [h, w] for h, w in schedule]


def describe(schedule: Schedule) -> str:
    """Return the schedule as text that `parse_schedule` reads."""
    return ",".join(str(h) if h == w else f"{h}x{w}" for h, w in schedule)
