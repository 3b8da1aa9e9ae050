"""Read pictures from numpy's .npy files: arrays of [height, width] or [height, width, channels]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from vartok.errors import DamagedImageError, ImageError, quoted
from vartok.images.bands import Bands
from vartok.images.channels import CONVERTED, channels_error
from vartok.images.color import scaled, value_range
from vartok.images.decoding import DAMAGED_HINT, TRUNCATED
from vartok.images.fit import PIXELS_HINT, Fit, check_size
from vartok.images.scaling import STRIP
from vartok.images.tensors import as_pil, peak, to_rgb_bytes
from vartok.npy import MAGIC, read_npy_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = ("bool", "uint8", "uint16", "float16", "float32", "float64")
"""Dtypes of arrays that are pictures."""

TOKENS = "tokens are decoded, not encoded"
"""Hint for arrays that may hold tokens."""


def is_array(stream: BinaryIO) -> bool:
    """Return whether a file is an array; its position is the start, before and after."""
    head = stream.read(len(MAGIC))
    stream.seek(0)
    return head == MAGIC


def read_array(stream: BinaryIO, fit: Fit, notes: list[str]) -> tuple[Image.Image | Bands, str | None]:
    """Read a picture from an array. Nothing in the file is run, and sizes are checked before data are read.

    Args:
        stream: the file, at its start.
        fit: gives the number of channels, and the limit of pixels.
        notes: remarks for the user, to which this may add.

    Returns:
        The picture, and how the file is damaged, or None.

    Raises:
        DamagedImageError: the file ends too early, and `fit.allow_damaged` is not set.
        ImageError: the array has the shape, dtype or number of channels of no picture, holds NaN or infinite
            values, or is too large.
    """
    try:
        header = read_npy_header(stream)
    except ValueError as error:
        raise ImageError(f"is an array that cannot be read: {error}") from None
    shape, dtype = header.shape, header.dtype
    if len(shape) not in (2, 3) or dtype.name not in DTYPES:
        raise ImageError(
            f"is an array of shape {quoted(shape)} and dtype {quoted(dtype.name)}, which is no picture",
            hint=f"a picture is [height, width, channels] of {', '.join(DTYPES)}; {TOKENS}",
        )
    height, width, channels = (*shape, 1)[:3]
    check_channels(shape, fit.channels)
    check_values(width, height, channels, fit.max_pixels)
    count = height * width * channels
    data, damage = _read_data(stream, count * dtype.itemsize, allow_damaged=fit.allow_damaged)
    order: Any = "F" if header.fortran_order else "C"
    values = np.frombuffer(data, dtype).reshape((height, width, channels), order=order)
    return from_values(values, fit.channels, notes), damage


def check_values(width: Any, height: Any, channels: int, max_pixels: int) -> None:
    """Check the size of a picture of several channels, as `check_size`; it may have three for each pixel.

    Raises:
        ImageError: the size is invalid, or too large.
    """
    check_size(width, height, max_pixels, hint=PIXELS_HINT)
    count = width * height * channels
    if count > 3 * max_pixels:
        raise ImageError(
            f"{count:,} values are more than three for each of {max_pixels:,} pixels, the limit",
            hint=PIXELS_HINT,
        )


def check_channels(shape: tuple[int, ...], wanted: int) -> None:
    """Check that an array of a shape has the channels of a checkpoint, or grey levels for RGB, or vice versa.

    An array without an axis of channels is taken for one channel alone: else it may well be one of tokens.

    Raises:
        ImageError: it has not.
    """
    found = (*shape, 1)[2]
    if len(shape) == 2 and wanted != 1:
        raise ImageError(
            f"is an array of shape {quoted(shape)} without an axis of channels",
            hint=f"save `array[..., None]` if it is a picture of grey levels; {TOKENS}",
        )
    if found == wanted or {found, wanted} == {1, 3}:
        return
    if shape[0] == wanted:
        raise ImageError(
            f"is an array of shape {quoted(shape)}, whose last axis is not its channels",
            hint="save `numpy.moveaxis(array, 0, -1)`",
        )
    raise channels_error(found, wanted)


def from_values(values: NDArray[Any], channels: int, notes: list[str]) -> Image.Image | Bands:
    """Return the picture of an array's values: a PIL image for three channels, else `Bands`.

    Args:
        values: [H, W, C] of one of `DTYPES`; True is white, and floats are as in `color.value_range`.
        channels: number of channels of the picture: C, or 1 for 3, or 3 for 1.
        notes: remarks for the user, to which this may add.

    Raises:
        ImageError: a float is NaN or infinite.
    """
    if values.dtype == bool:
        values = values * np.uint8(255)
    if values.dtype.kind == "f":
        values = _to_levels(values, notes)
    if channels == 3:
        return as_pil(to_rgb_bytes(values))
    bands = Bands.from_pixels(values)
    if len(bands.bands) == channels:
        return bands
    notes.append(CONVERTED)
    return bands.to_grey()


def _to_levels(values: NDArray[Any], notes: list[str]) -> NDArray[np.uint16]:
    """Return [H, W, C] floats as levels, see `from_values`; in strips, to save memory."""
    height, width, channels = values.shape
    rows = max(1, STRIP // (width * channels))
    parts = [slice(top, top + rows) for top in range(0, height, rows)]
    grey = value_range((values[part] for part in parts), notes)
    levels = np.empty(values.shape, np.uint16)
    for part in parts:
        levels[part] = np.rint(scaled(values[part], grey) * peak(np.uint16))
    return levels


def _read_data(stream: BinaryIO, size: int, *, allow_damaged: bool) -> tuple[bytes, str | None]:
    """Return the next `size` bytes, and how the file is damaged if it has fewer: zeros replace them."""
    start = stream.tell()
    there = stream.seek(0, 2) - start
    stream.seek(start)
    data = stream.read(min(there, size))
    if len(data) == size:
        return data, None
    if not allow_damaged or not data:
        raise DamagedImageError(TRUNCATED, hint=DAMAGED_HINT if data else None)
    return data.ljust(size, b"\0"), TRUNCATED
