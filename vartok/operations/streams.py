"""Streams of pictures through a tokenizer: read in threads, computed in batches, yielded in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np

from vartok.errors import TokensError, VartokError
from vartok.images import MAX_PIXELS, Fit, Picture, read_picture, to_pixels, to_tensor
from vartok.metadata import ImageInfo
from vartok.parallel import is_out_of_memory, map_batches, map_ordered
from vartok.sources import Sample
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vartok.schedule import Schedule
    from vartok.tokenizer import Tokenizer

MAX_BATCHED_PIXELS = 1 << 17
"""Pixels of the largest picture whose latent is computed in a worker thread on a CPU. Larger pictures need
too much memory for several at once, and keep all cores busy by themselves."""

S = TypeVar("S")

PictureSource: TypeAlias = Path | bytes | Callable[[Fit], Picture]
"""A picture's file, its bytes, or a function that reads it and may raise a VartokError."""


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[S, str, PictureSource]],
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    batch_size: int = 1,
    workers: int = 1,
    group_key: Callable[[S], Hashable] | None = None,
) -> Generator[tuple[S, ImageTokens | VartokError], None, None]:
    """Tokenize a stream of pictures.

    torch's number of threads belongs to the whole process. On a CPU every worker thread takes its share of
    them while it works, and the caller has all of them back whenever a result is yielded.

    Args:
        tokenizer: a loaded tokenizer.
        pictures: for each picture an id, the name that its tokens get as `image.source`, and the picture.
        fit: how a picture becomes the pixels that are encoded.
        schedule: (h, w) of every scale; the checkpoint's own, adapted to each latent, if None.
        batch_size: pictures of one size that go through the model together.
        workers: threads that read pictures. On a CPU they run the encoder too, each with its share of
            torch's threads: that keeps cores busier than all threads on one picture.
        group_key: maps a picture's id to a group; a batch never spans two groups, so batch composition does
            not depend on where a run resumes.

    Yields:
        A picture's id, and its tokens or the error of the picture; in the order of `pictures`.
    """
    import torch

    device = tokenizer.device.type
    threads = torch.get_num_threads()

    def limit_threads() -> None:
        """Set the calling thread's share of torch's threads."""
        if device == "cpu":
            torch.set_num_threads(-(-threads // workers))

    def prepare(name: str, picture: Picture) -> _Prepared:
        height, width = picture.pixels.shape[:2]
        info = ImageInfo(
            source=name,
            width=picture.width,
            height=picture.height,
            size=(height, width),
            fit=fit.mode,
            zoom=fit.zoom,
            device=device,
            dtype=tokenizer.dtype,
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
        if not isinstance(batch[0].data, torch.Tensor):
            return tokenizer.encode(values, schedule)
        limit_threads()
        try:
            return tokenizer.quantize(values, schedule)
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


class _Prepared(NamedTuple):
    """A picture before its batch: its [H, W, 3] uint8 pixels, or already its [1, C, h, w] latent."""

    info: ImageInfo
    notes: tuple[str, ...]
    data: NDArray[np.uint8] | Tensor


def _nbytes(picture: PictureSource) -> int:
    """Return the memory that an unread picture takes, in bytes."""
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
        strip: decode the first scale, the first two, ..., instead of all together only.
        batch_size: pictures of one schedule that go through the model together.

    Yields:
        A picture's id, and its pixels: a list of one [H, W, 3] uint8 array, or of one per scale for a strip;
        in the order of `tokens`.
    """

    def decode(batch: list[ImageTokens]) -> list[list[NDArray[np.uint8]]]:
        maps = TokenMaps.stack(batch)
        count = len(maps.maps) if scales is None else scales
        height, width = (cells * tokenizer.config.downsample for cells in maps.schedule[-1])
        pictures = count if strip else 1
        if height * width * pictures > MAX_PIXELS:
            raise TokensError(
                f"decode to {pictures} of {width:,} x {height:,} pixels, more than {MAX_PIXELS:,} in all"
            )
        images = tokenizer.decode_prefixes(maps, scales) if strip else [tokenizer.decode(maps, scales)]
        decoded = [to_pixels(image) for image in images]
        return [[pixels[b] for pixels in decoded] for b in range(len(batch))]

    return map_batches(decode, tokens, size=batch_size, key=lambda item: item.schedule)
