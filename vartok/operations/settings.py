"""Settings that encoding, evaluation and data sets share: the fit of pictures, batch sizes, threads."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vartok.errors import ArgumentError, VartokError
from vartok.images import MAX_BYTES, MAX_PIXELS, Fit, parse_color
from vartok.schedule import Schedule, ScheduleLike, as_schedule, describe

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer

GPU_BATCH_SIZE = 32
SMALL_BATCH_SIZE = 16
MAX_WORKERS = 8


def parse_size(size: str | int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Read a size: one side for both, (height, width), or a text such as "256" or "256x384".

    Returns:
        (height, width) in pixels; None for None.

    Raises:
        ArgumentError: another text, or a side below 1.
    """
    if size is None:
        return None
    if isinstance(size, str):
        found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", size)
        if not found:
            raise ArgumentError(f"a size is one side or HEIGHTxWIDTH, as 256 or 256x384, not {size!r}")
        size = (int(found[1]), int(found[2] or found[1]))
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ArgumentError(f"a size is at least 1, not {min(height, width)}")
    if height * width > MAX_PIXELS:
        side = math.isqrt(MAX_PIXELS)
        raise ArgumentError(
            f"a size of {height:,} x {width:,} is more than {MAX_PIXELS:,} pixels",
            hint=f"set `size` to at most {side:,}",
        )
    return height, width


def make_fit(
    mode: str = "crop",
    *,
    size: str | int | tuple[int, int] | None = None,
    zoom: float = 1.0,
    background: str | tuple[int, int, int] = "white",
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Fit:
    """Make the fit that settings describe, before the checkpoint is known.

    Args:
        mode: "crop", "pad", "stretch" or "native".
        size: side, or (height, width), of the encoded pixels. `resolve_fit` sets the checkpoint's if None.
        zoom: with "crop": factor that a picture is scaled up by first, 1 to 100.
        background: colour under transparency and around a padded picture; a CSS colour or RGB levels.
        max_pixels: larger pictures are refused before they are decoded.
        max_bytes: larger pictures in tars, tables, URLs and streams are not read.

    Raises:
        ArgumentError: a value that no fit can have, or settings that contradict each other.
    """
    if zoom != 1 and mode != "crop":
        raise ArgumentError(f"`zoom` is for the fit crop, not {mode}")
    if size is not None and mode == "native":
        raise ArgumentError("the fit native keeps the picture's own size: leave `size` out")
    sides = parse_size(size) or (256, 256)
    with as_argument_errors():
        color = parse_color(background) if isinstance(background, str) else background
        return Fit(
            mode=mode, size=sides, zoom=zoom, background=color, max_pixels=max_pixels, max_bytes=max_bytes
        )


def make_schedule(schedule: ScheduleLike | None) -> Schedule | None:
    """Return `as_schedule` of a schedule; None for None.

    Raises:
        ArgumentError: not a schedule.
    """
    with as_argument_errors():
        return None if schedule is None else as_schedule(schedule)


def resolve_fit(
    tokenizers: Sequence[Tokenizer],
    fit: Fit,
    *,
    size: str | int | tuple[int, int] | None = None,
    schedule: Schedule | None = None,
) -> Fit:
    """Return the fit with its size and multiple set for the tokenizers.

    Args:
        tokenizers: all of them must take the fit's pixels.
        fit: a fit that `make_fit` made.
        size: the size that was asked for; the first tokenizer's own if None.
        schedule: (h, w) of every scale, or None.

    Raises:
        ArgumentError: a tokenizer cannot take that size, or not with that schedule.
    """
    height, width = parse_size(size) or tokenizers[0].config.image_size
    for step in (tokenizer.config.downsample for tokenizer in tokenizers if fit.mode != "native"):
        if height % step or width % step:
            raise ArgumentError(
                f"`size` must be a multiple of {step} for this checkpoint, not {height}x{width}"
            )
        latent = (height // step, width // step)
        if schedule and schedule[-1] != latent:
            raise ArgumentError(f"`schedule` must end in the latent's grid, here {describe((latent,))}")
    multiple = math.lcm(*(tokenizer.config.downsample for tokenizer in tokenizers))
    return dataclasses.replace(fit, size=(height, width), multiple=multiple)


def resolve_tokenizer(
    tokenizer: Tokenizer | Callable[[], Tokenizer] | None,
    weights: str | Path | None,
    device: str,
    dtype: str,
    *,
    compile: bool = False,
) -> Tokenizer:
    """Return the tokenizer that was given, or call the function that was given, or load the checkpoint."""
    if tokenizer is None:
        from vartok.loading import load

        return load(weights, device=device, dtype=dtype, compile=compile)
    return tokenizer() if callable(tokenizer) else tokenizer


def default_workers(workers: int | None = None) -> int:
    """Return `workers`, or one thread more than cores, up to 8: one waits for a file while others compute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or min(MAX_WORKERS, cores + 1)


def default_batch_size(batch_size: int | None, tokenizer: Tokenizer, pixels: int | None = None) -> int:
    """Return `batch_size`, or the best one for the device.

    A CPU computes encoder and decoder picture by picture whatever the batch, and quantizes small ones
    together.

    Args:
        batch_size: the size that was asked for.
        tokenizer: a loaded tokenizer.
        pixels: pixels of every picture; None where sizes differ.
    """
    from vartok.operations.streams import MAX_BATCHED_PIXELS

    if batch_size:
        return batch_size
    if tokenizer.device.type != "cpu":
        return GPU_BATCH_SIZE
    return SMALL_BATCH_SIZE if pixels is not None and pixels <= MAX_BATCHED_PIXELS else 1


@contextmanager
def as_argument_errors() -> Iterator[None]:
    """Turn errors about the caller's values into ArgumentError."""
    try:
        yield
    except VartokError as error:
        raise ArgumentError(str(error), hint=error.hint) from None
