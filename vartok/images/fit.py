"""Fit pictures to the size that a model takes (crop, pad, stretch or keep), and undo the fit."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from vartok.buckets import Bucket, BucketTable, nearest_bucket
from vartok.errors import ImageError, quoted
from vartok.images.tensors import check_pixels
from vartok.images.views import CENTER, Views
from vartok.metadata import View

if TYPE_CHECKING:
    from numpy.typing import NDArray

FITS = ("crop", "pad", "stretch", "native", "bucket")

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 26
MAX_SIDE = 1 << 18
"""Longest side in pixels; Lanczos takes up to 72 bytes of coefficients for each pixel of a side."""
MAX_ZOOM = 100.0

LARGE = 1 << 24
"""Number of pixels above which a picture is large.

Only one large picture is decoded at a time. A large result of scaling is computed in strips.
"""

STRIP = 1 << 20
"""Number of pixels in a strip: the rows of a picture that are scaled or converted to sRGB at once."""

_large_image_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The way a picture is brought to the size that a model takes.

    Attributes:
        mode: "crop": scale to cover `size`, then cut out the centre, as torchvision's Resize and CenterCrop;
            "pad": scale to fit inside, with background around; "stretch": scale each axis; "native": scale
            each side to the nearest multiple of `multiple`; "bucket": "crop" to the size of the bucket whose
            aspect ratio is nearest, or to `size` without buckets. Resampling is Lanczos.
        size: (height, width) of the result in pixels, or one side of a square; "native" ignores it.
        zoom: factor from 1 to 100, for "crop" only: cover round(size * zoom), then cut out `size`.
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

    Raises:
        ImageError: a value has the wrong type, is unknown, or is out of its range.
    """

    mode: str = "crop"
    size: tuple[int, int] = (256, 256)
    zoom: float = 1.0
    background: tuple[int, int, int] = (255, 255, 255)
    multiple: int = 16
    views: Views = CENTER
    table: BucketTable | None = None
    buckets: tuple[Bucket, ...] = ()
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    allow_damaged: bool = False

    if TYPE_CHECKING:  # the generated __init__, except that `size` may be one side

        def __init__(
            self,
            *,
            mode: str = "crop",
            size: int | tuple[int, int] = (256, 256),
            zoom: float = 1.0,
            background: tuple[int, int, int] = (255, 255, 255),
            multiple: int = 16,
            views: Views = CENTER,
            table: BucketTable | None = None,
            buckets: tuple[Bucket, ...] = (),
            max_pixels: int = MAX_PIXELS,
            max_bytes: int = MAX_BYTES,
            allow_damaged: bool = False,
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
        if self.max_pixels < 1 or self.max_bytes < 1 or not 1 <= self.multiple <= MAX_SIDE:
            raise ImageError(
                f"max_pixels and max_bytes must be at least 1, and multiple from 1 to {MAX_SIDE:,}; they are "
                f"{self.max_pixels:,}, {self.max_bytes:,} and {self.multiple:,}"
            )
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
            raise ImageError(f"{kind} views need the fit crop, not {self.mode}")
        if kind == "ten-crop" and round(min(height, width) * self.zoom) == min(height, width):
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


def large_image_lock(pixels: int) -> AbstractContextManager[object]:
    """Return a context manager in which only one thread at a time processes a large picture, to save memory.

    Args:
        pixels: number of pixels of the picture; if at most `LARGE`, the context manager does nothing.
    """
    return _large_image_lock if pixels > LARGE else nullcontext()


def restore_size(
    pixels: NDArray[np.uint8], *, width: int, height: int, mode: str, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Undo a fit: scale pixels to the size of the original picture.

    Args:
        pixels: [H, W, 3] uint8, decoded.
        width: width of the original in pixels, see `Picture`. An untrusted value is safe: it is checked.
        height: height of the original in pixels, also checked.
        mode: mode of the fit: "pad", whose border is cut off before scaling, "stretch" or "native".
        max_pixels: pixel limit of the result, checked before memory is allocated.

    Returns:
        [height, width, 3] uint8, C-contiguous.

    Raises:
        ImageError: `pixels` has another shape or dtype, the size is invalid or too large, or the mode is
            unknown, or "crop" or "bucket", which cannot be undone.
    """
    check_pixels(pixels, "HW3")
    check_size(width, height, max_pixels)
    if mode not in FITS:
        raise ImageError(f"a fit is one of {', '.join(FITS)}, not {quoted(mode)}")
    if mode in ("crop", "bucket"):
        raise ImageError("a cropped picture cannot get its original size back: encode it with another fit")
    if mode == "pad":
        left, top, right, bottom = _inside(width, height, pixels.shape[:2])
        pixels = pixels[top:bottom, left:right]
    return _scale(Image.fromarray(np.ascontiguousarray(pixels)), width, height)


def fitted(image: Image.Image, fit: Fit, key: str = "") -> tuple[NDArray[np.uint8], tuple[View, ...]]:
    """Fit an RGB picture.

    Args:
        image: the picture.
        fit: the fit.
        key: key of the picture, on which random views depend.

    Returns:
        The pixels, C-contiguous uint8, and the views: [H, W, 3] and no views if `fit.views` are "center";
        else the pixels of the views, [V, H, W, 3].
    """
    if fit.mode == "bucket":
        size = nearest_bucket(fit.buckets, image.height, image.width).size if fit.buckets else fit.size
        fit = replace(fit, mode="crop", size=size, table=None, buckets=())
    height, width = fit.size
    if fit.mode == "crop":
        scaled = _scale_to_cover(image, fit)
        columns, rows = scaled.columns, scaled.rows
        places = fit.views.places(
            key,
            center=scaled.center,
            corner=scaled.corner,
            margin=scaled.margin,
            free=(columns - width, rows - height),
        )
        windows = [(left, top, left + width, top + height) for left, top, _ in places]
        cuts = _scale_windows(image, columns, rows, list(dict.fromkeys(windows)))
        found = [cuts[window] for window in windows]
    elif fit.mode == "pad":
        left, top, right, bottom = _inside(image.width, image.height, fit.size)
        columns, rows = right - left, bottom - top
        places = fit.views.places(key, center=(-left, -top))
        pixels = np.full((height, width, 3), fit.background, np.uint8)
        pixels[top:bottom, left:right] = _scale(image, columns, rows)
        found = [pixels] * len(places)
    else:
        if fit.mode == "native":
            width = max(1, round(image.width / fit.multiple)) * fit.multiple
            height = max(1, round(image.height / fit.multiple)) * fit.multiple
            check_size(width, height, fit.max_pixels)
        columns, rows = width, height
        places = fit.views.places(key, center=(0, 0))
        found = [_scale(image, width, height)] * len(places)
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


class _Scaled(NamedTuple):
    """The size of a picture that covers `size` times the zoom, and where crops lie in it.

    Attributes:
        columns: width in pixels.
        rows: height in pixels.
        center: columns left of the central crop, and rows above it.
        corner: columns left of the central area of `size` times the zoom, and rows above it.
        margin: columns and rows of that area beyond `size`.
    """

    columns: int
    rows: int
    center: tuple[int, int]
    corner: tuple[int, int]
    margin: tuple[int, int]


def _scale_to_cover(image: Image.Image, fit: Fit) -> _Scaled:
    """Return how the fit "crop" scales a picture.

    As in torchvision, the long side is truncated to whole pixels, and the centre is rounded half to even.
    """
    height, width = fit.size
    rows, columns = zoomed = round(height * fit.zoom), round(width * fit.zoom)
    if rows * image.width >= columns * image.height:
        columns = int(rows * image.width / image.height)
    else:
        rows = int(columns * image.height / image.width)
    return _Scaled(
        columns,
        rows,
        center=(round((columns - width) / 2), round((rows - height) / 2)),
        corner=((columns - zoomed[1]) // 2, (rows - zoomed[0]) // 2),
        margin=(zoomed[1] - width, zoomed[0] - height),
    )


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


def _scale(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Scale to width x height by Lanczos, and return the pixels: [height, width, 3]."""
    [pixels] = _scale_windows(image, width, height, [(0, 0, width, height)]).values()
    return pixels


def _scale_windows(
    image: Image.Image, width: int, height: int, windows: list[tuple[int, int, int, int]]
) -> dict[tuple[int, int, int, int], NDArray[np.uint8]]:
    """Scale to width x height by Lanczos, and return the pixels of each window (left, top, right, bottom).

    Up to `LARGE` pixels are computed whole and then cut, as resampling a part alone rounds a few levels
    differently. Of more pixels only the windows are computed, in strips.
    """
    if width * image.height > max(LARGE, width * height, image.width * image.height):
        # Scale the height first: Pillow may widen a tall picture first, which needs far more memory.
        image = image.resize((image.width, height), Resampling.LANCZOS)
    if width * height <= LARGE:
        image = image.resize((width, height), Resampling.LANCZOS)
        return {window: np.array(image.crop(window)) for window in windows}
    return {window: _scale_strips(image, width, height, window) for window in windows}


def _scale_strips(
    image: Image.Image, width: int, height: int, window: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """Return the pixels of a window as `_scale_windows` does, computed in strips."""
    left, top, right, bottom = window
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    x, y = image.width / width, image.height / height
    rows = max(1, STRIP // (right - left))
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        box = (left * x, start * y, right * x, stop * y)
        strip = image.resize((right - left, stop - start), Resampling.LANCZOS, box)
        pixels[start - top : stop - top] = np.asarray(strip)
    return pixels
