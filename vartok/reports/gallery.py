"""The pictures of a report, compressed as they come: originals, and what the first 1, 2, ... scales give."""

from __future__ import annotations

import base64
import bisect
import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray
from PIL import Image

from vartok.errors import printable
from vartok.images.tensors import Pixels, as_pil, drawable

MAX_BYTES = 8_000_000
"""Limit of all pictures of a page together, in bytes of HTML; it keeps a page below 10 MB."""

MARKUP, COPY_MARKUP = 800, 250
"""Numbers of bytes that the markup of a picture and of a copy take at most, beside names and data: URIs."""

NAMES = 4
"""Number of places of a picture's markup that hold its name."""

MAX_NAME = 300
"""Largest number of characters of a text that comes from files or users."""

MAX_CHARACTER = 5
"""Number of bytes of HTML that a character of a name takes at most: escaped as &#34;, or UTF-8."""

MAX_SIDE = 512
"""Longest side of a picture in a page, in pixels; a larger picture is scaled down."""

MAX_COPIES = 12
"""Largest number of copies of a picture by one checkpoint, one after each of so many scales."""

QUALITY = 80
"""WebP's quality. At 80, a photo of 256 pixels a side and its ten copies have 33 kB together."""


@dataclass(frozen=True)
class Copy:
    """A picture that was decoded from the first scales.

    Attributes:
        scales: number of the scales.
        total: number of all scales.
        psnr: PSNR in dB.
        uri: data: URI of the pixels.
    """

    scales: int
    total: int
    psnr: float
    uri: str

    @property
    def text(self) -> str:
        """The caption of the copy."""
        part = f"after {self.scales} of {self.total} scales" if self.total > 1 else "decoded"
        return f"{part}: {self.psnr:.2f} dB"


@dataclass(frozen=True)
class Exhibit:
    """A picture of a gallery.

    Attributes:
        name: path or name of the picture.
        width: width in the page, in pixels.
        height: height in the page, in pixels.
        uri: data: URI of the original.
        copies: copies by every checkpoint, fewest scales first.
    """

    name: str
    width: int
    height: int
    uri: str
    copies: tuple[tuple[Copy, ...], ...]

    @property
    def most_copies(self) -> int:
        """Largest number of copies by one checkpoint."""
        return max(map(len, self.copies))

    @property
    def bytes(self) -> int:
        """Number of bytes that the picture takes in a page, at most."""
        # A page leaves out the folder that all names share, so that any part of a longer name may be shown.
        name = min(len(escape(printable(self.name, len(self.name))).encode()), MAX_NAME * MAX_CHARACTER)
        copies = sum(COPY_MARKUP + len(copy.uri) for copies in self.copies for copy in copies)
        return MARKUP + NAMES * name + len(self.uri) + copies


class Gallery:
    """Keeps pictures in compressed form, the worst ones, up to a limit of their data. Threads may share it.

    The pictures kept are the same in whatever order they are added: the longest list that fits, from the
    lowest PSNR on.

    Args:
        max_bytes: limit of what they take in a page, in bytes.

    Attributes:
        left_out: number of pictures that were added and are not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.left_out = 0
        self._room = max_bytes
        self._limit = (math.inf, "")  # PSNR and name of the first picture that does not fit
        self._kept: list[tuple[tuple[float, str], Exhibit]] = []
        self._lock = threading.Lock()

    @property
    def pictures(self) -> list[Exhibit]:
        """The pictures kept, lowest PSNR first."""
        return [exhibit for _, exhibit in self._kept]

    def add(
        self,
        name: str,
        reference: Pixels,
        copies: Sequence[Sequence[Pixels]],
        psnr: Sequence[Sequence[float]],
    ) -> None:
        """Add a picture.

        Args:
            name: path or name of the picture.
            reference: [H, W, C] uint8 or uint16, the pixels that were encoded.
            copies: pixels that every checkpoint decoded from 1, 2, ... K scales, or from all scales alone.
            psnr: PSNR of every copy, in dB. The last one of the first checkpoint ranks the picture.
        """
        rank = (psnr[0][-1], name)
        with self._lock:
            if rank >= self._limit:
                self.left_out += 1
                return
        original = shrink(reference)
        height, width = original.shape[:2]
        compressed = tuple(_compress(*both) for both in zip(copies, psnr, strict=True))
        self.keep(rank[0], Exhibit(name, width, height, picture_uri(original), compressed))

    def keep(self, psnr: float, exhibit: Exhibit) -> None:
        """Add a picture in compressed form, ranked by a PSNR in dB."""
        with self._lock:
            bisect.insort(self._kept, ((psnr, exhibit.name), exhibit), key=lambda kept: kept[0])
            self._room -= exhibit.bytes
            while self._room < 0 or (self._kept and self._kept[-1][0] >= self._limit):
                rank, dropped = self._kept.pop()
                self._limit = min(self._limit, rank)
                self._room += dropped.bytes
                self.left_out += 1


def _compress(copies: Sequence[Pixels], psnr: Sequence[float]) -> tuple[Copy, ...]:
    """Return a checkpoint's copies, at most `MAX_COPIES`, the last one included."""
    total = len(copies)
    chosen = sorted({round(k) for k in np.linspace(0, total - 1, min(total, MAX_COPIES))})
    return tuple(Copy(k + 1, total, psnr[k], picture_uri(shrink(copies[k]))) for k in chosen)


def shrink(pixels: Pixels, max_side: int = MAX_SIDE) -> NDArray[np.uint8]:
    """Return [H, W, C] pixels as `drawable` does, scaled down if a side has more than `max_side` pixels."""
    levels = drawable(pixels)
    height, width = levels.shape[:2]
    if max(height, width) <= max_side:
        return levels
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = as_pil(levels).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(small).reshape(size[1], size[0], -1)


def picture_uri(pixels: NDArray[np.uint8], *, lossless: bool = False) -> str:
    """Return the data: URI of [H, W, 1 or 3] uint8 pixels: WebP of quality `QUALITY`, or PNG."""
    stream = io.BytesIO()
    if lossless:
        as_pil(pixels).save(stream, "png", optimize=True)
    else:
        as_pil(pixels).save(stream, "webp", quality=QUALITY, method=2)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
