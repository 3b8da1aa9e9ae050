"""Picture files to RGB pixels, pixels to tensors, and back; knows no model and imports no torch by itself.

Pictures are read as a viewer shows them: upright (EXIF orientation), in sRGB (embedded ICC profile),
on a background where they are transparent, the first frame of several.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import PIL._imaging
from PIL import (
    BmpImagePlugin,
    ExifTags,
    IcoImagePlugin,
    Image,
    ImageCms,
    ImageColor,
    PngImagePlugin,
    UnidentifiedImageError,
)
from PIL.Image import Resampling, Transpose
from PIL.ImageFile import ImageFile

from vartok.errors import ImageError, one_line, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FITS = ("crop", "pad", "stretch", "native")
FORMATS = ("png", "jpg", "webp")
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}

MAX_PIXELS = 100_000_000
MAX_SIDE = 1 << 18  # pixels; resampling takes up to 72 bytes for each pixel of a side
MAX_ZOOM = 100.0
MAX_PIPED = 1 << 30  # bytes of a picture that is no file

COSTLY = {"WEBP": 1.5, "JPEG2000": 2.0}
"""Formats whose decoders take so many times the memory of others: max_pixels is divided by it."""

LARGE = 1 << 24  # pixels; larger pictures are decoded one at a time
STRIP = 1 << 20  # pixels that are converted at once, to hold no second copy of a whole picture

# Without what runs a program (EPS), is a stub (BUFR, GRIB, HDF5, MPEG, WMF), or hides a second picture or
# an archive of any size behind a small header (BLP, FITS, ICNS, IPTC). TGA has no signature: it comes last.
READABLE = (
    *("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "ICO", "CUR", "DDS"),
    *("PSD", "QOI", "PCX", "DCX", "SGI", "SUN", "FLI", "MSP", "XBM", "XPM", "TGA"),
)

_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "webp": ("WEBP", {"lossless": True}),
}

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

_GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_RGB_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA"}

_one_large_picture = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture becomes the pixels that a model takes.

    Attributes:
        mode: "crop": scaled to cover `size`, then the centre, as torchvision's Resize and CenterCrop give it;
            "pad": scaled to fit inside, background around; "stretch": scaled on each axis; "native": as it
            is, each side scaled to the nearest multiple of `multiple`. Lanczos; sides that fit are kept.
        size: (height, width) in pixels that crop, pad and stretch give; native ignores it.
        zoom: from 1 to 100, crop only: covers round(size * zoom), then the centre.
        background: RGB under transparency, and around a padded picture.
        multiple: of native sides, in pixels; a side is at least one multiple.
        max_pixels: larger files are turned away before they are decoded; WebP from two thirds of it,
            JPEG 2000 from half. Pillow has a limit of its own, PIL.Image.MAX_IMAGE_PIXELS: raise that too
            for more than 178 million.

    Raises:
        ImageError: a value that no picture can have.
    """

    mode: str = "crop"
    size: tuple[int, int] = (256, 256)
    zoom: float = 1.0
    background: tuple[int, int, int] = (255, 255, 255)
    multiple: int = 16
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Check every value."""
        if self.mode not in FITS:
            raise ImageError(f"a fit is one of {', '.join(FITS)}, not {quoted(self.mode)}")
        if self.max_pixels < 1 or not 1 <= self.multiple <= MAX_SIDE:
            raise ImageError("max_pixels and multiple are at least 1")
        if not 1 <= self.zoom <= MAX_ZOOM:
            raise ImageError(f"zoom is from 1 to {MAX_ZOOM:g}, not {self.zoom!r}")
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise ImageError(f"a background is three levels from 0 to 255, not {self.background!r}")
        height, width = self.size
        _check_size(width, height, MAX_PIXELS)  # max_pixels is about files


@dataclass(frozen=True)
class Picture:
    """A picture, fitted.

    Attributes:
        pixels: [H, W, 3] uint8 sRGB, C-contiguous.
        width: of the original as a viewer shows it, in pixels.
        height: likewise.
        notes: what a user should know, e.g. "animation: took the first of 12 frames".
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    notes: tuple[str, ...]


def picture_suffixes() -> tuple[str, ...]:
    """What the names of picture files end in, in lower case: ".png", ".jpg", ..."""
    Image.init()
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in READABLE)


def configure_pillow(*, quiet: bool = True) -> None:
    """Make Pillow ready for a program that is vartok's own: this changes it for the whole process.

    Its limit of pixels goes: `Fit.max_pixels` is the one that holds.

    Args:
        quiet: keep libtiff from writing to stderr by itself, hundreds of lines about a broken file.
    """
    Image.MAX_IMAGE_PIXELS = None
    if quiet:
        with contextlib.suppress(AttributeError, OSError):  # a Pillow without libtiff
            library = ctypes.CDLL(PIL._imaging.__file__)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def large_image_lock(pixels: int) -> AbstractContextManager[object]:
    """Wait until no other thread works on a large picture, if this one is: they would add up in memory."""
    return _one_large_picture if pixels > LARGE else nullcontext()


def read_picture(file: Path | bytes, fit: Fit) -> Picture:
    """Read a picture as a viewer shows it, and fit it.

    EXIF orientation is applied, an embedded ICC profile converted to sRGB, transparency laid on the
    background; of several frames or pages the first is taken. Grey of 16 bits is rescaled (65535 is white),
    and so is TIFF's of 12; floats from 0 to 1 are too (1 is white). Grey that has no white of its own, other
    floats and TIFF's signed and 32-bit integers, is stretched from the picture's least value, black, to its
    greatest, white, with a note; NaN is black. Colour of 16 bits keeps its high bytes, as Pillow reads it.

    Args:
        file: a regular file, or what came through a pipe.
        fit: what the pixels should become.

    Returns:
        The fitted pixels, the original's size, and notes for the user.

    Raises:
        ImageError: a file that cannot be opened, is no picture that vartok reads, is broken, or is
            larger than `fit.max_pixels`; the message does not name the file.
    """
    try:
        with _open(file) as stream:
            return _read(stream, fit)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever broken bytes make them raise
        raise ImageError(_explain(error, fit.max_pixels)) from error


def read_file(path: Path) -> bytes:
    """Read a picture's file as it is.

    Raises:
        ImageError: as `read_picture` for a file that cannot be opened, or one of more than a GiB.
    """
    with _open(path) as stream:
        data = stream.read(MAX_PIPED + 1)
    if len(data) > MAX_PIPED:
        raise ImageError(f"is larger than {MAX_PIPED:,} bytes")
    return data


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels as a model takes them: RGB / 127.5 - 1.

    Args:
        pixels: [B, H, W, 3] uint8.

    Returns:
        [B, 3, H, W] float32 in [-1, 1], contiguous.

    Raises:
        ImageError: another shape or dtype.
    """
    import torch

    _check_pixels(pixels, "BHW3")
    images = torch.tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """What a model gives as pixels: clamped, then rounded to the nearest level; undoes `to_tensor`.

    Args:
        images: [B, 3, H, W] in [-1, 1], any float dtype, any device.

    Returns:
        [B, H, W, 3] uint8, C-contiguous.

    Raises:
        ImageError: another shape, or a value that is not a number.
    """
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ImageError(f"images are [B, 3, H, W] floats, not {list(images.shape)} of {images.dtype}")
    levels = images.detach().to(torch.float32)
    if levels.isnan().any():
        raise ImageError("the decoded pixels are not numbers (NaN): broken weights, or a dtype too narrow")
    levels = levels.clamp(-1, 1).add_(1).mul_(127.5).round_().permute(0, 2, 3, 1)
    pixels: NDArray[np.uint8] = levels.to(torch.uint8).contiguous().cpu().numpy()
    return pixels


def restore_size(
    pixels: NDArray[np.uint8], *, width: int, height: int, mode: str, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Undo a fit: give pixels the size of the picture that they were fitted from.

    Args:
        pixels: [H, W, 3] uint8, decoded.
        width: of the original, as `Picture` has it; from a token file, so not to be trusted.
        height: likewise.
        mode: the fit's mode. What "pad" added is cut off; "stretch" and "native" are scaled.
        max_pixels: larger results are refused before memory is taken.

    Returns:
        [height, width, 3] uint8, C-contiguous.

    Raises:
        ImageError: a size that no picture has, a mode that is none, or "crop", which cannot be undone.
    """
    _check_pixels(pixels, "HW3")
    _check_size(width, height, max_pixels)
    if mode not in FITS:
        raise ImageError(f"a fit is one of {', '.join(FITS)}, not {quoted(mode)}")
    if mode == "crop":
        raise ImageError("a cropped picture has no original size to go back to: encode with another fit")
    if mode == "pad":
        left, top, right, bottom = _inside(width, height, pixels.shape[:2])
        pixels = pixels[top:bottom, left:right]
    return _scale(Image.fromarray(np.ascontiguousarray(pixels)), width, height)


def encode_picture(pixels: NDArray[np.uint8], format: str) -> bytes:
    """A picture file's bytes; the same ones each time. png and webp are lossless, jpg is 4:4:4 of quality 95.

    Args:
        pixels: [H, W, 3] uint8 sRGB.
        format: one of `FORMATS`; `SUFFIXES` tells it from a file name's suffix.

    Raises:
        ImageError: another shape, dtype or format, or a side that the format cannot hold.
    """
    _check_pixels(pixels, "HW3")
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


def parse_color(text: str) -> tuple[int, int, int]:
    """Read a colour: a name ("white"), "#rgb" or "#rrggbb", or any other opaque one that CSS knows.

    Raises:
        ImageError: anything else.
    """
    try:
        color: tuple[int, ...] = ImageColor.getrgb(text)
    except ValueError:
        color = ()
    if len(color) != 3 or not all(0 <= level <= 255 for level in color):
        raise ImageError(f'a colour looks like "white" or "#aabbcc", not {quoted(text)}')
    red, green, blue = color
    return red, green, blue


def _open(file: Path | bytes) -> BinaryIO:
    if isinstance(file, bytes):
        stream: BinaryIO = io.BytesIO(file)
        size = len(file)
        if size > MAX_PIPED:
            raise ImageError(f"is larger than {MAX_PIPED:,} bytes: give the file itself")
    else:
        try:
            status = file.stat()
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("is a directory, not a picture")
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
                raise ImageError("is not a regular file; vartok reads a pipe as standard input")
            # Opened here, not by Pillow, which would map it: a file cut short meanwhile kills the process.
            stream = file.open("rb")
            size = status.st_size
        except FileNotFoundError:
            raise ImageError("no such file") from None
        except PermissionError:
            raise ImageError("no permission to read it") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be opened: {getattr(error, 'strerror', error)}".lower()) from error
    if not size:
        stream.close()
        raise ImageError("is empty")
    return stream


def _read(stream: BinaryIO, fit: Fit) -> Picture:
    Image.init()
    formats = [name for name in READABLE if name in Image.OPEN]
    _check_icon(stream, fit.max_pixels)
    source = Image.open(stream, formats=formats)
    max_pixels = int(fit.max_pixels / COSTLY.get(source.format or "", 1))
    _check_size(source.width, source.height, max_pixels)
    notes = []
    try:
        frames = getattr(source, "n_frames", 1)
    except Exception:  # counting reads on; a later frame that is broken does not spoil the first
        frames = 1
        source = Image.open(stream, formats=formats)
    if frames > 1 and source.format in ("TIFF", "DCX"):
        notes.append(f"multi-page: took the first of {frames} pages")
    elif frames > 1 and source.format not in ("MPO", "PSD"):  # theirs are gain maps, layers, thumbnails
        notes.append(f"animation: took the first of {frames} frames")

    # Rebinding `image` lets go of each full-size copy as soon as the next one stands.
    with large_image_lock(source.width * source.height):
        _scale_transparency(source)
        source.load()
        _check_size(source.width, source.height, max_pixels)  # some plugins learn it only now
        grey = _grey_scale(source, notes)
        image = _upright(source, notes)
        del source
        image = _to_rgb(image, fit.background, grey, notes)
        return Picture(_fitted(image, fit), image.width, image.height, tuple(notes))


def _check_icon(stream: BinaryIO, max_pixels: int) -> None:
    """Check the picture inside an icon: Pillow decodes it on opening, whatever size the icon says it has."""
    if stream.read(4) == b"\0\0\1\0":
        stream.seek(0)
        offset = IcoImagePlugin.IcoFile(stream).entry[0].offset
        stream.seek(offset)
        is_png = stream.read(4) == b"\x89PNG"
        stream.seek(offset)
        if is_png:
            width, height = PngImagePlugin.PngImageFile(stream).size
        else:
            width, height = BmpImagePlugin.DibImageFile(stream).size  # the picture, and its mask below it
        _check_size(width, height if is_png else height // 2, max_pixels)


def _scale_transparency(source: ImageFile) -> None:
    """Bring the transparent colour of a PNG that has not 8 bits to the 8 that Pillow makes of its pixels."""
    color = source.info.get("transparency")
    if source.format == "PNG" and isinstance(color, (int, tuple)):
        raw = source.tile[0].args
        if raw == "RGB;16B" and isinstance(color, tuple):
            source.info["transparency"] = tuple(level >> 8 for level in color)
        elif raw in ("L;2", "L;4") and isinstance(color, int):
            source.info["transparency"] = color * (85 if raw == "L;2" else 17)


def _grey_scale(source: ImageFile, notes: list[str]) -> tuple[float, float]:
    """The values of black and white; of use where levels are not bytes."""
    tags: Any = getattr(source, "tag_v2", {})
    black, white = 0.0, 255.0
    if source.mode.startswith("I;16") or (source.mode == "I" and source.format in ("PNG", "PPM")):
        white = 4095.0 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535.0
    elif source.mode in ("I", "F"):
        ranges = [(v.min(), v.max()) for v in map(_finite, _strips(source)) if v.size]
        black = float(min((low for low, _ in ranges), default=0))
        white = float(max((high for _, high in ranges), default=1))
        if source.mode == "F" and black >= 0 and white <= 1:
            black, white = 0.0, 1.0
        else:
            notes.append(f"no white of its own: took {black:g} for black and {white:g} for white")
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # above 8 bits Pillow leaves this to us
        black, white = white, black
    return black, white


def _upright(source: Image.Image, notes: list[str]) -> Image.Image:
    try:
        turn = _UPRIGHT.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever a broken block makes Pillow raise; the pixels are whole
        notes.append("ignored its EXIF data, which is broken")
        turn = None
    return source if turn is None else source.transpose(turn)


def _to_rgb(
    image: Image.Image, background: tuple[int, int, int], grey: tuple[float, float], notes: list[str]
) -> Image.Image:
    """The picture in sRGB on the background."""
    to_srgb = _icc_transform(image, notes)
    if image.mode == "RGB" and not to_srgb and not image.has_transparency_data:
        return image
    canvas = Image.new("RGB", image.size, background)
    top = 0
    for strip in _strips(image):
        color, alpha = _split_alpha(strip, grey)
        if to_srgb:
            color = to_srgb.apply(color.convert(to_srgb.input_mode))
        canvas.paste(color.convert("RGB"), (0, top), alpha)
        top += strip.height
    return canvas


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _split_alpha(image: Image.Image, grey: tuple[float, float]) -> tuple[Image.Image, Image.Image | None]:
    """The picture in 8 bits a level, and its opacity."""
    if image.mode[0] in "IF":
        values = np.asarray(image)
        black, white = grey
        levels = (values.astype(np.float64) - black) / (white - black or 1)
        levels = np.rint(np.nan_to_num(np.clip(levels, 0, 1)) * 255)
        color = Image.fromarray(levels.astype(np.uint8))
        if "transparency" not in image.info:
            return color, None
        return color, Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image, None
    if image.mode == "La":  # Pillow knows no way from it to RGBA
        image = image.convert("LA")
    image = image.convert("RGBA")
    return image, image.getchannel("A")


def _finite(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    finite: NDArray[Any] = values[np.isfinite(values)]
    return finite


def _icc_transform(image: Image.Image, notes: list[str]) -> ImageCms.ImageCmsTransform | None:
    """From the embedded profile to sRGB; None where there is none to apply."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError):
        notes.append("ignored its colour profile, which is broken")
        return None
    modes = {"RGB": _RGB_MODES | _GREY_MODES, "L": _GREY_MODES, "CMYK": {"CMYK"}}[mode]
    if image.mode not in modes:
        notes.append(f"ignored its colour profile, which is not for {image.mode} pixels")
        return None
    return None if mode == "RGB" and _is_identity(transform) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it moves no colour by more than rounding: sRGB has many names, and 4,913 colours tell."""
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    moved = np.asarray(transform.apply(Image.fromarray(cube)))
    return bool(np.abs(moved.astype(int) - cube).max() <= 1)


def _fitted(image: Image.Image, fit: Fit) -> NDArray[np.uint8]:
    height, width = fit.size
    if fit.mode == "crop":
        # torchvision's arithmetic: the long side is cut to whole pixels, the offset rounded half to even.
        rows, columns = round(height * fit.zoom), round(width * fit.zoom)
        if rows * image.width >= columns * image.height:
            columns = int(rows * image.width / image.height)
        else:
            rows = int(columns * image.height / image.width)
        left, top = round((columns - width) / 2), round((rows - height) / 2)
        return _scale(image, columns, rows, (left, top, left + width, top + height))
    if fit.mode == "pad":
        left, top, right, bottom = _inside(image.width, image.height, fit.size)
        pixels = np.full((height, width, 3), fit.background, np.uint8)
        pixels[top:bottom, left:right] = _scale(image, right - left, bottom - top)
        return pixels
    if fit.mode == "native":
        width = max(1, round(image.width / fit.multiple)) * fit.multiple
        height = max(1, round(image.height / fit.multiple)) * fit.multiple
        _check_size(width, height, fit.max_pixels)
    return _scale(image, width, height)


def _inside(width: int, height: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Where a picture lies (left, top, right, bottom) once padded to `size`, (height, width)."""
    scale = min(size[1] / width, size[0] / height)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[1] - columns) // 2, (size[0] - rows) // 2
    return left, top, left + columns, top + rows


def _scale(
    image: Image.Image, width: int, height: int, window: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Scale to width x height by Lanczos, and cut the window (left, top, right, bottom) out of that.

    What is not in the window is computed only where that is little, because resampling a part
    rounds otherwise, by a few levels, than resampling the whole does.
    """
    left, top, right, bottom = window or (0, 0, width, height)
    if width * image.height > max(LARGE, width * height, image.width * image.height):
        # Widened first, as Pillow may, a tall picture would take far more memory than before or after.
        image = image.resize((image.width, height), Resampling.LANCZOS)
    if width * height <= LARGE:
        return np.array(image.resize((width, height), Resampling.LANCZOS).crop((left, top, right, bottom)))
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    x, y = image.width / width, image.height / height
    rows = max(1, STRIP // (right - left))
    for start in range(top, bottom, rows):
        stop = min(start + rows, bottom)
        box = (left * x, start * y, right * x, stop * y)
        strip = image.resize((right - left, stop - start), Resampling.LANCZOS, box)
        pixels[start - top : stop - top] = np.asarray(strip)
    return pixels


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not all(type(side) is int and side >= 1 for side in (width, height)):
        raise ImageError(f"{quoted(width)} x {quoted(height)} pixels are no picture")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"has a side of more than {MAX_SIDE:,} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"has {width:,} x {height:,} pixels, more than {max_pixels:,}: a larger "
            "--max-pixels takes it, if you trust it"
        )


def _check_pixels(pixels: NDArray[np.uint8], axes: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != len(axes) or pixels.shape[-1] != 3 or not pixels.size:
        shape = ", ".join(axes)
        raise ImageError(f"pixels are [{shape}] uint8, not {list(pixels.shape)} of {pixels.dtype}")


def _explain(error: Exception, max_pixels: int) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that vartok can read"
    if isinstance(error, Image.DecompressionBombError):
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        return f"has more than {limit:,} pixels: a larger --max-pixels takes it, if you trust it"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    message = one_line(str(error)).removesuffix(" when reading image file") or type(error).__name__
    if "truncated" in message.lower():
        return "is truncated: the file ends before its picture does"
    return f"is broken: {message}"
