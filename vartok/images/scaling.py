"""Scale pictures: whole or in strips, and so that they cover the size of crops."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from PIL.Image import Resampling

if TYPE_CHECKING:
    from vartok.images.bands import Bands
    from vartok.images.tensors import Pixels

LARGE = 1 << 24
"""Number of pixels above which a picture is large.

Only one large picture is decoded at a time. A large result of scaling is computed in strips.
"""

STRIP = 1 << 20
"""Number of pixels in a strip: the rows of a picture that are scaled or converted to sRGB at once."""

Window: TypeAlias = tuple[int, int, int, int]
"""(left, top, right, bottom) of a part of a picture, in pixels."""

_large_image_lock = threading.Lock()


def large_image_lock(pixels: int) -> AbstractContextManager[object]:
    """Return a context manager in which only one thread at a time processes a large picture, to save memory.

    Args:
        pixels: number of pixels of the picture; if at most `LARGE`, the context manager does nothing.
    """
    return _large_image_lock if pixels > LARGE else nullcontext()


class Cover(NamedTuple):
    """A picture that is to be scaled so that it covers the size of a crop, times a zoom.

    Attributes:
        image: the picture, which may have been reduced.
        columns: width that it is to be scaled to, in pixels.
        rows: height that it is to be scaled to, in pixels.
        filter: the filter to scale it with.
        center: columns left of the central crop, and rows above it.
        corner: columns left of the central area of the size times the zoom, and rows above it.
        margin: columns and rows of that area beyond the size.
    """

    image: Image.Image | Bands
    columns: int
    rows: int
    filter: Resampling
    center: tuple[int, int]
    corner: tuple[int, int]
    margin: tuple[int, int]


def cover(image: Image.Image | Bands, size: tuple[int, int], zoom: float) -> Cover:
    """Cover round(size * zoom), (height, width), by Lanczos.

    As in torchvision's Resize and CenterCrop, the long side is truncated to whole pixels, and the centre is
    rounded half to even.
    """
    height, width = size
    zoomed_rows, zoomed_columns = rows, columns = round(height * zoom), round(width * zoom)
    if rows * image.width >= columns * image.height:
        columns = int(rows * image.width / image.height)
    else:
        rows = int(columns * image.height / image.width)
    return Cover(
        image,
        columns,
        rows,
        Resampling.LANCZOS,
        center=(round((columns - width) / 2), round((rows - height) / 2)),
        corner=((columns - zoomed_columns) // 2, (rows - zoomed_rows) // 2),
        margin=(zoomed_columns - width, zoomed_rows - height),
    )


def cover_adm(image: Image.Image | Bands, size: tuple[int, int], zoom: float) -> Cover:
    """Cover int(size * zoom), (height, width), with the resampling "adm".

    Source: `center_crop_arr` of guided-diffusion's `image_datasets.py` (Dhariwal and Nichol 2021,
    arXiv:2105.05233), extended to two sides; the zoom as in LlamaGen's `extract_codes_c2i.py`.
    """
    height, width = size
    rows, columns = int(height * zoom), int(width * zoom)
    while image.width >= 2 * columns and image.height >= 2 * rows:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(columns / image.width, rows / image.height)
    scaled_columns, scaled_rows = round(image.width * scale), round(image.height * scale)
    left, top = (scaled_columns - columns) // 2, (scaled_rows - rows) // 2
    return Cover(
        image,
        scaled_columns,
        scaled_rows,
        Resampling.BICUBIC,
        center=(left + round((columns - width) / 2), top + round((rows - height) / 2)),
        corner=(left, top),
        margin=(columns - width, rows - height),
    )


def scale(image: Image.Image | Bands, width: int, height: int) -> Pixels:
    """Scale to width x height by Lanczos, and return the pixels: [height, width, C]."""
    [pixels] = scale_windows(image, width, height, [(0, 0, width, height)]).values()
    return pixels


def scale_windows(
    image: Image.Image | Bands,
    width: int,
    height: int,
    windows: list[Window],
    filter: Resampling = Resampling.LANCZOS,
) -> dict[Window, Pixels]:
    """Scale to width x height, and return the pixels of each window: [bottom - top, right - left, C].

    Up to `LARGE` pixels are computed whole and then cut, as resampling a part alone rounds a few levels
    differently. Of more pixels only the windows are computed, in strips.
    """
    if width * image.height > max(LARGE, width * height, image.width * image.height):
        # Scale the height first: Pillow may widen a tall picture first, which needs far more memory.
        image = image.resize((image.width, height), filter)
    if width * height <= LARGE:
        if (image.width, image.height) != (width, height):  # Pillow would copy it
            image = image.resize((width, height), filter)
        whole = (0, 0, width, height)
        return {window: np.array(image if window == whole else image.crop(window)) for window in windows}
    return {window: _scale_strips(image, width, height, window, filter) for window in windows}


def _scale_strips(
    image: Image.Image | Bands, width: int, height: int, window: Window, filter: Resampling
) -> Pixels:
    left, top, right, bottom = window
    one = np.asarray(image.crop((0, 0, 1, 1)))
    pixels = np.empty((bottom - top, right - left, one.shape[2]), one.dtype)
    x, y = image.width / width, image.height / height
    rows = max(1, STRIP // (right - left))
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        box = (left * x, start * y, right * x, stop * y)
        strip = image.resize((right - left, stop - start), filter, box)
        pixels[start - top : stop - top] = np.asarray(strip)
    return pixels
