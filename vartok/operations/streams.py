"""Encode and decode streams of pictures: in batches, in order; pictures are read in threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np

from vartok.errors import ImageError, TokensError, VartokError, counted
from vartok.images import MAX_PIXELS, Fit, Picture, read_picture, to_pixels, to_tensor
from vartok.metadata import ImageInfo
from vartok.parallel import is_out_of_memory, map_batches, map_ordered
from vartok.schedule import adapt_schedule, token_count
from vartok.sources import Sample
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vartok.config import TokenizerConfig
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
        fit: how a picture becomes the pixels that are encoded.
        schedule: (h, w) of every scale; the checkpoint's own, adapted to each latent, if None. The fit
            "bucket" has a schedule for each of its buckets instead.
        max_tokens: limit of tokens of a picture with the fit "native".
        batch_size: largest number of pictures in a batch; the pictures of a batch have one size.
        workers: threads that read pictures. On a CPU they also encode pictures of up to `MAX_BATCHED_PIXELS`,
            each with its share of torch's threads, which keeps cores busier than all threads on one picture.
        group_key: maps a picture's id to a group; a batch never spans two groups, so batch composition does
            not depend on where a run resumes.

    Yields:
        A picture's id, and its tokens or the error that it failed with; in the order of `pictures`.
    """
    import torch

    device = tokenizer.device.type
    schedules = {bucket.size: bucket.schedule for bucket in fit.buckets}
    threads = torch.get_num_threads()

    def limit_threads() -> None:
        """Set the calling thread's share of torch's threads."""
        if device == "cpu":
            torch.set_num_threads(-(-threads // workers))

    def prepare(name: str, picture: Picture) -> _Prepared:
        height, width = picture.pixels.shape[:2]
        if fit.mode == "native" and schedule is None:
            check_token_count(tokenizer.config, (height, width), max_tokens)
        info = ImageInfo(
            source=name,
            width=picture.width,
            height=picture.height,
            size=(height, width),
            fit=fit.mode,
            zoom=fit.zoom,
            device=device,
            dtype=tokenizer.dtype,
            background=fit.background,
        )
        if device == "cpu" and height * width <= MAX_BATCHED_PIXELS:
            try:
                return _Prepared(info, picture.notes, tokenizer.latent(to_tensor(picture.pixels[None])))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
        return _Prepared(info, picture.notes, picture.pixels)

    def work(item: tuple[S, str, PictureSource]) -> tuple[S, _Prepared | VartokError]:
        item_id, name, file = item
        try:
            return item_id, prepare(name, file(fit) if callable(file) else read_picture(file, fit))
        except VartokError as error:
            return item_id, error

    def collate(batch: list[_Prepared]) -> tuple[list[_Prepared], Tensor]:
        latents = [item.data for item in batch if isinstance(item.data, torch.Tensor)]
        if latents:
            return batch, torch.cat(latents)
        images = to_tensor(np.stack([item.data for item in batch]))
        return batch, images.pin_memory() if device == "cuda" else images

    def tokenize(batch: list[_Prepared], values: Tensor) -> TokenMaps:
        grids = schedules.get(batch[0].info.size, schedule)
        if not isinstance(batch[0].data, torch.Tensor):
            return tokenizer.encode(values, grids)
        limit_threads()
        try:
            return tokenizer.quantize(values, grids)
        finally:
            torch.set_num_threads(threads)

    def encode(collated: tuple[list[_Prepared], Tensor]) -> list[ImageTokens]:
        batch, values = collated
        encoded = tokenize(batch, values).unstack(tokenizer.info, [item.info for item in batch])
        return [replace(tokens, notes=item.notes) for tokens, item in zip(encoded, batch, strict=True)]

    prepared = map_ordered(
        work,
        pictures,
        workers=workers,
        limit=workers + batch_size,
        initializer=limit_threads,
        nbytes=lambda item: _nbytes(item[2]),
    )
    try:
        with contextlib.closing(prepared):
            yield from map_batches(
                encode,
                prepared,
                size=batch_size,
                key=lambda item: (item.info.size, type(item.data)),
                group_key=group_key,
                collate=collate,
                prefetch=device != "cpu",
            )
    finally:
        torch.set_num_threads(threads)  # torch starts a new thread with the number that was set last


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
    """A picture that can join a batch: as [H, W, 3] uint8 pixels, or as its [1, C, h, w] latent."""

    info: ImageInfo
    notes: tuple[str, ...]
    data: NDArray[np.uint8] | Tensor


def _nbytes(picture: PictureSource) -> int:
    """Return the bytes of memory that a picture takes before it is decoded; 0 for a path."""
    owner = getattr(picture, "__self__", picture)  # the sample of `sample.read`
    return owner.nbytes if isinstance(owner, Sample) else len(owner) if isinstance(owner, bytes) else 0


def decode_tokens(
    tokenizer: Tokenizer,
    tokens: Iterable[tuple[S, ImageTokens | VartokError]],
    *,
    scales: int | None = None,
    strip: bool = False,
    batch_size: int = 1,
) -> Iterator[tuple[S, list[NDArray[np.uint8]] | VartokError]]:
    """Decode a stream of tokens to pixels.

    Args:
        tokenizer: a loaded tokenizer. The caller checks that the tokens belong to it.
        tokens: for each picture an id, and its tokens; an error in their place is yielded unchanged.
        scales: decode only the first `scales` scales; all if None.
        strip: yield the images decoded from the first 1, 2, ... scales, instead of the last of these alone.
        batch_size: largest number of pictures in a batch; the pictures of a batch have one schedule.

    Yields:
        A picture's id, and its pixels or the error that it failed with. The pixels are a list of one
        [H, W, 3] uint8 array; with `strip`, of one array per scale. In the order of `tokens`.
    """

    def decode(batch: list[ImageTokens]) -> list[list[NDArray[np.uint8]]]:
        maps = TokenMaps.stack(batch)
        count = len(maps.maps) if scales is None else scales
        height, width = (cells * tokenizer.config.downsample for cells in maps.schedule[-1])
        pictures = count if strip else 1
        if height * width * pictures > MAX_PIXELS:
            raise TokensError(
                f"would decode to {counted(pictures, 'picture')} of {width:,} x {height:,} pixels, "
                f"more than {MAX_PIXELS:,} pixels in all"
            )
        images = tokenizer.decode_prefixes(maps, scales) if strip else [tokenizer.decode(maps, scales)]
        decoded = [to_pixels(image) for image in images]
        return [[pixels[b] for pixels in decoded] for b in range(len(batch))]

    return map_batches(decode, tokens, size=batch_size, key=lambda item: item.schedule)
