"""Decode the pixels of an opened picture file, and tell whether its data are damaged."""

from __future__ import annotations

import contextlib
import io
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile

from vartok.errors import DamagedImageError, ImageError, one_line
from vartok.images import libtiff
from vartok.images.fit import MAX_BYTES
from vartok.images.jpeg import load_checked, load_truncated
from vartok.images.png import check_data
from vartok.images.tiff import read_native_order
from vartok.images.tiff_strips import check_strips

DAMAGED_HINT = "set `allow_damaged` to take what can be decoded of it"
TRUNCATED = "is truncated: the file ends before its picture does"


def decode(source: ImageFile, stream: BinaryIO, *, allow_damaged: bool) -> str | None:
    """Decode the pixels of a picture.

    Args:
        source: the picture, not yet decoded; it then holds its pixels. Where data are missing, these are what
            the decoder left there, such as black or grey.
        stream: the file that it was opened from.
        allow_damaged: keep the pixels of a damaged file, if some can be decoded.

    Returns:
        How the file is damaged, on one line; None if nothing is known to be.

    Raises:
        DamagedImageError: the file is damaged, and `allow_damaged` is not set or no pixel can be decoded.
        Exception: any other error, such as MemoryError, or an OSError of the device that is read.
    """
    try:
        if source.format in ("JPEG", "MPO"):
            load_checked(source, stream)
        elif source.format == "TIFF":
            read_native_order(source)
            check_strips(source, stream)
            with libtiff.refuse_damage():
                source.load()
        else:
            if source.format == "PNG":
                check_data(stream)
            source.load()
    except Exception as error:
        if not is_damage(error):
            raise
        damage = describe_damage(error)
        if not allow_damaged:
            raise DamagedImageError(damage, hint=DAMAGED_HINT) from error
        _decode_rest(source, stream)
        if not _has_pixels(source):
            raise DamagedImageError(damage) from error
        return damage
    return None


def is_damage(error: Exception) -> bool:
    """Return whether an error in opening or decoding a file means that its data are damaged."""
    if isinstance(error, ImageError):
        return isinstance(error, DamagedImageError)
    if isinstance(error, OSError) and error.errno is not None:  # the device that is read
        return False
    return not isinstance(error, (MemoryError, Image.DecompressionBombError))


def describe_damage(error: Exception) -> str:
    """Return what an exception of Pillow says of a broken file, on one line."""
    if isinstance(error, ImageError):
        return str(error)
    message = one_line(str(error)).removesuffix(" when reading image file") or type(error).__name__
    if "truncated" in message.lower():
        return TRUNCATED
    return f"is broken: {message}"


def filled_up(stream: BinaryIO) -> io.BytesIO | None:
    """Return a truncated WebP or AVIF file with zeros for the bytes that it lacks.

    Their decoders refuse a file that is shorter than it says, but decode one whose data are wrong.

    Args:
        stream: the file.

    Returns:
        The longer file; None if the file has all its bytes, another format, or more than `MAX_BYTES`.
    """
    stream.seek(0)
    data = stream.read(MAX_BYTES + 1)
    size = 0
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = 8 + int.from_bytes(data[4:8], "little")
    elif data[4:8] == b"ftyp":
        while size + 8 <= len(data) and (box := int.from_bytes(data[size : size + 4], "big")) >= 8:
            size += box
    return io.BytesIO(data.ljust(size, b"\0")) if len(data) < size <= MAX_BYTES else None


def _decode_rest(source: ImageFile, stream: BinaryIO) -> None:
    """Decode what an error left out: all of it, or what a JPEG file has; then end the decoding."""
    with contextlib.suppress(Exception):  # Pillow raises any type for broken bytes
        if source.tile and source.format in ("JPEG", "MPO"):
            load_truncated(source, stream)
        elif getattr(source, "_im", None) is None:
            source.load()
    if source.tile:
        source.tile = []  # Pillow would decode them at every use
        with contextlib.suppress(Exception):
            source.load_end()


def _has_pixels(source: ImageFile) -> bool:
    """Return whether pixels were decoded: those of a new image, and of a decoder's filling, are all alike."""
    if getattr(source, "_im", None) is None:
        return False
    return any(low != high for low, high in (band.getextrema() for band in source.split()))
