"""Convert decoded pictures to the channels of a checkpoint that has not three, such as grey levels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vartok.errors import ImageError, counted, warn
from vartok.images.bands import Bands, grey_level
from vartok.images.color import GREY_MODES, scaled, strips, to_rgb
from vartok.images.tensors import peak

CONVERTED = "converted its colours to grey levels, as the checkpoint has one channel"
"""Note of a picture; `warn_of_grey` says how many pictures have it."""


def to_bands(
    image: Image.Image,
    channels: int,
    background: tuple[int, int, int],
    grey: tuple[float, float],
    notes: list[str],
) -> Bands:
    """Convert a decoded picture to the channels of a checkpoint that has not three.

    One channel is the grey level. Grey levels of more than 8 bits, and floats, keep 16 bits; colours are
    first converted to sRGB. For other numbers the picture must have them: two are grey and alpha, four red,
    green, blue and alpha, as they are stored.

    Args:
        image: picture of any mode.
        channels: number of channels.
        background: RGB, 0 to 255, under transparency; its grey level counts.
        grey: values of black and white, see `grey_scale`.
        notes: remarks for the user, to which this may add.

    Raises:
        ImageError: the picture has another number of channels.
    """
    if channels == 1 and image.mode[0] in "IF":
        if image.info.get("icc_profile"):
            notes.append("ignored its colour profile: levels of more than 8 bits are kept as they are")
        levels = np.empty((image.height, image.width), np.float32)
        top = 0
        for strip in strips(image):
            values = np.asarray(strip)
            part = np.rint(scaled(values, grey) * peak(np.uint16))
            if "transparency" in image.info:
                part[values == image.info["transparency"]] = 257 * grey_level(background)
            levels[top : top + strip.height] = part
            top += strip.height
        return Bands([Image.fromarray(levels)])
    if channels == 1:
        if image.mode not in GREY_MODES:
            notes.append(CONVERTED)
        return Bands([to_rgb(image, background, grey, notes).convert("L")])
    if (image.mode, channels) in (("LA", 2), ("RGBA", 4)):
        return Bands(image.split())
    raise channels_error(len(image.getbands()), channels)


def channels_error(found: int, channels: int) -> ImageError:
    """Return the error for a picture with a number of channels that the checkpoint does not take."""
    return ImageError(
        f"has {counted(found, 'channel')}, but the checkpoint takes {channels}",
        hint=f"give an array of [height, width, {channels}] as .npy, or another checkpoint",
    )


def warn_of_grey(pictures: int) -> None:
    """Warn of the pictures whose colours were converted to grey levels; nothing for 0.

    Warns:
        VartokWarning: there are some.
    """
    if pictures:
        shown = counted(pictures, "picture")
        warn(f"converted the colours of {shown} to grey levels: the checkpoint has one channel")
