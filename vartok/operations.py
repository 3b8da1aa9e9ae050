"""Many files through the tokenizer: worked on ahead in threads, computed in batches, handed on in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vartok.errors import TokensError, VartokError
from vartok.images import MAX_PIXELS, Fit, Picture, read_picture, to_pixels, to_tensor
from vartok.parallel import is_out_of_memory, map_batches, map_ordered
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import ImageInfo, ImageTokens, TokenMaps, stack

MAX_BATCHED_PIXELS = 1 << 17
"""Pixels of the largest picture that is taken through the networks beside others, on a CPU: larger ones
would need too much memory at once, and keep all cores busy by themselves."""

S = TypeVar("S")


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[S, str, Path | bytes | Callable[[Fit], Picture]]],
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    batch_size: int = 1,
    workers: int = 1,
    group_key: Callable[[S], Hashable] | None = None,
) -> Generator[tuple[S, ImageTokens | VartokError], None, None]:
    """Tokenize pictures.

    Args:
        tokenizer: a loaded tokenizer.
        pictures: of each: what the caller knows it by, what its tokens shall call it, and the file, what
            came through a pipe, or what reads it, which may raise a VartokError.
        fit: how a picture becomes the pixels that are encoded.
        schedule: (h, w) of every scale; the checkpoint's own, stretched to each latent, if None.
        batch_size: pictures that go through the model together, those of one size.
        workers: threads that read pictures, and on a CPU take them through the networks too, each with
            its share of torch's threads: that keeps cores busier than all of them on one picture.
        group_key: tells of what the caller knows a picture by whose batches it is in: of those in a row that
            it gives one value. So their batches are the same whatever comes before and after.

    Yields:
        What the caller knows a picture by, and its tokens or why there are none; in order.
    """
    device = tokenizer.device.type
    threads = torch.get_num_threads()

    def share() -> None:
        """Leave this thread its share of torch's threads."""
        if device == "cpu":
            torch.set_num_threads(-(-threads // workers))

    def prepare(name: str, picture: Picture) -> _Ready:
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
                return _Ready(info, picture.notes, tokenizer.latent(to_tensor(picture.pixels[None])))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
        return _Ready(info, picture.notes, picture.pixels)

    def work(
        item: tuple[S, str, Path | bytes | Callable[[Fit], Picture]],
    ) -> tuple[S, _Ready | VartokError]:
        caller, name, file = item
        try:
            return caller, prepare(name, file(fit) if callable(file) else read_picture(file, fit))
        except VartokError as error:
            return caller, error

    def collate(batch: list[_Ready]) -> tuple[list[_Ready], Tensor]:
        latents = [item.data for item in batch if isinstance(item.data, Tensor)]
        if latents:
            return batch, torch.cat(latents)
        images = to_tensor(np.stack([item.data for item in batch]))
        return batch, images.pin_memory() if device == "cuda" else images

    def tokenize(batch: list[_Ready], values: Tensor) -> TokenMaps:
        if not isinstance(batch[0].data, Tensor):
            return tokenizer.encode(values, schedule)
        share()
        try:
            return tokenizer.quantize(values, schedule)
        finally:
            torch.set_num_threads(threads)

    def encode(loaded: tuple[list[_Ready], Tensor]) -> list[ImageTokens]:
        batch, values = loaded
        maps = tokenize(batch, values)
        rows = maps.flatten().cpu().numpy()  # one transfer from a device
        return [
            replace(ImageTokens.unflatten(flat, maps.schedule, tokenizer.info, item.info), notes=item.notes)
            for flat, item in zip(rows, batch, strict=True)
        ]

    ready = map_ordered(work, pictures, workers=workers, limit=workers + batch_size, initializer=share)
    try:
        with contextlib.closing(ready):
            yield from map_batches(
                encode,
                ready,
                size=batch_size,
                key=lambda item: (item.info.size, type(item.data)),
                group_key=group_key,
                collate=collate,
                prefetch=device != "cpu",
            )
    finally:
        torch.set_num_threads(threads)  # a new thread has as many as any thread took last


class _Ready(NamedTuple):
    """A picture before its batch: its [H, W, 3] uint8 pixels, or already its [1, C, h, w] latent."""

    info: ImageInfo
    notes: tuple[str, ...]
    data: NDArray[np.uint8] | Tensor


def decode_tokens(
    tokenizer: Tokenizer,
    tokens: Iterable[tuple[S, ImageTokens | VartokError]],
    *,
    scales: int | None = None,
    strip: bool = False,
    batch_size: int = 1,
) -> Iterator[tuple[S, list[NDArray[np.uint8]] | VartokError]]:
    """Draw the pictures of tokens.

    Args:
        tokenizer: a loaded tokenizer; that the tokens are its own is the caller's to check.
        tokens: of each picture: what the caller knows it by, and its tokens; errors are handed on.
        scales: take only the first `scales` scales.
        strip: draw the pictures after 1, 2, ... scales, instead of the last alone.
        batch_size: pictures that go through the model together, those of one schedule.

    Yields:
        What the caller knows a picture by, and its pixels, [H, W, 3] uint8, one or as many as
        scales; in order.
    """

    def decode(batch: list[ImageTokens]) -> list[list[NDArray[np.uint8]]]:
        maps = stack(batch)
        count = len(maps.maps) if scales is None else scales
        height, width = (cells * tokenizer.config.downsample for cells in maps.schedule[-1])
        pictures = count if strip else 1
        if height * width * pictures > MAX_PIXELS:
            raise TokensError(
                f"{pictures} of {width:,} x {height:,} pixels would be drawn, more than {MAX_PIXELS:,} in all"
            )
        images = tokenizer.decode_prefixes(maps, scales) if strip else [tokenizer.decode(maps, scales)]
        drawn = [to_pixels(image) for image in images]
        return [[pixels[b] for pixels in drawn] for b in range(len(batch))]

    return map_batches(decode, tokens, size=batch_size, key=lambda item: item.schedule)


def read_pictures(
    pictures: Iterable[tuple[S, str, Path | bytes]], fit: Fit, *, workers: int, limit: int
) -> Iterator[tuple[S, tuple[str, Picture] | VartokError]]:
    """Read picture files in threads, at most `limit` ahead; each keeps what the caller knows it by."""

    def read(item: tuple[S, str, Path | bytes]) -> tuple[S, tuple[str, Picture] | VartokError]:
        caller, name, file = item
        try:
            return caller, (name, read_picture(file, fit))
        except VartokError as error:
            return caller, error

    return map_ordered(read, pictures, workers=workers, limit=limit)
