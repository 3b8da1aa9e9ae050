"""Recognize camera raw files, thumbnails and layouts of pixels in TIFF files that Pillow misreads."""

from __future__ import annotations

from typing import Any, BinaryIO

from PIL.ImageFile import ImageFile, _Tile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vartok.errors import ImageError
from vartok.images.tiff_tags import (
    BITS,
    DNG_VERSION,
    EXTRA,
    FORMAT,
    MAKE,
    OLD_SUBFILE,
    PHOTOMETRIC,
    PLANES,
    SAMPLES,
    SUB_IFDS,
    SUBFILE,
)

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF files."""

_RAW_SIGNATURES = {
    (0, b"FUJIFILMCCD-RAW"): "RAF",
    (0, b"FOVb"): "X3F",
    (0, b"IIRO"): "ORF",
    (0, b"IIRS"): "ORF",
    (0, b"MMOR"): "ORF",
    (0, b"IIU\0"): "RW2",
    (0, b"\0MRM"): "MRW",
    (4, b"ftypcrx "): "CR3",
    (6, b"HEAPCCDR"): "CRW",
    (8, b"CR\2\0"): "CR2",
    (8, b"IIII"): "IIQ",
}
_MAKERS = {
    "nikon": "NEF",
    "sony": "ARW",
    "pentax": "PEF",
    "samsung": "SRW",
    "hasselblad": "3FR",
    "epson": "ERF",
    "canon": "CR2",
}
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}  # Pillow's names of big-endian values
_CFA, _LINEAR_RAW = 32803, 34892  # values of PHOTOMETRIC
_PREMULTIPLIED = 1  # value of EXTRA


def is_tiff(stream: BinaryIO) -> bool:
    """Return whether a file is a TIFF file; its position is the start, before and after."""
    head = stream.read(4)
    stream.seek(0)
    return head in MARKS


def refuse_raw(stream: BinaryIO) -> None:
    """Raise ImageError if a file is a camera's raw file, whose first picture is often a thumbnail.

    Args:
        stream: the file; its position is the start, before and after.
    """
    head = stream.read(16)
    stream.seek(0)
    for (at, signature), name in _RAW_SIGNATURES.items():
        if head.startswith(signature, at):
            raise _raw(name)
    tags = first_tags(stream)
    if DNG_VERSION in tags:
        raise _raw("DNG")
    maker = str(tags.get(MAKE, "")).lower()
    name = next((name for prefix, name in _MAKERS.items() if maker.startswith(prefix)), "DNG, NEF, ARW, ...")
    if tags.get(PHOTOMETRIC) in (_CFA, _LINEAR_RAW) or (SUB_IFDS in tags and is_reduced(tags)):
        raise _raw(name)


def seek_full_page(source: ImageFile, pages: int) -> int:
    """Seek the first page of a TIFF file that does not call itself a thumbnail, and return its index.

    If the first 16 pages are all thumbnails, the first page is taken.
    """
    for page in range(min(pages, 16)):
        source.seek(page)
        if not is_reduced(source.tag_v2):  # type: ignore[attr-defined]
            return page
    source.seek(0)
    return 0


def unsupported_tiff(stream: BinaryIO) -> str | None:
    """Return what makes the pixels of a TIFF file unreadable for Pillow, or None if nothing is known."""
    stream.seek(0)
    tags = first_tags(stream)
    bits, kind = tags.get(BITS), tags.get(FORMAT)
    bits = bits if isinstance(bits, tuple) else (bits,)
    kind = kind if isinstance(kind, tuple) else (kind,)
    if len(set(bits)) != 1 or not isinstance(bits[0], int) or not isinstance(tags.get(SAMPLES, 1), int):
        return None
    names = {
        1: "unsigned integers",
        2: "signed integers",
        3: "floats",
        5: "complex integers",
        6: "complex floats",
    }
    name = names.get(kind[0] if kind[0] is not None else 1)
    samples = tags.get(SAMPLES, 1)
    if name is None or not 0 < bits[0] <= 64 or not 0 < samples <= 64:
        return None
    if kind[0] in (None, 1) and bits[0] in (8, 16) and samples in (1, 3, 4):
        return None  # Pillow reads most of these
    return f"is a TIFF of {samples} x {bits[0]}-bit {name} a pixel, which vartok cannot read"


def read_native_order(source: ImageFile) -> None:
    """Let Pillow take values from libtiff in this machine's byte order, in which libtiff gives them.

    Pillow knows that of unsigned 16-bit levels alone: it swaps the bytes of others in big-endian files.
    """
    source.tile = [
        tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] in _NATIVE
        else tile
        for tile in source.tile
    ]


def read_planes(source: ImageFile) -> None:
    """Let libtiff read uncompressed planes; Pillow's own reader takes every plane for 8-bit levels.

    Raises:
        ImageError: Pillow cannot read the planes with libtiff either.
    """
    tags = source.tag_v2  # type: ignore[attr-defined]
    if tags.get(PLANES) == 2 and source.mode == "LAB":  # Pillow takes the signed levels as unsigned ones
        raise ImageError("is a TIFF of planes in LAB, which vartok cannot read")
    if tags.get(PLANES) != 2 or not source.tile or source.tile[0].codec_name != "raw":
        return
    bits = tags.get(BITS, (1,))
    if tags.get(SAMPLES, 1) == 1:  # one plane: as if they were not apart
        tags[PLANES] = 1
        source._setup()  # type: ignore[attr-defined]
    elif set(bits) != {8}:
        rawmode = {"RGB": "RGB;16N", "RGBA": "RGBA;16N", "CMYK": "CMYK;16N"}.get(source.mode)
        if rawmode is None or set(bits) != {16}:
            raise ImageError(f"is a TIFF of {bits[0]}-bit planes in {source.mode}, which vartok cannot read")
        if _PREMULTIPLIED in tags.get(EXTRA, ()):
            rawmode = "RGBa;16N"
        width, height = source._tile_size  # type: ignore[attr-defined]
        source.use_load_libtiff = True  # type: ignore[attr-defined]
        source.tile = [_Tile("libtiff", (0, 0, width, height), 0, (rawmode, False, tags.offset))]


def is_reduced(tags: Any) -> bool:
    """Return True if a directory of a TIFF file calls its picture a reduced one of another."""
    subfile = tags.get(SUBFILE, 0)
    return bool(isinstance(subfile, int) and subfile & 1) or tags.get(OLD_SUBFILE) == 2


def _raw(name: str) -> ImageError:
    return ImageError(
        f"is a raw file of a camera ({name}), which vartok cannot read",
        hint="develop it to a JPEG, PNG or TIFF file first",
    )


def first_tags(stream: BinaryIO) -> Any:
    """Return the tags of the first directory of a TIFF file, empty for any other file."""
    header = stream.read(8)
    try:
        if header[:4] in MARKS:
            if header[2:3] == b"+" or header[3:4] == b"+":
                header += stream.read(8)
            tags = ImageFileDirectory_v2(header)
            stream.seek(tags.next)
            tags.load(stream)
            return tags
    except Exception:  # Pillow raises any type for broken bytes, and says so when it opens the file
        return {}
    finally:
        stream.seek(0)
    return {}
