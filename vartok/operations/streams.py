"""Encode streams of pictures: in batches, in order; pictures are read in threads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np

from vartok.errors import ImageError, VartokError
from vartok.images import Fit, Picture, read_picture
from vartok.metadata import ImageInfo, View
from vartok.parallel import is_out_of_memory, map_batches, map_ordered
from vartok.schedule import adapt_schedule, token_count
from vartok.sources import Sample
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vartok.config import TokenizerConfig
    from vartok.images.tensors import Pixels
    from vartok.schedule import Schedule
    from vartok.tokenizer import Tokenizer

MAX_BATCHED_PIXELS = 1 << 17
"""Number of pixels up to which a worker thread computes the latent of a picture, on a CPU. Several larger
pictures at once need too much memory, and a single one keeps all cores busy."""

MAX_NATIVE_TOKENS = 1 << 18
"""Number of tokens up to which the fit "native" takes a picture by default: 25 million pixels.

They take 2.0 GB of memory, and three minutes on two cores, with the shipped checkpoint.
"""

S = TypeVar("S")

PictureSource: TypeAlias = Path | bytes | Callable[[Fit], Picture]
"""A picture's file, its bytes, or a function that reads it and may raise a VartokError."""


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[S, str, PictureSource]],
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    scales: int | None = None,
    max_tokens: int = MAX_NATIVE_TOKENS,
    batch_size: int = 1,
    workers: int = 1,
    group_key: Callable[[S], Hashable] | None = None,
) -> Generator[tuple[S, ImageTokens | VartokError], None, None]:
    """Tokenize a stream of pictures.

    On a CPU each worker thread computes with its share of torch's threads. Whenever a result is yielded, the
    calling thread has torch's full number of threads again.

    Args:
        tokenizer: a loaded tokenizer.
        pictures: for each picture an id, the `image.source` of its tokens, and the picture.
        fit: how a picture becomes the pixels that are encoded; its `views` are "center".
        schedule: (h, w) of every scale; the checkpoint's own, adapted to each latent, if None. The fit
            "bucket" has a schedule for each of its buckets instead.
        scales: encode only the first `scales` scales; all if None.
        max_tokens: limit of tokens of a picture with the fit "native".
        batch_size: pictures of the checkpoint's own size in a batch, at most; a larger one counts as several,
            see `picture_weight`. The pictures of a batch have one size.
        workers: threads that read pictures. On a CPU they also encode pictures of up to `MAX_BATCHED_PIXELS`,
            each with its share of torch's threads, which keeps cores busier than all threads on one picture.
        group_key: maps a picture's id to a group; a batch never spans two groups, so batch composition does
            not depend on where a run resumes.

    Yields:
        A picture's id, and its tokens or the error that it failed with; in the order of `pictures`.
    """
    with contextlib.closing(
        encode_views(
            tokenizer,
            pictures,
            fit,
            schedule=schedule,
            scales=scales,
            max_tokens=max_tokens,
            batch_size=batch_size,
            workers=workers,
            group_key=group_key,
        )
    ) as encoded:
        for item_id, views in encoded:
            yield item_id, views if isinstance(views, VartokError) else views[0]


def encode_views(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[S, str, PictureSource]],
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    scales: int | None = None,
    latents: bool = False,
    max_tokens: int = MAX_NATIVE_TOKENS,
    batch_size: int = 1,
    workers: int = 1,
    group_key: Callable[[S], Hashable] | None = None,
) -> Generator[tuple[S, list[ImageTokens] | VartokError], None, None]:
    """Tokenize the views of a stream of pictures, as `encode_pictures` does pictures.

    A picture is read once for all its views; if one of them fails, the picture fails.

    Args:
        tokenizer: see `encode_pictures`, also for the arguments that are not described here.
        pictures: see there.
        fit: how a picture becomes the pixels of its views.
        schedule: see there.
        scales: see there.
        latents: keep the latents too, in float16.
        max_tokens: see there.
        batch_size: views of the checkpoint's own size in a batch, at most; a larger one counts as several.
        workers: see there.
        group_key: see there.

    Yields:
        A picture's id, and the tokens of its views or the error that it failed with.
    """
    import torch

    from vartok.runtime import pin_for

    device = tokenizer.device.type
    schedules = {bucket.size: bucket.schedule for bucket in fit.buckets}
    at_once = max(1, batch_size // fit.views.count)  # pictures
    threads = torch.get_num_threads()

    def limit_threads() -> None:
        """Set the calling thread's share of torch's threads."""
        if device == "cpu":
            torch.set_num_threads(-(-threads // workers))

    def prepare(name: str, picture: Picture) -> _Prepared:
        views = picture.views or (None,)
        pixels = picture.pixels if picture.views else picture.pixels[None]
        height, width = pixels.shape[1:3]
        if fit.mode == "native" and schedule is None:
            check_token_count(tokenizer.config, (height, width), max_tokens)
        info = ImageInfo(
            source=name,
            width=picture.width,
            height=picture.height,
            size=(height, width),
            fit=fit.mode,
            zoom=fit.zoom,
            resample=fit.resample,
            device=device,
            dtype=tokenizer.dtype,
            background=fit.background,
            damaged=picture.damage,
        )
        if device == "cpu" and height * width <= MAX_BATCHED_PIXELS:
            try:
                found = [tokenizer.latent(view[None]) for view in pixels]
                return _Prepared(info, picture.notes, views, torch.cat(found))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
        return _Prepared(info, picture.notes, views, pixels)

    def work(item: tuple[S, str, PictureSource]) -> tuple[S, _Prepared | VartokError]:
        item_id, name, file = item
        try:
            return item_id, prepare(name, file(fit) if callable(file) else read_picture(file, fit, key=name))
        except VartokError as error:
            return item_id, error

    def weight(item: _Prepared) -> float:
        return picture_weight(tokenizer.config, item.info.size)

    def collate(batch: list[_Prepared]) -> tuple[list[_Prepared], Tensor]:
        found = [item.data for item in batch if isinstance(item.data, torch.Tensor)]
        if found:
            return batch, torch.cat(found)
        pixels = torch.from_numpy(np.concatenate([item.data for item in batch]))
        return batch, pin_for(tokenizer.device, pixels)

    def tokenize(batch: list[_Prepared], values: Tensor) -> tuple[TokenMaps, Tensor | None]:
        """Return the tokens of images or latents; and their latents, if they are to be kept."""
        grids = schedules.get(batch[0].info.size, schedule)
        if not isinstance(batch[0].data, torch.Tensor):
            if not latents:
                return tokenizer.encode(values, grids, scales), None
            values = tokenizer.latent(values)
            return tokenizer.quantize(values, grids, scales), values
        limit_threads()
        try:
            return tokenizer.quantize(values, grids, scales), values if latents else None
        finally:
            torch.set_num_threads(threads)

    def encode(collated: tuple[list[_Prepared], Tensor]) -> list[list[ImageTokens]]:
        batch, values = collated
        infos = [item.info for item in batch for _ in item.views]
        rows: list[tuple[ImageTokens, NDArray[np.float16] | None]] = []
        fitting = max(1, int(batch_size // weight(batch[0])))
        for part in values.split(fitting):
            maps, kept = tokenize(batch, part)
            tokens = maps.unstack(tokenizer.info, infos[len(rows) : len(rows) + len(part)])
            rows += zip(tokens, [None] * len(part) if kept is None else _to_float16(kept), strict=True)
        found = iter(rows)
        return [
            [
                replace(tokens, view=view, latent=latent, notes=item.notes)
                for view, (tokens, latent) in zip(item.views, found, strict=False)
            ]
            for item in batch
        ]

    prepared = map_ordered(
        work,
        pictures,
        workers=workers,
        limit=workers + at_once,
        initializer=limit_threads,
        nbytes=lambda item: _nbytes(item[2]),
    )
    try:
        with contextlib.closing(prepared):
            yield from map_batches(
                encode,
                prepared,
                size=at_once,
                key=lambda item: (item.info.size, item.data.dtype),
                weight=weight,
                group_key=group_key,
                collate=collate,
                prefetch=device != "cpu",
            )
    finally:
        torch.set_num_threads(threads)  # torch starts a new thread with the number that was set last


def picture_weight(config: TokenizerConfig, size: tuple[int, int]) -> float:
    """Return how many pictures of the checkpoint's own size a picture counts as in a batch, 1 or more.

    Networks take memory by the pixel, so batches are bounded by pixels: 32 pictures of 256x256 pixels take
    as much as 2 of 1024x1024.

    Args:
        config: the checkpoint's configuration.
        size: (height, width) of the picture.
    """
    return max(1.0, math.prod(size) / math.prod(config.image_size))


def check_token_count(config: TokenizerConfig, size: tuple[int, int], max_tokens: int) -> None:
    """Check that a picture does not take too many tokens, before it is encoded.

    Args:
        config: the checkpoint's configuration.
        size: (height, width) of the pixels to encode.
        max_tokens: limit of the tokens.

    Raises:
        ImageError: it takes more.
    """
    latent = (size[0] // config.downsample, size[1] // config.downsample)
    count = token_count(adapt_schedule(config.patch_nums, latent))
    if count > max_tokens:
        taken = f"its {size[1]:,} x {size[0]:,} pixels would take {count:,} tokens"
        raise ImageError(
            f"{taken}, more than the limit of {max_tokens:,}",
            hint="set `max_tokens` higher if there is memory for it, or set another `fit`",
        )


class _Prepared(NamedTuple):
    """The views of a picture that can join a batch.

    Attributes:
        info: the picture's metadata.
        notes: remarks on how it was read.
        views: V views, or None alone for a picture without.
        data: [V, H, W, C] pixels, or their [V, z, h, w] latents.
    """

    info: ImageInfo
    notes: tuple[str, ...]
    views: tuple[View | None, ...]
    data: Pixels | Tensor


def _to_float16(latents: Tensor) -> list[NDArray[np.float16]]:
    """Return [B, C, h, w] latents as B arrays [C, h, w] of float16.

    Raises:
        ImageError: a value is beyond the range of float16.
    """
    halves: NDArray[np.float16] = latents.half().cpu().numpy()
    if not np.isfinite(halves).all():
        raise ImageError("its latent has values beyond float16's range", hint="leave `latents` out")
    return list(halves)


def _nbytes(picture: PictureSource) -> int:
    """Return the bytes of memory that a picture takes before it is decoded; 0 for a path."""
    owner = getattr(picture, "__self__", picture)  # the sample of `sample.read`
    return owner.nbytes if isinstance(owner, Sample) else len(owner) if isinstance(owner, bytes) else 0
