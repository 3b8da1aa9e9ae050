"""Encode pixels as picture files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vartok.errors import ImageError, quoted
from vartok.images.tensors import check_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("png", "jpg", "webp")
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}

_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "webp": ("WEBP", {"lossless": True}),
}


def encode_picture(pixels: NDArray[np.uint8], format: str) -> bytes:
    """Encode pixels as a picture file. png and webp are lossless; jpg has quality 95 and 4:4:4 chroma.

    With the same Pillow, the same pixels give the same bytes.

    Args:
        pixels: [H, W, 3] uint8 sRGB, or [H, W, 1] uint8 grey.
        format: one of `FORMATS`; `SUFFIXES` maps a file name's suffix to it.

    Returns:
        The file's bytes.

    Raises:
        ImageError: `pixels` has another shape or dtype, the format is unknown, or the format cannot hold
            so many pixels.
    """
    check_pixels(pixels, "HW3")
    if format not in FORMATS:
        raise ImageError(f"pictures are written as {', '.join(FORMATS)}, not {quoted(format)}")
    name, options = _SAVE[format]
    stream = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, name, **options)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise ImageError(f"{format} cannot hold {width:,} x {height:,} pixels: write png") from error
    return stream.getvalue()
