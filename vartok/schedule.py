"""Schedules: the (h, w) grid of every scale, coarse to fine."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from vartok.errors import ScheduleError, TokensError, quoted

Grid = tuple[int, int]
Schedule = tuple[Grid, ...]

ScheduleLike: TypeAlias = str | Sequence[int | Sequence[int]]
"""A schedule as callers may give it: grids or sides, a name in `NAMED`, or a text such as "1,2,3x4"."""

MAX_SCALES = 64
MAX_GRID_SIDE = 1 << 14  # cells; a picture of 262,144 pixels a side


def square(*sides: int) -> Schedule:
    """Return the schedule of square grids with the given sides."""
    return tuple((side, side) for side in sides)


VAR_256 = square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""VAR's schedule for 256x256 pixels: 680 tokens."""

VAR_512 = square(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
"""VAR's schedule for 512x512 pixels: 2,240 tokens."""

VAR_1024 = square(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
"""VAR's schedule for 1024x1024 pixels: 9,451 tokens."""

VAR = (VAR_256, VAR_512, VAR_1024)
"""VAR's schedules for all sizes of pictures that it has models for."""

NAMED: dict[str, Schedule] = {
    "var-256": VAR_256,
    "var-512": VAR_512,
    "var-1024": VAR_1024,
    "switti-512": VAR_512,  # github.com/yandex-research/switti, RESOLUTION_PATCH_NUMS_MAPPING
    "switti-1024": VAR_1024,
    "varsr-512": square(1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 28, 32),  # github.com/qyp2000/VARSR, pn 512
    "star-512": square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32),  # a script of STAR's authors for 512 pixels
}
"""Schedules in the code of published next-scale models, by name; their tokenizers downsample by 16."""


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
    for number, (h, w) in enumerate(schedule, 1):
        if h > height or w > width:
            raise ScheduleError(
                f"scale {number}, {h}x{w}, is higher or wider than the last scale, {height}x{width}"
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

    A name in `NAMED` stands for its schedule.

    Raises:
        ScheduleError: the text has another form, or `check_schedule` refuses the schedule.
    """
    if text.strip() in NAMED:
        return NAMED[text.strip()]
    try:
        grids = [[int(side) for side in part.split("x")] for part in text.split(",")]
    except ValueError:
        raise ScheduleError(
            f'a schedule must look like "1,2,4,8,16" or "1,2x3,16x24" (h x w), not {quoted(text)}',
            hint=f"the schedules with names are {', '.join(NAMED)}",
        ) from None
    return check_schedule([grid * 2 if len(grid) == 1 else grid for grid in grids])


def as_schedule(value: ScheduleLike) -> Schedule:
    """Return the schedule that a name, a text such as "1,2,3x4", or a sequence of sides and pairs describes.

    Raises:
        ScheduleError: `value` is neither, or `check_schedule` refuses the schedule.
    """
    return parse_schedule(value) if isinstance(value, str) else check_schedule(value)


def adapt_schedule(schedule: Schedule, grid: Grid) -> Schedule:
    """Return the schedule for a latent of another size or aspect ratio.

    VAR's schedules for 256, 512 and 1024 pixels become one another. Next-scale models were trained with them,
    and with no stretched one. All other schedules and sizes are stretched: see `stretch_schedule`.

    Args:
        schedule: (h, w) of every scale.
        grid: (h, w) of the latent, which becomes the last scale.
    """
    return stretch_schedule(schedule_of_size(schedule, grid), grid)


def schedule_of_size(schedule: Schedule, grid: Grid) -> Schedule:
    """Return VAR's schedule for a latent of this size if `schedule` is VAR's for another; else `schedule`."""
    return next((one for one in _siblings(schedule) if one[-1] == grid), schedule)


def _siblings(schedule: Schedule) -> tuple[Schedule, ...]:
    """Return the schedules of the same models for all sizes of latents, this one among them."""
    return VAR if schedule in VAR else (schedule,)


def stretch_schedule(schedule: Schedule, grid: Grid) -> Schedule:
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
    """Return the schedule, adapted to a latent of another size, that has this number of tokens.

    Args:
        schedule: (h, w) of every scale.
        tokens: number of tokens of a picture.

    Returns:
        `schedule` itself, or what `adapt_schedule` or `stretch_schedule` makes of it for a square latent, the
        former if both do; None if no size fits.
    """
    for known in _siblings(schedule):
        if token_count(known) == tokens:
            return known

    def count(side: int) -> int:
        return token_count(stretch_schedule(schedule, (side, side)))

    side = bisect.bisect_left(range(1, MAX_GRID_SIDE + 1), tokens, key=count) + 1
    found = stretch_schedule(schedule, (side, side))
    return found if token_count(found) == tokens and side <= MAX_GRID_SIDE else None


def first_scales(schedule: Schedule, scales: int | None) -> Schedule:
    """Return the grids of the first `scales` scales of a schedule, or of all if it is None.

    Raises:
        TokensError: `scales` is not from 1 to the number of scales.
    """
    if scales is not None and not 1 <= scales <= len(schedule):
        raise TokensError(f"`scales` must be from 1 to {len(schedule)}, the number of scales, not {scales}")
    return schedule[:scales]


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


def phis_by_scale(scales: int, phis: int) -> list[int]:
    """Return the `phi_index` of every scale; nothing if there are no phis."""
    return [phi_index(k, scales, phis) for k in range(scales)] if phis else []


def to_json(schedule: Schedule) -> list[Any]:
    """Return the schedule as a list for JSON: the side of each square grid, [h, w] of each other grid."""
    return [h if h == w else [h, w] for h, w in schedule]


def describe(schedule: Schedule) -> str:
    """Return the schedule as text that `parse_schedule` reads."""
    return ",".join(str(h) if h == w else f"{h}x{w}" for h, w in schedule)
