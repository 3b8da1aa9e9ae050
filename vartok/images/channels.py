"""Convert decoded pictures to the channels of a checkpoint that has not three, such as grey levels."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from vartok.errors import ImageError, counted, warn
from vartok.images.bands import Bands, grey_level
from vartok.images.color import GREY_MODES, scaled, strips, to_rgb
from vartok.images.tensors import peak

CONVERTED = "converted its colours to grey levels, as the checkpoint has one channel"
"""Note of a picture; `warn_of_grey` says how many pictures have it."""

WITH_ALPHA = {2: "LA", 4: "RGBA"}
"""Modes of pictures that have as many channels, which are taken as they are stored."""


def to_bands(
    image: Image.Image,
    channels: int,
    background: tuple[int, int, int],
    grey: tuple[float, float],
    notes: list[str],
    stored: str = "",
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
        stored: Pillow's raw mode of the picture in its file, see `raw_mode`.

    Raises:
        ImageError: the picture has another number of channels, or other ones.
    """
    if stored == "LA;16B":  # Pillow makes RGBA of it
        image = image.convert("LA")
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
    has_alpha = image.mode == WITH_ALPHA.get(channels)
    if ";16" in stored and (channels == 1 or has_alpha):
        notes.append("kept the high 8 bits of its 16")
    if channels == 1:
        if image.mode not in GREY_MODES:
            notes.append(CONVERTED)
        return Bands([to_rgb(image, background, grey, notes).convert("L")])
    if has_alpha:
        return Bands(image.split())
    raise channels_error(len(image.getbands()), channels, image.mode)


def raw_mode(source: ImageFile) -> str:
    """Return Pillow's name of the levels that an opened picture's file stores, such as "RGBA;16B", or ""."""
    args = source.tile[0].args if source.tile else ""
    name = args[0] if isinstance(args, tuple) and args else args
    return name if isinstance(name, str) else ""


def channels_error(found: int, channels: int, mode: str = "") -> ImageError:
    """Return the error for a picture whose channels the checkpoint does not take; `mode` is Pillow's."""
    has, takes = (f" ({name})" if mode and name else "" for name in (mode, WITH_ALPHA.get(channels)))
    return ImageError(
        f"has {counted(found, 'channel')}{has}, but the checkpoint takes {channels}{takes}",
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
