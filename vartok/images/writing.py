"""Encode pixels as picture files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from vartok.errors import ImageError, quoted
from vartok.images.tensors import as_pil, check_pixels

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels

FORMATS = ("png", "jpg", "webp", "npy")
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".npy": "npy"}

_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "webp": ("WEBP", {"lossless": True}),
}


def encode_picture(pixels: Pixels, format: str) -> bytes:
    """Encode pixels as a picture file. png and webp are lossless; jpg has quality 95 and 4:4:4 chroma.

    npy is numpy's file of the array. It alone takes other numbers of channels than 1 and 3, and uint16.

    With the same Pillow, the same pixels give the same bytes.

    Args:
        pixels: [H, W, 3] uint8 sRGB, or [H, W, 1] uint8 grey levels; for npy [H, W, C] uint8 or uint16.
        format: one of `FORMATS`; `SUFFIXES` maps a file name's suffix to it.

    Returns:
        The file's bytes.

    Raises:
        ImageError: `pixels` has another shape or dtype, the format is unknown, or the format cannot hold
            so many pixels.
    """
    check_pixels(pixels, "HWC")
    if format not in FORMATS:
        raise ImageError(f"pictures are written as {', '.join(FORMATS)}, not {quoted(format)}")
    stream = io.BytesIO()
    if format == "npy":
        np.save(stream, pixels, allow_pickle=False)
        return stream.getvalue()
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        found = f"{pixels.shape[2]} of {pixels.dtype}"
        raise ImageError(f"{format} holds 1 or 3 channels of uint8, not {found}", hint="write npy")
    name, options = _SAVE[format]
    try:
        as_pil(pixels).save(stream, name, **options)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise ImageError(f"{format} cannot hold {width:,} x {height:,} pixels: write png") from error
    return stream.getvalue()
