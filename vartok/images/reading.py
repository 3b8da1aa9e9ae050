"""Read picture files as a viewer shows them: upright, in sRGB, the first frame of several."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import (
    BmpImagePlugin,
    ExifTags,
    IcoImagePlugin,
    Image,
    PngImagePlugin,
    UnidentifiedImageError,
)
from PIL.ImageFile import ImageFile

from vartok.errors import DamagedImageError, ImageError, quoted
from vartok.files import os_error_reason
from vartok.images import libtiff
from vartok.images.arrays import is_array, read_array
from vartok.images.bands import UPRIGHT, Bands
from vartok.images.channels import raw_mode, to_bands
from vartok.images.color import grey_scale, to_rgb
from vartok.images.decoding import DAMAGED_HINT, TRUNCATED, decode, describe_damage, filled_up, is_damage
from vartok.images.fit import MAX_BYTES, PIXELS_HINT, Fit, check_size, fitted
from vartok.images.jpeg import check_segments, unsupported_jpeg
from vartok.images.jpeg2000 import check_boxes
from vartok.images.png import without_unreadable_chunks
from vartok.images.scaling import large_image_lock
from vartok.images.tiff import is_tiff, read_planes, refuse_raw, seek_full_page, unsupported_tiff
from vartok.images.tiff_bands import read_tiff_bands

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels
    from vartok.metadata import View

COSTLY = {"WEBP": 1.5, "JPEG2000": 2.0}
"""Divisor of `max_pixels` by format, where a decoder takes more memory than usual."""

# Formats that Pillow may decode. Left out are formats that run a program (EPS), are stubs (BUFR, GRIB, HDF5,
# MPEG, WMF), or hide a second picture or an archive of any size behind a small header (BLP, FITS, ICNS,
# IPTC). TGA has no signature, so it is tried last.
READABLE = (
    *("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "ICO", "CUR", "DDS"),
    *("PSD", "QOI", "PCX", "DCX", "SGI", "SUN", "FLI", "MSP", "XBM", "XPM", "TGA"),
)

MAX_READS = 500_000
"""How often a file may be read from; Pillow takes microseconds for each of a million tiny parts of a file."""


@dataclass(frozen=True)
class Picture:
    """A fitted picture.

    Attributes:
        pixels: [H, W, C] uint8, C-contiguous; [V, H, W, C] for a fit of other views than "center". Three
            channels are sRGB. Of other numbers, C is `fit.channels`, levels of more than 8 bits are uint16.
        width: width of the original in pixels, after its EXIF orientation was applied.
        height: height of the original in pixels, after its EXIF orientation was applied.
        notes: remarks for the user, such as "animation: took the first of 12 frames".
        views: the V views, in such a fit; else empty.
        damage: how the file is damaged, on one line, with `Fit.allow_damaged`; None if it is whole.
    """

    pixels: Pixels
    width: int
    height: int
    notes: tuple[str, ...]
    views: tuple[View, ...] = ()
    damage: str | None = None


def picture_suffixes() -> tuple[str, ...]:
    """Return the suffixes of picture files, in lower case: ".png", ".jpg", ..."""
    Image.init()
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in READABLE)


def configure_pillow(*, quiet: bool = True) -> None:
    """Configure Pillow for a program that uses vartok; this changes the whole process.

    Pillow's own pixel limit is removed, so that only `Fit.max_pixels` applies. libtiff's errors are
    heard, and files whose pixels it calls damaged are refused.

    Args:
        quiet: keep libtiff from writing to stderr; for one broken file it may write hundreds of lines.
    """
    Image.MAX_IMAGE_PIXELS = None
    libtiff.listen(quiet=quiet)


def read_picture(file: str | Path | bytes, fit: Fit | None = None, *, key: str = "") -> Picture:
    """Read a picture as a viewer shows it, and fit it.

    EXIF orientation is applied, an embedded ICC profile is converted to sRGB, and transparency is composited
    on the background. The first of several frames is taken, and the first of several pages that is not a
    thumbnail. Raw files of cameras are refused.

    Grey levels are rescaled to 8 bits. White is 65535 in 16 bits, 4095 in TIFF's 12 bits, and 1 in floats if
    all are from 0 to 1. Other floats, and TIFF's signed and 32-bit integers, do not define white: the
    picture's minimum becomes black and its maximum white, with a note. TIFF's WhiteIsZero swaps black and
    white. NaN is black. 16-bit RGB, and 16-bit grey with alpha, keep their high bytes, as Pillow reads them.

    Args:
        file: path of a regular file, or the bytes of one.
        fit: the fit of the picture, with its limits; if None, `Fit()`: the centre, cropped to 256x256.
        key: key of the picture, on which random views depend.

    Returns:
        The fitted pixels, the original's size, and notes for the user.

    Raises:
        DamagedImageError: the file is truncated or corrupt; with `fit.allow_damaged`, only if no pixel can be
            decoded.
        ImageError: the file cannot be opened, has no format that vartok reads, is broken, or exceeds
            `fit.max_pixels` or, if given as bytes, `fit.max_bytes`; the message does not name the file. Or
            an argument has the wrong type.
    """
    fit = Fit() if fit is None else fit
    if not isinstance(fit, Fit):
        raise ImageError(f"fit must be a Fit, not {quoted(fit)}", hint="give `Fit(size=256)`, for example")
    if not isinstance(file, (str, os.PathLike, bytes)):
        raise ImageError(
            f"a picture's file must be a path or bytes, not {quoted(type(file).__name__)}",
            hint="`Tokenizer.encode` takes PIL images and arrays",
        )
    try:
        if isinstance(file, bytes) and len(file) > fit.max_bytes:
            raise bytes_error(fit.max_bytes)
        with _open(file) as stream:
            refuse_raw(stream)
            if is_array(stream) or (fit.channels not in (1, 3) and is_tiff(stream)):
                return _read_values(stream, fit, key)
            return _read(stream, fit, key)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise any type for broken bytes
        raise _explain(error, fit.max_pixels) from error


def read_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a picture's file.

    Args:
        path: path of a regular file.
        max_bytes: size limit in bytes.

    Raises:
        ImageError: the file cannot be opened, is not a regular file, is empty, or is larger than `max_bytes`.
        OSError: reading fails after the file was opened.
    """
    with _open(path) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise bytes_error(max_bytes)
    return data


def bytes_error(max_bytes: int) -> ImageError:
    """Return the error for a picture whose file has more than `max_bytes` bytes."""
    hint = "set `max_bytes` higher, if you trust the file"
    return ImageError(f"has more than {max_bytes:,} bytes", hint=hint)


class _CountedReads(io.BufferedIOBase):
    """Mixin of a stream that raises ImageError when it is read from more than `MAX_READS` times."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes, and count."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise ImageError(f"has too many parts: reading them takes more than {MAX_READS:,} steps")
        return super().read(size)


class _File(_CountedReads, io.BufferedReader): ...


class _Bytes(_CountedReads, io.BytesIO): ...


def _open(file: str | Path | bytes) -> _File | _Bytes:
    stream: _File | _Bytes
    if isinstance(file, bytes):
        stream = _Bytes(file)
        size = len(file)
    else:
        try:
            status = os.stat(file)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("is a folder, not a picture")
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
                raise ImageError("is not a regular file: a pipe can be read only as standard input")
            # Pillow would memory-map a path, and a mapped file that is truncated meanwhile kills the process.
            stream = _File(io.FileIO(file))
            size = status.st_size
        except (OSError, ValueError) as error:
            raise ImageError(os_error_reason(error)) from error
    if not size:
        stream.close()
        raise ImageError("is empty")
    return stream


def _read(counted: _File | _Bytes, fit: Fit, key: str) -> Picture:
    stream: BinaryIO = counted
    Image.init()
    formats = [name for name in READABLE if name in Image.OPEN]
    _check_icon(stream, fit.max_pixels)
    notes: list[str] = []
    stream.seek(0)
    check_segments(stream)
    check_boxes(stream)
    stream = without_unreadable_chunks(stream, notes)
    damage = None
    try:
        source = Image.open(stream, formats=formats)
    except Exception as error:
        if not is_damage(error) or not (filled := filled_up(stream)):
            if reason := isinstance(error, UnidentifiedImageError) and _unsupported(stream):
                raise ImageError(reason) from None
            raise
        damage = TRUNCATED
        if not fit.allow_damaged:
            raise DamagedImageError(damage, hint=DAMAGED_HINT) from error
        stream = filled
        source = Image.open(stream, formats=formats)
    max_pixels = int(fit.max_pixels / COSTLY.get(source.format or "", 1))
    check_size(source.width, source.height, max_pixels, hint=PIXELS_HINT)
    try:
        frames = getattr(source, "n_frames", 1)
    except Exception:  # counting reads the other frames, which may be broken, or many
        frames = 1
        if counted.reads > MAX_READS:
            notes.append("took the first of very many frames")
        counted.reads = 0
        source = Image.open(stream, formats=formats)
    if frames > 1 and source.format == "TIFF" and (page := seek_full_page(source, frames)):
        check_size(source.width, source.height, max_pixels, hint=PIXELS_HINT)
        notes.append(f"multi-page: took page {page + 1} of {frames}, the first that is not a thumbnail")
    elif frames > 1 and source.format in ("TIFF", "DCX"):
        notes.append(f"multi-page: took the first of {frames} pages")
    elif frames > 1 and source.format not in (
        "MPO",
        "PSD",
    ):  # gain maps, layers
        notes.append(f"animation: took the first of {frames} frames")

    # Each step rebinds `image`, which frees the full-size copy of the step before.
    with large_image_lock(source.width * source.height):
        _scale_transparency(source)
        if source.format == "TIFF":
            read_planes(source)
        stored = raw_mode(source)
        found = decode(source, stream, allow_damaged=fit.allow_damaged)
        damage = damage or found
        check_size(source.width, source.height, max_pixels, hint=PIXELS_HINT)  # again, once decoded
        grey = grey_scale(source, notes)
        image = _upright(source, notes)
        del source
        if fit.channels == 3:
            return _fitted(to_rgb(image, fit.background, grey, notes), fit, key, notes, damage)
        bands = to_bands(image, fit.channels, fit.background, grey, notes, stored)
        return _fitted(bands, fit, key, notes, damage)


def _read_values(stream: BinaryIO, fit: Fit, key: str) -> Picture:
    """Read a file of values: an array, or a TIFF of several channels."""
    notes: list[str] = []
    read = read_array if is_array(stream) else read_tiff_bands
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with large_image_lock(size // 3):
        image, damage = read(stream, fit, notes)
        return _fitted(image, fit, key, notes, damage)


def _fitted(image: Image.Image | Bands, fit: Fit, key: str, notes: list[str], damage: str | None) -> Picture:
    pixels, views = fitted(image, fit, key)
    if damage is not None:
        notes.append(f"{damage}; took what can be decoded of it")
    return Picture(pixels, image.width, image.height, tuple(notes), views, damage)


def _check_icon(stream: BinaryIO, max_pixels: int) -> None:
    """Check the size of the picture in an .ico file, since Pillow decodes it as soon as it opens the file."""
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
        check_size(width, height if is_png else height // 2, max_pixels, hint=PIXELS_HINT)


def _unsupported(stream: BinaryIO) -> str | None:
    """Return what makes a file unreadable for Pillow, or None if nothing is known."""
    return unsupported_jpeg(stream) or unsupported_tiff(stream)


def _scale_transparency(source: ImageFile) -> None:
    """Scale a PNG's transparent colour (2-bit or 4-bit grey, 16-bit RGB) to 8 bits, as Pillow does pixels."""
    color = source.info.get("transparency")
    if source.format == "PNG" and isinstance(color, (int, tuple)):
        raw = source.tile[0].args
        if raw == "RGB;16B" and isinstance(color, tuple):
            source.info["transparency"] = tuple(level >> 8 for level in color)
        elif raw in ("L;2", "L;4") and isinstance(color, int):
            source.info["transparency"] = color * (85 if raw == "L;2" else 17)


def _upright(source: Image.Image, notes: list[str]) -> Image.Image:
    """Return the picture rotated and flipped according to its EXIF orientation."""
    try:
        turn = UPRIGHT.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises any type for broken EXIF data; the pixels are whole
        notes.append("ignored its EXIF data, which is broken")
        turn = None
    return source if turn is None else source.transpose(turn)


def _explain(error: Exception, max_pixels: int) -> ImageError:
    """Return the ImageError for an exception of Pillow."""
    if isinstance(error, UnidentifiedImageError):
        return ImageError("not a picture that vartok can read")
    if isinstance(error, Image.DecompressionBombError):
        pillow_limit = 2 * (Image.MAX_IMAGE_PIXELS or max_pixels)
        hint = PIXELS_HINT if max_pixels <= pillow_limit else "raise PIL.Image.MAX_IMAGE_PIXELS too"
        return ImageError(f"has more than {min(max_pixels, pillow_limit):,} pixels", hint=hint)
    if isinstance(error, MemoryError):
        return ImageError("not enough memory to decode it")
    return ImageError(describe_damage(error))
