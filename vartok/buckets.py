"""Buckets: the sizes to which pictures of different aspect ratios are cropped, each with its schedule.

A table of sizes is a file, or has a name: "infinity" or "sdxl". `make_buckets` scales a table to a number of
pixels and to whole latent cells, and gives each size its schedule. A picture goes to the bucket of the
nearest aspect ratio.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vartok.errors import ArgumentError, printable, quoted
from vartok.files import check_regular, os_error_reason
from vartok.schedule import Schedule, check_schedule, parse_schedule, schedule_of_size, stretch_schedule

Size = tuple[int, int]

BucketsLike: TypeAlias = str | Path | Sequence[Size]
"""A table of sizes as callers may give it: the name of a table, the path of a file, or (h, w) pairs."""

MAX_BUCKETS = 256
MAX_FILE = 1 << 16
"""Size limit of a table's file, in bytes."""

NAMED_PIXELS = 1024 * 1024
"""Number of pixels for which the sizes of the named tables are."""

SDXL = (
    *((512, side) for side in (2048, 1984, 1920, 1856)),
    *((576, side) for side in (1792, 1728, 1664)),
    *((640, side) for side in (1600, 1536)),
    *((704, side) for side in (1472, 1408, 1344)),
    *((768, side) for side in (1344, 1280)),
    *((832, side) for side in (1216, 1152)),
    *((896, side) for side in (1152, 1088)),
    *((960, side) for side in (1088, 1024)),
    *((1024, side) for side in (1024, 960)),
    *((1088, side) for side in (960, 896)),
    *((1152, side) for side in (896, 832)),
    *((1216, 832), (1280, 768), (1344, 768)),
    *((side, 704) for side in (1408, 1472)),
    *((side, 640) for side in (1536, 1600)),
    *((side, 576) for side in (1664, 1728, 1792)),
    *((side, 512) for side in (1856, 1920, 1984, 2048)),
)
"""(height, width) in pixels. Source: Podell et al. 2023, SDXL, arXiv:2307.01952, appendix I."""

INFINITY = (
    "1,2,4,6,8,12,16,20,24,32,40,48,64",
    "1,2,3,5x4,10x8,15x12,20x16,25x20,30x24,35x28,45x36,55x44,70x56",
    "1,2,4x3,8x6,12x9,16x12,20x15,24x18,28x21,36x27,48x36,60x45,72x54",
    "1,2,3x2,6x4,9x6,15x10,21x14,27x18,33x22,39x26,48x32,63x42,78x52",
    "1,2,3,7x4,11x6,14x8,21x12,28x16,35x20,42x24,56x32,70x40,84x48",
    "1,2,4x2,6x3,10x5,16x8,22x11,30x15,38x19,46x23,60x30,74x37,90x45",
    "1,2,5x2,10x4,15x6,20x8,25x10,30x12,40x16,50x20,65x26,80x32,100x40",
    "1,2,6x2,9x3,15x5,21x7,27x9,36x12,45x15,54x18,72x24,90x30,111x37",
)
"""Schedules of pictures that are as wide as high, or higher, for 1024x1024 pixels.

Those for 256x256, 512x512 and 768x768 pixels are their first 7, 10 and 12 scales. Source: Infinity,
arXiv:2412.04431, github.com/FoundationVision/Infinity, `dynamic_resolution.py`.
"""

INFINITY_SCALES = (7, 10, 12, 13)
"""Number of scales of Infinity's schedules for 256, 512, 768 and 1024 pixels a side."""


class Bucket(NamedTuple):
    """A size, and the schedule of the pictures that are cropped to it.

    Attributes:
        size: (height, width) of the encoded pixels.
        schedule: (h, w) of every scale, coarse to fine; the last one is the latent's.
    """

    size: Size
    schedule: Schedule


@dataclass(frozen=True)
class BucketTable:
    """A table of sizes, not yet scaled for a checkpoint.

    Attributes:
        sizes: (height, width) of each row; no two have one aspect ratio.
        pixels: number of pixels for which the sizes are; None for a caller's own table, each row of which
            stands for its aspect ratio, or for its own size in pixels.
        schedules: Infinity's schedule of each row for 1024x1024 pixels; empty for other tables.
    """

    sizes: tuple[Size, ...]
    pixels: int | None = None
    schedules: tuple[Schedule, ...] = ()


def nearest_bucket(buckets: Sequence[Bucket], height: int, width: int) -> Bucket:
    """Return the bucket whose aspect ratio is nearest to that of a picture, the first one of equals.

    The distance is that of the ratios' logarithms, so that a picture and its transpose are as far from their
    buckets. It is compared exactly, as a fraction.

    Args:
        buckets: at least one bucket.
        height: height of the picture, in pixels.
        width: width of the picture, in pixels.
    """

    def distance(bucket: Bucket) -> Fraction:
        ours, theirs = height * bucket.size[1], width * bucket.size[0]
        return Fraction(max(ours, theirs), min(ours, theirs))

    return min(buckets, key=distance)


def read_table(source: BucketsLike) -> BucketTable:
    """Return the table of sizes that a name, a file or a list describes.

    Args:
        source: "infinity" or "sdxl"; a file with a size HxW (height x width) on each line, and comments
            after "#"; a JSON file with a list of [h, w] pairs; or a sequence of (h, w) pairs.

    Raises:
        ArgumentError: the file cannot be read, or a row is not a size or has the aspect ratio of another.
    """
    if source == "sdxl":
        return BucketTable(SDXL, NAMED_PIXELS)
    if source == "infinity":
        tall = [parse_schedule(text) for text in INFINITY]
        wide = [tuple((w, h) for h, w in schedule) for schedule in tall]
        schedules = tuple(dict.fromkeys(both for pair in zip(tall, wide, strict=True) for both in pair))
        sizes = tuple((16 * schedule[-1][0], 16 * schedule[-1][1]) for schedule in schedules)
        return BucketTable(sizes, NAMED_PIXELS, schedules)
    if isinstance(source, str | Path):
        return BucketTable(_check_sizes(_read_rows(Path(source)), f"{printable(source)}: "))
    return BucketTable(_check_sizes({f"bucket {i}": row for i, row in enumerate(source)}, ""))


def make_buckets(
    table: BucketTable,
    *,
    image_size: Size,
    patch_nums: Schedule,
    step: int,
    size: Size | None = None,
    schedule: Schedule | None = None,
) -> tuple[Bucket, ...]:
    """Return the buckets of a table, for a checkpoint.

    Every side becomes a multiple of `step`. Rows that thereby get one aspect ratio become one bucket. The
    number of pixels of a bucket is about that of `size`.

    Args:
        table: the table of sizes.
        image_size: (height, width) of the checkpoint's own pictures.
        patch_nums: the checkpoint's own schedule.
        step: the checkpoint's downsampling factor.
        size: (height, width) whose area is the number of pixels of every bucket. If None, that of
            `image_size` for a named table; a caller's own table then keeps its sizes.
        schedule: (h, w) of every scale, stretched to the latent of each bucket. If None, `patch_nums`, or
            what `schedule_of_size` makes of it for `size`; but for the table "infinity" and 256, 512, 768 or
            1024 pixels a side, Infinity's own schedules.

    Raises:
        ArgumentError: a side of a table that keeps its sizes is no multiple of `step`.
        ScheduleError: a bucket has a grid that is larger than any schedule's.
    """
    if size is None and table.pixels is None:
        for height, width in table.sizes:
            if height % step or width % step:
                raise ArgumentError(
                    f"the sides of buckets must be multiples of {step} for this checkpoint, not "
                    f"{height}x{width}",
                    hint="set `size` to scale all buckets to its number of pixels",
                )
        latents = [(height // step, width // step) for height, width in table.sizes]
    else:
        cells = Fraction(math.prod(size or image_size), step * step)
        if schedule is None:
            for scales in INFINITY_SCALES if table.schedules else ():
                if cells == math.prod(table.schedules[0][scales - 1]):
                    return tuple(_bucket(one[scales - 1], one[:scales], step) for one in table.schedules)
        latents = [_scaled(row, cells, table.pixels) for row in table.sizes]
    distinct: dict[Fraction, Size] = {}
    for latent in latents:
        distinct.setdefault(Fraction(*latent), latent)
    # All buckets are stretched from one schedule, so that they have one number of scales.
    base, (height, width) = schedule or patch_nums, size or image_size
    if schedule is None and height % step == width % step == 0:
        base = schedule_of_size(patch_nums, (height // step, width // step))
    return tuple(_bucket(latent, stretch_schedule(base, latent), step) for latent in distinct.values())


def _bucket(latent: Size, schedule: Schedule, step: int) -> Bucket:
    return Bucket((latent[0] * step, latent[1] * step), check_schedule(schedule))


def _scaled(row: Size, cells: Fraction, pixels: int | None) -> Size:
    """Return (h, w) of the latent of a table's row, where a latent has about `cells` cells."""
    scale = math.sqrt(cells / (pixels or math.prod(row)))
    return max(1, round(row[0] * scale)), max(1, round(row[1] * scale))


def _read_rows(path: Path) -> dict[str, object]:
    """Return the rows of a table's file, by the names of their places: "line 3", or "bucket 2" in JSON.

    Raises:
        ArgumentError: the file cannot be read, or is no such table.
    """
    name = printable(path)
    try:
        check_regular(path)
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArgumentError(f"{name}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ArgumentError(
            f"{name}: {os_error_reason(error)}",
            hint="`buckets` is a file with a size HxW on each line, or infinity, or sdxl",
        ) from None
    if len(data) > MAX_FILE:
        raise ArgumentError(f"{name}: has more than {MAX_FILE:,} bytes, and no table of buckets has")
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"{name}: is no valid JSON: {printable(error, 100)}") from None
        return {f"bucket {i}": row for i, row in enumerate(found)}
    lines = {f"line {i}": line.partition("#")[0].strip() for i, line in enumerate(text.splitlines(), 1)}
    rows: dict[str, object] = {}
    for place, line in lines.items():
        sides = re.fullmatch(r"([0-9]{1,9}) *x *([0-9]{1,9})", line)
        if line:
            rows[place] = [int(sides[1]), int(sides[2])] if sides else line
    return rows


def _check_sizes(rows: dict[str, object], name: str) -> tuple[Size, ...]:
    """Return the sizes of a table's rows.

    Args:
        rows: the rows, by the names of their places.
        name: beginning of the messages.

    Raises:
        ArgumentError: there are no rows, or too many; or one is not a size, or has another's aspect ratio.
    """
    if not 1 <= len(rows) <= MAX_BUCKETS:
        raise ArgumentError(f"{name}a table has 1 to {MAX_BUCKETS} sizes of buckets, not {len(rows):,}")
    sizes: dict[Fraction, Size] = {}
    for place, row in rows.items():
        if not (
            isinstance(row, (list, tuple))
            and len(row) == 2
            and all(type(side) is int and 1 <= side < 10**9 for side in row)
        ):
            raise ArgumentError(f"{name}{place}: a bucket is a size as 256x384 (h x w), not {quoted(row)}")
        size = (row[0], row[1])
        if other := sizes.get(Fraction(*size)):
            raise ArgumentError(
                f"{name}{place}: {size[0]}x{size[1]} has the aspect ratio of {other[0]}x{other[1]}, to which "
                "all its pictures go: remove one"
            )
        sizes[Fraction(*size)] = size
    return tuple(sizes.values())
