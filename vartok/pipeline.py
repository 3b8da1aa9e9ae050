"""Many files through the tokenizer: worked on ahead in threads, computed in batches, handed on in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vartok.errors import DeviceError, TokensError, VartokError
from vartok.images import MAX_PIXELS, Fit, Picture, read_picture, to_pixels, to_tensor
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import ImageInfo, ImageTokens, split, stack

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class Encoded(NamedTuple):
    """A picture's tokens, and what the user should know of how it was read."""

    tokens: ImageTokens
    notes: tuple[str, ...]


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[S, str, Path | bytes]],
    fit: Fit,
    *,
    schedule: Schedule | None = None,
    batch_size: int = 1,
    workers: int = 1,
) -> Iterator[tuple[S, Encoded | VartokError]]:
    """Tokenize picture files.

    Args:
        tokenizer: a loaded tokenizer.
        pictures: of each: what the caller knows it by, what its tokens shall call it, and the file or
            what came through a pipe.
        fit: how a picture becomes the pixels that are encoded.
        schedule: (h, w) of every scale; the checkpoint's own, stretched to each latent, if None.
        batch_size: pictures that go through the model together, those of one size.
        workers: threads that read pictures while the model works.

    Yields:
        What the caller knows a picture by, and its tokens or why there are none; in order.
    """

    def encode(batch: list[tuple[str, Picture]]) -> list[Encoded]:
        images = to_tensor(np.stack([picture.pixels for _, picture in batch]))
        infos = [
            ImageInfo(
                source=name,
                width=picture.width,
                height=picture.height,
                size=(images.shape[2], images.shape[3]),
                fit=fit.mode,
                zoom=fit.zoom,
                device=tokenizer.device.type,
                dtype=tokenizer.dtype,
            )
            for name, picture in batch
        ]
        tokens = split(tokenizer.encode(images, schedule), tokenizer.info, infos)
        return [Encoded(item, picture.notes) for item, (_, picture) in zip(tokens, batch, strict=True)]

    ready = read_pictures(pictures, fit, workers=workers, limit=workers + batch_size)
    return in_batches(encode, ready, size=batch_size, key=lambda item: item[1].pixels.shape)


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

    return in_batches(decode, tokens, size=batch_size, key=lambda item: item.schedule)


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

    return ahead(read, pictures, workers=workers, limit=limit)


def ahead(work: Callable[[T], R], items: Iterable[T], *, workers: int, limit: int) -> Iterator[R]:
    """Do `work` in threads, on at most `limit` items at a time, and yield the results in order."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_batches(
    compute: Callable[[list[T]], list[R]],
    items: Iterable[tuple[S, T | VartokError]],
    *,
    size: int,
    key: Callable[[T], Hashable],
) -> Iterator[tuple[S, R | VartokError]]:
    """Compute items in batches of one key out of every `size` in a row; errors are handed on, in order.

    A batch that fails is tried again one by one, so that an item fails for itself alone.
    """

    def attempt(batch: list[T]) -> list[R | VartokError]:
        try:
            return [*compute(batch)]
        except (VartokError, MemoryError, RuntimeError) as error:
            if len(batch) == 1:
                return [_as_vartok_error(error)]
        return [result for item in batch for result in attempt([item])]

    items = iter(items)
    while window := list(itertools.islice(items, size)):
        groups: dict[Hashable, list[int]] = {}
        results: dict[int, R | VartokError] = {}
        batchable: dict[int, T] = {}
        for i, (_, item) in enumerate(window):
            if isinstance(item, VartokError):
                results[i] = item
            else:
                batchable[i] = item
                groups.setdefault(key(item), []).append(i)
        for members in groups.values():
            results.update(zip(members, attempt([batchable[i] for i in members]), strict=True))
        for i, (caller, _) in enumerate(window):
            yield caller, results[i]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is wanting, the processor's or a device's."""
    # On the CPU torch says so in a RuntimeError like any other.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _as_vartok_error(error: Exception) -> VartokError:
    """What the user should read; anything but want of memory is a defect of ours, and goes on."""
    if isinstance(error, VartokError):
        return error
    if is_out_of_memory(error):
        return DeviceError("not enough memory for a picture of this size: use a smaller one")
    raise error
