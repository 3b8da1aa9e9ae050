"""Fit pictures to the size that a model takes (crop, pad, stretch or keep), and undo the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vartok.buckets import Bucket, BucketTable, nearest_bucket
from vartok.errors import ImageError, quoted
from vartok.images.bands import Bands, as_image, background_levels
from vartok.images.scaling import cover, cover_adm, scale, scale_windows
from vartok.images.tensors import check_pixels
from vartok.images.views import CENTER, Views
from vartok.metadata import MAX_IMAGE_CHANNELS, View

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels

FITS = ("crop", "pad", "stretch", "native", "bucket")

RESAMPLES = ("lanczos", "adm")
"""Ways to scale a picture; see `Fit`."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 26
MAX_SIDE = 1 << 18
"""Longest side in pixels; Lanczos takes up to 72 bytes of coefficients for each pixel of a side."""
MAX_ZOOM = 100.0

PIXELS_HINT = "set `max_pixels` higher, if you trust the file"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The way a picture is brought to the size that a model takes.

    Attributes:
        mode: "crop": scale to cover `size`, then cut out the centre, as torchvision's Resize and CenterCrop;
            "pad": scale to fit inside, with background around; "stretch": scale each axis; "native": scale
            each side to the nearest multiple of `multiple`; "bucket": "crop" to the size of the bucket whose
            aspect ratio is nearest, or to `size` without buckets.
        size: (height, width) of the result in pixels, or one side of a square; "native" ignores it.
        zoom: factor from 1 to 100, for "crop" and "bucket": cover round(size * zoom), then cut out `size`.
        resample: "lanczos"; or "adm", for "crop" and "bucket": guided-diffusion's `center_crop_arr`, with
            which LlamaGen, MAR and other generators prepare their training images: halve the picture by
            box filters while it covers twice the size, then scale it by a bicubic filter. It truncates
            size * zoom, as LlamaGen does.
        background: RGB levels, 0 to 255, under transparency and around a padded picture.
        multiple: divisor of "native" sides, in pixels; a side is at least one multiple.
        views: views of each picture; others than "center" and "flip" need "crop" or "bucket", and "ten-crop"
            needs a zoom above 1.
        table: for "bucket" only: the table from which the buckets are made for a checkpoint.
        buckets: for "bucket" only: the sizes, each with the schedule of its pictures.
        max_pixels: pixel limit of a file, checked before it is decoded, and of a "native" result. WebP files
            may have two thirds of it, JPEG 2000 files half. Pillow has its own limit, by default 178 million
            pixels: for more, raise PIL.Image.MAX_IMAGE_PIXELS too, or call `configure_pillow`.
        max_bytes: size limit in bytes of a picture whose file is held in memory: from a tar, a table, a URL
            or a pipe, or from a file that a data set keeps. `read_picture` does not apply it to a path.
        allow_damaged: take what can be decoded of a truncated or corrupt file, which else is refused.
        channels: number of channels of the result: 3 for RGB, 1 for grey levels, or the bands of an array.

    Raises:
        ImageError: a value has the wrong type, is unknown, or is out of its range.
    """

    mode: str = "crop"
    size: tuple[int, int] = (256, 256)
    zoom: float = 1.0
    resample: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    multiple: int = 16
    views: Views = CENTER
    table: BucketTable | None = None
    buckets: tuple[Bucket, ...] = ()
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    allow_damaged: bool = False
    channels: int = 3

    if TYPE_CHECKING:  # the generated __init__, except that `size` may be one side

        def __init__(
            self,
            *,
            mode: str = "crop",
            size: int | tuple[int, int] = (256, 256),
            zoom: float = 1.0,
            resample: str = "lanczos",
            background: tuple[int, int, int] = (255, 255, 255),
            multiple: int = 16,
            views: Views = CENTER,
            table: BucketTable | None = None,
            buckets: tuple[Bucket, ...] = (),
            max_pixels: int = MAX_PIXELS,
            max_bytes: int = MAX_BYTES,
            allow_damaged: bool = False,
            channels: int = 3,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Check every value, and turn `size` into a pair."""
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
            raise ImageError(
                f"size is one side or (height, width), not {quoted(self.size)}",
                hint="`vartok.operations.parse_size` reads a text such as 256x384",
            )
        if self.mode not in FITS:
            raise ImageError(f"a fit is one of {', '.join(FITS)}, not {quoted(self.mode)}")
        if self.resample not in RESAMPLES:
            raise ImageError(f"resampling is one of {', '.join(RESAMPLES)}, not {quoted(self.resample)}")
        if self.resample == "adm" and self.mode not in ("crop", "bucket"):
            raise ImageError(f"the resampling adm needs the fit crop or bucket, not {self.mode}")
        if self.max_pixels < 1 or self.max_bytes < 1 or not 1 <= self.multiple <= MAX_SIDE:
            raise ImageError(
                f"max_pixels and max_bytes must be at least 1, and multiple from 1 to {MAX_SIDE:,}; they are "
                f"{self.max_pixels:,}, {self.max_bytes:,} and {self.multiple:,}"
            )
        if not 1 <= self.channels <= MAX_IMAGE_CHANNELS:
            raise ImageError(f"channels must be from 1 to {MAX_IMAGE_CHANNELS}, not {self.channels!r}")
        if not 1 <= self.zoom <= MAX_ZOOM:
            raise ImageError(f"zoom must be from 1 to {MAX_ZOOM:g}, not {self.zoom!r}")
        if isinstance(self.background, str):
            raise ImageError(
                f"a background is three levels from 0 to 255, not {quoted(self.background)}",
                hint="`vartok.images.parse_color` reads the name of a colour",
            )
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise ImageError(f"a background is three levels from 0 to 255, not {self.background!r}")
        object.__setattr__(self, "background", tuple(map(int, self.background)))
        if (self.table or self.buckets) and self.mode != "bucket":
            raise ImageError(f"buckets need the fit bucket, not {self.mode}")
        for height, width in (self.size, *self.sizes):
            check_size(width, height, MAX_PIXELS)  # max_pixels limits files; this is the result
            self._check_views(height, width)

    def _check_views(self, height: int, width: int) -> None:
        """Raise ImageError if pictures of height x width cannot have these views."""
        kind, count = self.views.kind, self.views.count
        if kind in ("ten-crop", "random") and self.mode not in ("crop", "bucket"):
            raise ImageError(f"{kind} views need the fit crop or bucket, not {self.mode}")
        side = min(height, width)
        if kind == "ten-crop" and (int if self.resample == "adm" else round)(side * self.zoom) == side:
            raise ImageError(
                "ten-crop views of this zoom are the same five times",
                hint="set `zoom` above 1; LlamaGen has 1.1",
            )
        if height * width * count > MAX_PIXELS:
            raise ImageError(
                f"{count} views of {width:,} x {height:,} pixels are more than {MAX_PIXELS:,} pixels in all"
            )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every bucket; `size` alone without buckets."""
        return tuple(bucket.size for bucket in self.buckets) or (self.size,)


def restore_size(
    pixels: Pixels, *, width: int, height: int, mode: str, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Undo a fit: scale pixels to the size of the original picture.

    Args:
        pixels: [H, W, C] uint8 or uint16, decoded.
        width: width of the original in pixels, see `Picture`. An untrusted value is safe: it is checked.
        height: height of the original in pixels, also checked.
        mode: mode of the fit: "pad", whose border is cut off before scaling, "stretch" or "native".
        max_pixels: pixel limit of the result, checked before memory is allocated.

    Returns:
        [height, width, C] of the same dtype, C-contiguous.

    Raises:
        ImageError: `pixels` has another shape or dtype, the size is invalid or too large, or the mode is
            unknown, or "crop" or "bucket", which cannot be undone.
    """
    check_pixels(pixels, "HWC")
    check_size(width, height, max_pixels)
    if mode not in FITS:
        raise ImageError(f"a fit is one of {', '.join(FITS)}, not {quoted(mode)}")
    if mode in ("crop", "bucket"):
        raise ImageError("a cropped picture cannot get its original size back: encode it with another fit")
    if mode == "pad":
        left, top, right, bottom = _inside(width, height, pixels.shape[:2])
        pixels = pixels[top:bottom, left:right]
    return scale(as_image(pixels), width, height)


def fitted(image: Image.Image | Bands, fit: Fit, key: str = "") -> tuple[Pixels, tuple[View, ...]]:
    """Fit a picture: a PIL image of RGB, or `Bands`.

    Args:
        image: the picture.
        fit: the fit.
        key: key of the picture, on which random views depend.

    Returns:
        The pixels, C-contiguous uint8 or uint16, and the views: [H, W, C] and no views if `fit.views` are
        "center"; else the pixels of the views, [V, H, W, C].
    """
    if fit.mode == "bucket":
        size = nearest_bucket(fit.buckets, image.height, image.width).size if fit.buckets else fit.size
        fit = replace(fit, mode="crop", size=size, table=None, buckets=())
    height, width = fit.size
    if fit.mode == "crop":
        scaled = (cover_adm if fit.resample == "adm" else cover)(image, fit.size, fit.zoom)
        columns, rows = scaled.columns, scaled.rows
        places = fit.views.places(
            key,
            center=scaled.center,
            corner=scaled.corner,
            margin=scaled.margin,
            free=(columns - width, rows - height),
        )
        windows = [(left, top, left + width, top + height) for left, top, _ in places]
        cuts = scale_windows(scaled.image, columns, rows, list(dict.fromkeys(windows)), scaled.filter)
        found = [cuts[window] for window in windows]
    elif fit.mode == "pad":
        left, top, right, bottom = _inside(image.width, image.height, fit.size)
        columns, rows = right - left, bottom - top
        places = fit.views.places(key, center=(-left, -top))
        inside = scale(image, columns, rows)
        pixels = np.empty((height, width, inside.shape[2]), inside.dtype)
        pixels[:] = background_levels(fit.background, pixels)
        pixels[top:bottom, left:right] = inside
        found = [pixels] * len(places)
    else:
        if fit.mode == "native":
            width = max(1, round(image.width / fit.multiple)) * fit.multiple
            height = max(1, round(image.height / fit.multiple)) * fit.multiple
            check_size(width, height, fit.max_pixels)
        columns, rows = width, height
        places = fit.views.places(key, center=(0, 0))
        found = [scale(image, width, height)] * len(places)
    if fit.views.kind == "center":
        return found[0], ()
    x, y = image.width, image.height
    views = (
        View(
            n,
            (left * x / columns, top * y / rows, (left + width) * x / columns, (top + height) * y / rows),
            flipped,
        )
        for n, (left, top, flipped) in enumerate(places)
    )
    mirrored = [one[:, ::-1] if place.flipped else one for one, place in zip(found, places, strict=True)]
    return np.stack(mirrored), tuple(views)


def check_size(width: object, height: object, max_pixels: int, *, hint: str | None = None) -> None:
    """Check the size of a picture; its sides may come from an untrusted file, and have any type.

    Args:
        width: width in pixels.
        height: height in pixels.
        max_pixels: pixel limit.
        hint: hint of the error for too many pixels.

    Raises:
        ImageError: a side is not a positive integer or exceeds `MAX_SIDE`, or there are more than
            `max_pixels` pixels.
    """
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise ImageError(
            f"{quoted(width)} x {quoted(height)} is not a size in pixels: sides are whole numbers from 1"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width:,} x {height:,} pixels have a side above the limit of {MAX_SIDE:,}")
    if width * height > max_pixels:
        raise ImageError(
            f"{width:,} x {height:,} pixels are more than the limit of {max_pixels:,}", hint=hint
        )


def _inside(width: int, height: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of a picture that is padded to `size`, (height, width)."""
    scale = min(size[1] / width, size[0] / height)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[1] - columns) // 2, (size[0] - rows) // 2
    return left, top, left + columns, top + rows
