"""Settings that encoding, decoding, evaluation and data sets share: fit, schedule, batch size, threads."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vartok.buckets import BucketsLike, make_buckets, read_table
from vartok.errors import ArgumentError, TokenFileError, VartokError, counted, warn
from vartok.images import MAX_BYTES, MAX_PIXELS, Fit, Views, parse_color
from vartok.processors import available_processors
from vartok.schedule import Schedule, ScheduleLike, adapt_schedule, as_schedule, describe, first_scales

if TYPE_CHECKING:
    from vartok.config import TokenizerConfig
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens

GPU_BATCH_SIZE = 32
SMALL_BATCH_SIZE = 16
MAX_WORKERS = 8
"""Largest default number of threads of a process that read pictures.

More add nothing, as one thread at a time holds Python's lock. A photo of 256 to 448 pixels took 1.6 ms of a
processor as JPEG and 2.2 ms as WebP, 0.8 and 0.5 ms of it under the lock: two and four threads read as fast
as any number. A JPEG of four times the width took 28 ms, 3.3 ms under the lock: eight threads. Sixteen took
no more time of the processor a picture than one.

Memory: a thread decodes up to `images.scaling.LARGE` pixels beside the others, and undecoded pictures that
wait take at most `parallel.MAX_NBYTES`.
"""


def parse_size(size: str | int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the (height, width) of a size.

    Args:
        size: the side of a square, (height, width), or a text such as "256" or "256x384" (height x width).

    Returns:
        (height, width) in pixels; None for None.

    Raises:
        ArgumentError: another text, a side below 1, or more than `MAX_PIXELS` pixels.
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
        raise ArgumentError(f"a side is at least 1 pixel, not {min(height, width)}")
    if height * width > MAX_PIXELS:
        side = math.isqrt(MAX_PIXELS)
        raise ArgumentError(
            f"a size of {height:,} x {width:,} is more than {MAX_PIXELS:,} pixels",
            hint=f"set `size` to at most {side:,} a side",
        )
    return height, width


def make_fit(
    mode: str = "crop",
    *,
    size: str | int | tuple[int, int] | None = None,
    zoom: float = 1.0,
    resample: str = "lanczos",
    background: str | tuple[int, int, int] = "white",
    buckets: BucketsLike | None = None,
    views: str = "center",
    seed: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    allow_damaged: bool = False,
) -> Fit:
    """Return the `Fit` of checked settings; `resolve_fit` then adapts it to a checkpoint.

    Args:
        mode: "crop", "pad", "stretch", "native" or "bucket"; see `Fit`.
        size: size of the encoded pixels, as `parse_size` takes it; 256x256 until `resolve_fit` if None.
        buckets: table of the sizes with "bucket", as `read_table` takes it; "sdxl" if None.
        views: views of each picture, as `Views.parse` takes them.
        seed: seed of random views; 0 if None, as for others.
        zoom: with "crop" and "bucket": scale up by this factor first, 1 to 100.
        resample: "lanczos"; or "adm", for "crop" and "bucket": as guided-diffusion crops; see `Fit`.
        background: colour under transparency and around a padded picture: a CSS colour or RGB levels.
        max_pixels: pixel limit of a picture, checked before it is decoded.
        max_bytes: size limit in bytes of a picture from a tar, a table, a URL or a stream.
        allow_damaged: take what can be decoded of a truncated or corrupt picture, which else is refused.

    Raises:
        ArgumentError: a value is invalid, or settings contradict each other.
    """
    if zoom != 1 and mode not in ("crop", "bucket"):
        raise ArgumentError(
            f"`zoom` needs the fit crop or bucket, not {mode}: leave it out, or set `fit` to crop"
        )
    if resample == "adm" and mode not in ("crop", "bucket"):
        raise ArgumentError(f"`resample` adm needs the fit crop or bucket, not {mode}: leave it out")
    if size is not None and mode == "native":
        raise ArgumentError("the fit native keeps the picture's own size: leave `size` out")
    if buckets is not None and mode != "bucket":
        raise ArgumentError("`buckets` needs the fit bucket", hint="set `fit` to bucket, or leave them out")
    if seed is not None and not str(views).startswith("random"):
        raise ArgumentError("`seed` is only for random views", hint="set `views` to random:N")
    sides = parse_size(size) or (256, 256)
    with as_argument_errors():
        color = parse_color(background) if isinstance(background, str) else background
        return Fit(
            mode=mode,
            size=sides,
            table=read_table("sdxl" if buckets is None else buckets) if mode == "bucket" else None,
            zoom=zoom,
            resample=resample,
            background=color,
            views=Views.parse(views, seed or 0),
            max_pixels=max_pixels,
            max_bytes=max_bytes,
            allow_damaged=allow_damaged,
        )


def make_schedule(schedule: ScheduleLike | None) -> Schedule | None:
    """Return the (h, w) grid of every scale, as `as_schedule` reads them; None for None.

    Raises:
        ArgumentError: `schedule` is not a schedule.
    """
    with as_argument_errors():
        return None if schedule is None else as_schedule(schedule)


def resolve_fit(
    tokenizers: Sequence[Tokenizer],
    fit: Fit,
    *,
    size: str | int | tuple[int, int] | None = None,
    schedule: Schedule | None = None,
    scales: int | None = None,
) -> Fit:
    """Return a fit whose `size`, `multiple`, `buckets` and `channels` suit all tokenizers.

    Args:
        tokenizers: tokenizers that get the same pixels.
        fit: the fit, as `make_fit` returns it.
        size: size of the encoded pixels, as `parse_size` takes it; the first tokenizer's own if None.
        schedule: (h, w) of every scale, or None.
        scales: number of scales to encode, or None.

    Raises:
        ArgumentError: tokenizers take different numbers of channels, a side is no multiple of a
            tokenizer's downsampling factor, the last grid of `schedule`
            is not the latent's, or `scales` is not from 1 to the number of scales. The fit "native" is not
            checked. Or `resolve_buckets` raises it.

    Warns:
        VartokWarning: sizes of buckets get the aspect ratio of others, and are left out.
    """
    channels = tokenizers[0].config.in_channels
    for tokenizer in tokenizers:
        if tokenizer.config.in_channels != channels:
            raise ArgumentError(
                f"{tokenizer.name} takes {counted(tokenizer.config.in_channels, 'channel')}, and "
                f"{tokenizers[0].name} takes {channels}: they cannot get the same pixels"
            )
    fit = dataclasses.replace(fit, channels=channels)
    if fit.table is not None:
        given = len(fit.table.sizes)
        fit = resolve_buckets(tokenizers[0].config, fit, size=size, schedule=schedule)
        if left_out := given - len(fit.buckets):
            warn(
                f"{left_out:,} of {counted(given, 'bucket')} are left out: in whole latent cells, they have "
                "the aspect ratios of others"
            )
        with as_argument_errors():
            for bucket in fit.buckets:
                first_scales(bucket.schedule, scales)
        return fit
    height, width = parse_size(size) or tokenizers[0].config.image_size
    for config in (tokenizer.config for tokenizer in tokenizers if fit.mode != "native"):
        step = config.downsample
        if height % step or width % step:
            raise ArgumentError(
                f"`size` must be a multiple of {step} for this checkpoint, not {height}x{width}"
            )
        latent = (height // step, width // step)
        if schedule and schedule[-1] != latent:
            h, w = (cells * step for cells in schedule[-1])
            raise ArgumentError(
                f"`schedule` must end in the latent's grid, here {describe((latent,))}",
                hint=f"set `size` to {h}x{w} for a schedule that ends in {describe(schedule[-1:])}",
            )
        with as_argument_errors():
            first_scales(schedule or adapt_schedule(config.patch_nums, latent), scales)
    multiple = math.lcm(*(tokenizer.config.downsample for tokenizer in tokenizers))
    return dataclasses.replace(fit, size=(height, width), multiple=multiple)


def resolve_buckets(
    config: TokenizerConfig,
    fit: Fit,
    *,
    size: str | int | tuple[int, int] | None = None,
    schedule: Schedule | None = None,
) -> Fit:
    """Return a fit with the buckets that `make_buckets` makes of its table; one without a table unchanged.

    Args:
        config: the checkpoint's configuration.
        fit: the fit, as `make_fit` returns it.
        size: size whose number of pixels is that of every bucket, as `parse_size` takes it; or None.
        schedule: (h, w) of every scale, stretched to each bucket; or None.

    Raises:
        ArgumentError: a side of a bucket is no multiple of the checkpoint's downsampling factor, or a bucket
            is too large.
    """
    if fit.table is None:
        return fit
    pixels = parse_size(size)
    with as_argument_errors():
        buckets = make_buckets(
            fit.table,
            image_size=config.image_size,
            patch_nums=config.patch_nums,
            step=config.downsample,
            size=pixels,
            schedule=schedule,
        )
        return dataclasses.replace(fit, size=pixels or config.image_size, buckets=buckets)


def resolve_tokenizer(
    tokenizer: Tokenizer | Callable[[], Tokenizer] | None,
    weights: str | Path | None,
    device: str,
    dtype: str,
    *,
    compile: bool = False,
) -> Tokenizer:
    """Return `tokenizer`, or its result if it is a function; if it is None, load the checkpoint `weights`."""
    if tokenizer is None:
        from vartok.loading import load

        return load(weights, device=device, dtype=dtype, compile=compile)
    return tokenizer() if callable(tokenizer) else tokenizer


def default_workers(workers: int | None = None, *, processors: int | None = None) -> int:
    """Return the number of threads of a process that read pictures.

    Args:
        workers: the number itself; if None, one more than `processors`, at most `MAX_WORKERS`. The extra
            thread computes while another one waits for a file.
        processors: processors that the process may use; `available_processors` if None.
    """
    return workers or min(MAX_WORKERS, (available_processors() if processors is None else processors) + 1)


def default_batch_size(batch_size: int | None, tokenizer: Tokenizer, pixels: int | None = None) -> int:
    """Return `batch_size`; if it is None, 32 on a GPU, 16 on a CPU for small pictures to encode, else 1.

    On a CPU the networks take one picture at a time whatever the batch; the quantizer takes several at once.

    Args:
        batch_size: the caller's batch size, or None.
        tokenizer: a loaded tokenizer.
        pixels: number of pixels of every picture to encode; None if sizes differ, or in decoding.
    """
    from vartok.operations.streams import MAX_BATCHED_PIXELS

    if batch_size:
        return batch_size
    if tokenizer.device.type != "cpu":
        return GPU_BATCH_SIZE
    return SMALL_BATCH_SIZE if pixels is not None and pixels <= MAX_BATCHED_PIXELS else 1


@contextmanager
def as_argument_errors() -> Iterator[None]:
    """A context that raises every VartokError in it as an ArgumentError of the same message and hint."""
    try:
        yield
    except VartokError as error:
        raise ArgumentError(str(error), hint=error.hint) from None


def check_model(tokens: ImageTokens, tokenizer: Tokenizer) -> None:
    """Check that an image's tokens were made with a tokenizer's codebook and phis.

    Raises:
        TokenFileError: they were made with another codebook or other phis.
    """
    try:
        tokenizer.check_model(tokens.model)
    except VartokError as error:
        hint = "give the checkpoint of the tokens as `weights`, or set `any_weights`"
        raise TokenFileError(str(error), hint=hint) from None
