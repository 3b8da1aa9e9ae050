"""Read the picture that tokens were made of, as it was encoded, and draw it beside what they decode to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from vartok.drawing import Tile
from vartok.errors import ImageError, counted, printable
from vartok.images import FITS, Fit, Picture
from vartok.images.tensors import to_bytes
from vartok.tokens import ImageTokens

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.tokenizer import Tokenizer


def read_original(read: Callable[[Fit], Picture], tokens: ImageTokens, tokenizer: Tokenizer) -> Pixels:
    """Read the picture that tokens were made of, with the fit that they were made with.

    Args:
        read: reads the picture with a fit.
        tokens: its tokens.
        tokenizer: the tokenizer that decodes them.

    Returns:
        [H, W, C] uint8, of the size that was encoded; levels of 16 bits are rounded.

    Raises:
        ImageError: the picture cannot be read; or it has another size than the original, so that it is
            another picture; or its fit is not known, as for random views and tokens without metadata.
    """
    image, config = tokens.image, tokenizer.config
    if tokens.view is not None or image.fit not in FITS:
        raise ImageError("which part of the picture was encoded is not known")
    picture = read(
        Fit(
            mode=image.fit,
            size=image.size,
            zoom=image.zoom,
            resample=image.resample,
            background=image.background,
            multiple=config.downsample,
            channels=config.in_channels,
            allow_damaged=image.damaged is not None,
        )
    )
    if (picture.width, picture.height) != (image.width, image.height):
        raise ImageError(
            f"the picture has {picture.width} x {picture.height} pixels, "
            f"but the original had {image.width} x {image.height}"
        )
    if picture.pixels.shape[:2] != image.size:
        raise ImageError("the picture cannot be brought to the size that was encoded")
    return to_bytes(picture.pixels)


def comparison_tiles(
    pictures: Sequence[Pixels], tokens: ImageTokens, original: Pixels | None, *, scales: int | None = None
) -> list[Tile]:
    """Label what tokens decode to, with the PSNR where the original is known.

    Args:
        pictures: what `decode_tokens` yields: the image of the first `scales` scales; or, for a build-up, the
            images of the first 1, 2, ... scales. [H, W, C] uint8.
        tokens: the tokens.
        original: the pixels that were encoded, of the same shape; None if not known.
        scales: number of scales that the last picture is decoded from; all if None.

    Returns:
        A tile for each picture. A single one is also labelled with the image's source and the checkpoint.
    """
    last = len(tokens.scales) if scales is None else scales
    tiles = []
    for number, pixels in enumerate(pictures, last - len(pictures) + 1):
        count = sum(rows * columns for rows, columns in tokens.grids[:number])
        quality = []
        if original is not None and original.shape == pixels.shape:
            quality = [f"{_psnr(original, pixels):.2f} dB"]
        if len(pictures) > 1:
            rows, columns = tokens.grids[number - 1]
            lines = [f"scale {number}, {rows}x{columns}", f"{counted(count, 'token')} so far", *quality]
        else:
            lines = [printable(tokens.image.source), _extent(pixels, tokens, number)]
            lines.append(", ".join([*quality, printable(tokens.model.name)]))
        tiles.append(Tile(pixels, "\n".join(lines)))
    return tiles


def build_up_heading(pictures: Sequence[Pixels], tokens: ImageTokens) -> str:
    """Return a line on the tokens whose first 1, 2, ... scales give pictures: source, extent, checkpoint."""
    extent = _extent(pictures[0], tokens, len(pictures))
    return ", ".join([printable(tokens.image.source), extent, printable(tokens.model.name)])


def has_name(name: PurePath, tokens: ImageTokens) -> bool:
    """Return whether a picture of a name may be the source of tokens, whose suffix data sets leave out."""
    return PurePath(tokens.image.source).name in (name.name, name.stem)


def may_be_one_picture(one: ImageTokens, other: ImageTokens) -> bool:
    """Return whether tokens of two files may be of one picture, by the names of their sources."""
    pairs = ((one, other), (other, one))
    return any(has_name(PurePath(tokens.image.source), others) for tokens, others in pairs)


def original_tile(original: Pixels, tokens: ImageTokens) -> Tile:
    """Label the pixels that were encoded."""
    image = tokens.image
    return Tile(original, f"original\n{image.width} x {image.height} pixels, {image.fit}")


def _extent(picture: Pixels, tokens: ImageTokens, scales: int) -> str:
    """Return the size of a picture, and the numbers of scales and tokens that it is decoded from."""
    height, width = picture.shape[:2]
    whole = len(tokens.schedule)
    shown = counted(whole, "scale") if scales == whole else f"{scales} of {counted(whole, 'scale')}"
    count = sum(rows * columns for rows, columns in tokens.grids[:scales])
    return f"{width} x {height} pixels, {shown}, {counted(count, 'token')}"


def _psnr(original: Pixels, copy: Pixels) -> float:
    from vartok.metrics import psnr  # imports torch

    return psnr(original, copy)
