"""JPEG and WebP files of at most a given size, as baselines for tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vartok.errors import ImageError
from vartok.images.tensors import as_pil


def compress(pixels: NDArray[np.uint8], format: str, budget: int) -> bytes:
    """Return the JPEG or WebP file of highest quality that has at most `budget` bytes, found by bisection.

    Args:
        pixels: [H, W, 3] or [H, W, 1] uint8.
        format: "jpeg" or "webp".
        budget: size limit in bytes. If the file of lowest quality exceeds it, that file is returned.

    Raises:
        ImageError: the format cannot hold that many pixels.
    """
    best, low, high = _smallest(pixels, format, 0), 0, 101  # invariant: `high` is over budget, or 101
    while high - low > 1 and len(best) <= budget:
        middle = (low + high) // 2
        data = _smallest(pixels, format, middle)
        if len(data) <= budget:
            best, low = data, middle
        else:
            high = middle
    return best


def decompress(data: bytes, channels: int = 3) -> NDArray[np.uint8]:
    """Return the pixels of a file that `compress` returned: [H, W, `channels`] uint8, 1 or 3."""
    with Image.open(io.BytesIO(data)) as file:
        pixels = np.asarray(file.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _smallest(pixels: NDArray[np.uint8], format: str, quality: int) -> bytes:
    """Return the smallest file of a quality, 0 to 100; a JPEG is baseline or progressive."""
    if format == "webp":
        return _save(pixels, format, quality=quality, method=6)
    kinds = (
        _save(pixels, format, quality=quality, optimize=True, subsampling="4:2:0", progressive=progressive)
        for progressive in (False, True)
    )
    return min(kinds, key=len)


def _save(pixels: NDArray[np.uint8], format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    try:
        as_pil(pixels).save(stream, format, **options)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise ImageError(
            f"a {format} file cannot hold {width:,} x {height:,} pixels", hint="leave `baselines` out"
        ) from error
    return stream.getvalue()
