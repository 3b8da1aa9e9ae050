"""Decode streams of tokens to pixels: in batches, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from vartok.errors import TokensError, VartokError, counted
from vartok.images import MAX_PIXELS, to_pixels
from vartok.images import restore_size as scale_back
from vartok.metadata import ImageInfo
from vartok.operations.streams import picture_weight
from vartok.parallel import map_batches
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.tokenizer import Tokenizer

S = TypeVar("S")


def decode_tokens(
    tokenizer: Tokenizer,
    tokens: Iterable[tuple[S, ImageTokens | VartokError]],
    *,
    scales: int | None = None,
    strip: bool = False,
    batch_size: int = 1,
    bits: Literal[8, 16] = 8,
) -> Iterator[tuple[S, list[Pixels] | VartokError]]:
    """Decode a stream of tokens to pixels.

    Args:
        tokenizer: a loaded tokenizer. The caller checks that the tokens belong to it.
        tokens: for each picture an id, and its tokens; an error in their place is yielded unchanged.
        scales: decode only the first `scales` scales; all if None.
        strip: yield the images decoded from the first 1, 2, ... scales, instead of the last of these alone.
        batch_size: pictures of the checkpoint's own size in a batch, at most; a larger one counts as several.
            The pictures of a batch have one schedule.
        bits: bits of a level of the pixels.

    Yields:
        A picture's id, and its pixels or the error that it failed with. The pixels are a list of one
        [H, W, C] array, uint8 or uint16; with `strip`, of one array per scale. In the order of `tokens`.
    """
    dtype = np.uint8 if bits == 8 else np.uint16

    def decode(batch: list[ImageTokens]) -> list[list[Pixels]]:
        maps = TokenMaps.stack(batch)
        count = len(maps.maps) if scales is None else scales
        height, width = (cells * tokenizer.config.downsample for cells in maps.schedule[-1])
        pictures = count if strip else 1
        room = pixels_room(tokenizer.config.in_channels)
        if height * width * pictures > room:
            raise TokensError(
                f"would decode to {counted(pictures, 'picture')} of {width:,} x {height:,} pixels, "
                f"more than {room:,} pixels in all"
            )
        images = tokenizer.decode_prefixes(maps, scales) if strip else [tokenizer.decode(maps, scales)]
        decoded = [to_pixels(image, dtype) for image in images]
        return [[pixels[b] for pixels in decoded] for b in range(len(batch))]

    def weight(item: ImageTokens) -> float:
        step, (rows, columns) = tokenizer.config.downsample, item.schedule[-1]
        return picture_weight(tokenizer.config, (rows * step, columns * step))

    return map_batches(
        decode,
        tokens,
        size=batch_size,
        key=lambda item: (item.schedule, len(item.scales)),
        weight=weight,
    )


def pixels_room(channels: int) -> int:
    """Return the largest number of pixels that decoded pictures of so many channels may have in all."""
    return MAX_PIXELS * 3 // max(3, channels)


def join_pictures(pictures: Sequence[Pixels], image: ImageInfo, *, restore_size: bool) -> Pixels:
    """Join pictures side by side.

    Args:
        pictures: what `decode_tokens` yields: [H, W, C] arrays of one size.
        image: metadata of the image.
        restore_size: scale each picture to the width and height of the original first.

    Raises:
        ImageError: the fit cannot be undone, see `images.restore_size`.
    """
    return np.concatenate(restore_pictures(pictures, image) if restore_size else pictures, axis=1)


def restore_pictures(pictures: Sequence[Pixels], image: ImageInfo) -> list[Pixels]:
    """Scale pictures, as `join_pictures` takes them, to the width and height of the original.

    Raises:
        ImageError: the fit cannot be undone, see `images.restore_size`.
    """
    room = pixels_room(pictures[0].shape[2]) // len(pictures)
    return [
        scale_back(pixels, width=image.width, height=image.height, mode=image.fit, max_pixels=room)
        for pixels in pictures
    ]
