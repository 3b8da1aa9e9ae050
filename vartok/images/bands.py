"""Pictures of another number of channels than three: grey levels, depth, masks, several bands.

Levels of 8 bits stay 8 bits. All others become levels of 16 bits, which `Bands` holds as floats: Pillow
scales those without loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transpose

from vartok.images.tensors import as_pil, peak

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vartok.images.tensors import Pixels

UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""How to turn a picture of an EXIF orientation upright."""

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey level, of 65,536 in all: those of Pillow's mode L."""


class Bands:
    """A picture whose channels are PIL images: of mode L, or of mode F for levels from 0 to 65535.

    It has those methods of a PIL image that fitting needs. `np.asarray` gives its pixels, [H, W, C] uint8 or
    uint16.

    Attributes:
        bands: the channels, of one size and mode.
    """

    def __init__(self, bands: Sequence[Image.Image]) -> None:
        self.bands = tuple(bands)

    @classmethod
    def from_pixels(cls, pixels: NDArray[Any]) -> Bands:
        """Make it of [H, W, C] levels: uint8, or any other dtype whose levels are from 0 to 65535."""
        dtype = np.uint8 if pixels.dtype == np.uint8 else np.float32
        return cls([Image.fromarray(np.ascontiguousarray(band, dtype)) for band in np.moveaxis(pixels, 2, 0)])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.bands[0].width

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bands[0].height

    def resize(
        self, size: tuple[int, int], filter: Resampling, box: tuple[float, float, float, float] | None = None
    ) -> Bands:
        """Scale all channels, as `Image.resize` does."""
        return Bands([band.resize(size, filter, box) for band in self.bands])

    def transpose(self, method: Transpose) -> Bands:
        """Turn or mirror all channels, as `Image.transpose` does."""
        return Bands([band.transpose(method) for band in self.bands])

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """Cut out a part of all channels, as `Image.crop` does."""
        return Bands([band.crop(box) for band in self.bands])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the pixels: [H, W, C] uint8, or uint16, to which floats are clipped and rounded."""
        pixels = np.stack([np.asarray(band) for band in self.bands], axis=-1)
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels.clip(0, peak(np.uint16))).astype(np.uint16)
        return pixels if dtype is None else pixels.astype(dtype)

    def to_grey(self) -> Bands:
        """Return the grey levels of red, green and blue, weighted as in Pillow's mode L."""
        if self.bands[0].mode == "L":
            return Bands([Image.merge("RGB", self.bands).convert("L")])
        levels = sum(weight * np.asarray(band) for weight, band in zip(LUMA, self.bands, strict=True))
        return Bands([Image.fromarray(np.float32(levels / 65536))])


def grey_level(color: tuple[int, int, int]) -> int:
    """Return the grey level of an RGB colour, 0 to 255, as Pillow's mode L."""
    return (sum(weight * level for weight, level in zip(LUMA, color, strict=True)) + (1 << 15)) >> 16


def background_levels(color: tuple[int, int, int], pixels: Pixels) -> NDArray[Any]:
    """Return the levels that an RGB colour, 0 to 255, has in [H, W, C] pixels: [C].

    They are its grey level, but in 8-bit RGB.
    """
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.array(color, np.uint8)
    level = grey_level(color) * (peak(pixels.dtype) // 255)
    return np.full(pixels.shape[2], level, pixels.dtype)


def as_image(pixels: Pixels) -> Image.Image | Bands:
    """Return [H, W, C] pixels as an image that can be scaled: a PIL image of RGB, else `Bands`."""
    is_rgb = pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return as_pil(pixels) if is_rgb else Bands.from_pixels(pixels)
