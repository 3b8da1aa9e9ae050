"""Picture files of many formats, made for tests."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vartok.images import (
    Fit,
    read_picture,
)

Pixels = NDArray[np.uint8]
MAGENTA = (255, 0, 255)
AS_IS = Fit(mode="native", multiple=1, background=MAGENTA)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def read(data: bytes, fit: Fit = AS_IS) -> list[Any]:
    rows: list[Any] = read_picture(data, fit).pixels.tolist()
    return rows


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, depth: int, color: int, rows: list[bytes], *chunks: bytes, height: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height or len(rows), depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b""))
    )


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes) -> bytes:
    """One uncompressed grey page; of 8 bits a level with premultiplied alpha."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags[279] = len(data)
    if bits == 8:
        tags |= {258: 8 | 8 << 16, 277: 2, 338: 1}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, tags[277] if tag == 258 else 1, tags[tag])
        for tag in sorted(tags)
    )
    ifd = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", ifd) + data + b"\0" * (len(data) % 2)
    return head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blurry blobs with sharp grain, which any other resampling would show in."""
    random_ = np.random.default_rng(seed)
    coarse = Image.fromarray(random_.integers(0, 256, (9, 9, 3), np.uint8)).resize((width, height))
    grain = random_.integers(-60, 60, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def profile(space: bytes, gamma: float | None, colorants: str = "rgb") -> bytes:
    """An ICC profile of sRGB's primaries, under other names perhaps; sRGB's own curve if gamma is None."""
    xyz = {"r": (0.4360, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7139)}
    if gamma is None:
        steps = np.linspace(0, 1, 256)
        steps = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
        curve = b"curv" + struct.pack(">II", 0, 256) + np.rint(steps * 65535).astype(">u2").tobytes()
    else:
        curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(gamma * 256))
    tags = {b"kTRC": curve}
    if space == b"RGB ":
        tags = {f"{name}TRC".encode(): curve for name in "rgb"}
        for name, colorant in zip("rgb", colorants, strict=True):
            fixed = (round(value * 65536) for value in xyz[colorant])
            tags[f"{name}XYZ".encode()] = b"XYZ " + struct.pack(">I3i", 0, *fixed)
    tags[b"wtpt"] = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, body in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(data), 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header = (header + bytes(28) + struct.pack(">3I", 63190, 65536, 54061)).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + table + data


def check_message(error: BaseException) -> None:
    message = str(error)
    assert 5 < len(message) < 250
    assert message.isprintable()
