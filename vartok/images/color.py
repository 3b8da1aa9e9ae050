"""Convert pictures to 8-bit sRGB: grey levels of more than 8 bits, transparency, and ICC profiles."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor
from PIL.ImageFile import ImageFile

from vartok.errors import ImageError, quoted
from vartok.images import scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_RGB_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"}


def parse_color(text: str) -> tuple[int, int, int]:
    """Return the levels of red, green and blue, 0 to 255, of a colour.

    Args:
        text: a CSS name ("white"), "#rgb", "#rrggbb", or another opaque colour that PIL.ImageColor reads,
            such as "rgb(255, 0, 0)".

    Raises:
        ImageError: the text is not such a colour.
    """
    try:
        color: tuple[int, ...] = ImageColor.getrgb(text)
    except ValueError:
        color = ()
    if len(color) != 3 or not all(0 <= level <= 255 for level in color):
        raise ImageError(f'a colour looks like "white" or "#aabbcc", not {quoted(text)}')
    red, green, blue = color
    return red, green, blue


def grey_scale(source: ImageFile, notes: list[str]) -> tuple[float, float]:
    """Return the values of black and white in a grey picture of more than 8 bits.

    If the picture does not define them, they are its minimum and maximum, and a note is added to `notes`.
    `to_rgb` ignores the result for any other picture.

    Raises:
        ImageError: a value is NaN or infinite.
    """
    tags: Any = getattr(source, "tag_v2", {})
    black, white = 0.0, 255.0
    if source.mode.startswith("I;16") or (source.mode == "I" and source.format in ("PNG", "PPM")):
        white = 4095.0 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535.0
    elif source.mode in ("I", "F"):
        black, white = value_range(map(np.asarray, strips(source)), notes, floats=source.mode == "F")
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # WhiteIsZero
        black, white = white, black
    return black, white


def value_range(
    parts: Iterable[NDArray[Any]], notes: list[str], *, floats: bool = True
) -> tuple[float, float]:
    """Return the values of black and white of levels that do not define them, such as floats.

    Floats from 0 to 1 have these. For any others the range of the values is taken, with a note.

    Raises:
        ImageError: a value is NaN or infinite.
    """
    lows, highs = zip(*((values.min(), values.max()) for values in parts), strict=True)
    black, white = float(np.min(lows)), float(np.max(highs))  # NaN if any value is
    if not np.isfinite([black, white]).all():
        raise ImageError(
            "holds NaN or infinite values", hint="replace them, in a map of depths by the largest depth, say"
        )
    if floats and black >= 0 and white <= 1:
        return 0.0, 1.0
    notes.append(f"its values do not define white: rescaled its range, {black:g} to {white:g}")
    return black, white


def scaled(values: NDArray[Any], grey: tuple[float, float]) -> NDArray[np.float64]:
    """Return values on the scale on which black is 0 and white 1, clipped to it."""
    black, white = grey
    return np.nan_to_num(np.clip((values.astype(np.float64) - black) / (white - black or 1), 0, 1))


def to_rgb(
    image: Image.Image, background: tuple[int, int, int], grey: tuple[float, float], notes: list[str]
) -> Image.Image:
    """Convert a picture to 8-bit sRGB, composited on the background.

    Args:
        image: picture of any mode.
        background: RGB, 0 to 255, under transparency.
        grey: values of black and white, see `grey_scale`.
        notes: remarks for the user, to which this may add one.
    """
    to_srgb = _icc_transform(image, notes)
    if image.mode == "RGB" and not to_srgb and not image.has_transparency_data:
        return image
    canvas = Image.new("RGB", image.size, background)
    top = 0
    for strip in strips(image):
        color, alpha = _split_alpha(strip, grey)
        if to_srgb:
            color = to_srgb.apply(color.convert(to_srgb.input_mode))
        canvas.paste(color.convert("RGB"), (0, top), alpha)
        top += strip.height
    return canvas


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield a picture in horizontal strips, so that no second copy of the whole picture is in memory."""
    rows = max(1, scaling.STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _split_alpha(image: Image.Image, grey: tuple[float, float]) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture with 8-bit levels, and its alpha channel, which is None for an opaque picture."""
    if image.mode[0] in "IF":
        values = np.asarray(image)
        color = Image.fromarray(np.rint(scaled(values, grey) * 255).astype(np.uint8))
        if "transparency" not in image.info:
            return color, None
        return color, Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image, None
    if image.mode == "La":  # Pillow cannot convert La to RGBA
        image = image.convert("LA")
    image = image.convert("RGBA")
    return image, image.getchannel("A")


def _icc_transform(image: Image.Image, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from the embedded ICC profile to sRGB, or None.

    None means that the picture has no profile, that the profile changes no colour, or that it cannot be
    applied. In the last case a note is added to `notes`.
    """
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
        if image.mode == "LAB" and profile.profile.xcolor_space == "Lab ":
            return None  # it describes the Lab space, which Pillow converts
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError):
        notes.append("ignored its colour profile, which is broken or of an unsupported kind")
        return None
    modes = {"RGB": _RGB_MODES | GREY_MODES, "L": GREY_MODES, "CMYK": {"CMYK"}}[mode]
    if image.mode not in modes:
        notes.append(f"ignored its colour profile, which is not for {image.mode} pixels")
        return None
    return None if mode == "RGB" and _is_identity(transform) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return True if the transform changes no level of 4,913 RGB colours by more than 1.

    This finds sRGB profiles, which have too many names to be recognized by name.
    """
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    moved = np.asarray(transform.apply(Image.fromarray(cube)))
    return bool(np.abs(moved.astype(int) - cube).max() <= 1)
