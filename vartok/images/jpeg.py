"""Find JPEG files whose entropy-coded data ends before their picture does.

libjpeg fills what is missing with grey or with unrefined coefficients, and Pillow does not pass its warning
on. Two decodings find it: bytes that are inserted behind a complete scan are skipped, so the picture stays
the same; behind an incomplete scan they are decoded, so it changes.
"""

from __future__ import annotations

import io
import random
import re
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from vartok.errors import DamagedImageError, ImageError
from vartok.images import scaling
from vartok.images.fit import MAX_BYTES

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker other than a restart
_EOI = b"\xff\xd9"
_INSERTED = [random.Random(k).randbytes(512).replace(b"\xff", b"\x55") for k in range(9)]
_MAX_SEGMENTS = 100_000  # and bytes of filling between them; Pillow takes a microsecond and more for each
_MAX_SCANS = 1000  # libjpeg goes over the whole picture for each; usual files have a dozen
_ZEROS = 16  # so many zero bytes in place of an end marker may be a hole


@dataclass
class _Scans:
    """The frame and scans of a JPEG file, up to its first end marker.

    Attributes:
        process: 0 baseline, 1 extended sequential, 2 progressive, others as in the code of the SOF marker.
        precision: bits of a sample.
        mcu: width and height in pixels of an MCU of all components.
        last_bits: by component, and then by coefficient that a scan holds, the bit position (Al) reached.
        count: number of scans.
        end: where the entropy-coded data of the last scan ends; the file's length if no marker ends it.
        restart: number, 0 to 7, of the restart marker that would follow there; -1 without restart markers.
    """

    process: int = -1
    precision: int = 8
    mcu: tuple[int, int] = (8, 8)
    last_bits: dict[int, dict[int, int]] = field(default_factory=dict)
    count: int = 0
    end: int = 0
    restart: int = -1


class _ScanCheck:
    """Check that a JPEG file holds the data of its whole picture.

    Args:
        data: the bytes of the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        scans = _find_scans(data)
        # Data of the other processes may end early (arithmetic coding), or Pillow cannot read them.
        self._checked = scans.process in (0, 1, 2) and scans.count > 0
        self._mcu = scans.mcu
        self._end = scans.end
        self._restart = scans.restart
        self._has_hole = False
        self._before: int | None = None
        if not self._checked:
            return
        self._lacks_scans = any(0 not in bits or any(bits.values()) for bits in scans.last_bits.values())
        if self._end == len(data):
            self._end = len(data.rstrip(b"\0"))
            self._end += data[self._end - 1] == 0xFF  # that byte is 0xFF 0x00
            self._has_hole = len(data) - self._end >= _ZEROS
            self._checked = (
                self._has_hole or self._lacks_scans
            )  # otherwise Pillow finds that the file ends early
        self._several = scans.process == 2 or scans.count > 1

    def before_decoding(self) -> None:
        """Decode the file with bytes inserted, if its pixels alone cannot show that data is missing.

        This runs first so that two pictures are never in memory at once.
        """
        if self._checked and not self._lacks_scans and (self._several or self._has_hole):
            self._before = self._signature(inserted=True)

    def after_decoding(self, image: Image.Image) -> None:
        """Compare the decoded picture.

        Raises:
            DamagedImageError: the data ends before the picture does.
        """
        if not self._checked:
            return
        if self._lacks_scans:  # a component, or the last bits of some coefficients
            raise _truncated()
        if self._before is not None:
            complete = self._before == _signature(image, self._mcu)
        elif self._several or self._has_hole or not _ends_grey(image):
            return
        else:  # DC alone tells whether a sequential block was decoded, so an eighth of the size does
            complete = self._signature(inserted=True, scale=8) == self._signature(inserted=False, scale=8)
        if not complete:
            raise _truncated()

    def _signature(self, *, inserted: bool, scale: int = 1) -> int | None:
        """Return the CRC of the decoded picture, or None if Pillow cannot decode it."""
        data = self._data
        if inserted:
            # A decoder that wants a restart marker skips everything else, so the inserted bytes have some.
            pieces = [
                piece + bytes([0xFF, 0xD0 + (self._restart + k) % 8]) * (self._restart >= 0)
                for k, piece in enumerate(_INSERTED)
            ]
            data = b"".join((data[: self._end], *pieces, _EOI if self._has_hole else data[self._end :]))
        try:
            image = JpegImageFile(io.BytesIO(data))
            if scale > 1:
                image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
            image.load()
        except Exception:  # Pillow raises any type for broken bytes
            return None
        width, height = self._mcu
        return _signature(image, (width // scale, height // scale), margin=2 if scale == 1 else 0)


def load_checked(source: ImageFile, stream: BinaryIO) -> None:
    """Load a JPEG picture, and check that the file holds the data of all of it.

    Args:
        source: the picture, not yet decoded.
        stream: the file that it was opened from; one of more than `MAX_BYTES` is not checked.

    Raises:
        DamagedImageError: the data ends before the picture does.
    """
    stream.seek(0)
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        source.load()
        return
    check = _ScanCheck(data)
    check.before_decoding()
    source.load()
    check.after_decoding(source)


def load_truncated(source: ImageFile, stream: BinaryIO) -> None:
    """Load a JPEG picture whose data are truncated: with an end marker behind the last scan.

    libjpeg then gives all that it has decoded, which are whole passes of a progressive picture.

    Args:
        source: the picture, which `load_checked` refused.
        stream: the file that it was opened from; one of more than `MAX_BYTES` is left as it is.

    Raises:
        Exception: Pillow raises any type for broken bytes.
    """
    stream.seek(0)
    data = stream.read(MAX_BYTES + 1)
    if len(data) <= MAX_BYTES:
        source.fp = io.BytesIO(data[: _find_scans(data).end] + _EOI)
        source.load()


def check_segments(stream: BinaryIO) -> None:
    """Check the number of segments in a JPEG file's header, before Pillow looks at each of them.

    Args:
        stream: the file; its position is the start, before and after.

    Raises:
        ImageError: there are more than `_MAX_SEGMENTS` segments or bytes between them.
    """
    head = stream.read(3)
    if head == b"\xff\xd8\xff":
        _find_scans(head + stream.read(MAX_BYTES), header=True)
    stream.seek(0)


def unsupported_jpeg(stream: BinaryIO) -> str | None:
    """Return what makes a JPEG file unreadable for Pillow, or None if nothing is known."""
    stream.seek(0)
    head = stream.read(3)
    if head != b"\xff\xd8\xff":
        return None
    precision = _find_scans(head + stream.read(MAX_BYTES), header=True).precision
    return None if precision == 8 else f"is a JPEG of {precision} bits a sample, of which vartok reads 8"


def _truncated() -> DamagedImageError:
    return DamagedImageError("is truncated or broken: its data ends before its picture does")


def _find_scans(data: bytes, *, header: bool = False) -> _Scans:
    """Walk over the markers up to the end marker, or the first scan; stop where they make no sense.

    Raises:
        ImageError: there are more segments or scans than a usual file has.
    """
    scans = _Scans()
    at, has_restarts, segments = 2, False, 0
    while match := _MARKER.search(data, at):
        code = data[match.end() - 1]
        segments += 1 + match.start() - at
        at = match.end()
        if segments > _MAX_SEGMENTS or scans.count > _MAX_SCANS:
            raise ImageError(
                f"has more than {_MAX_SEGMENTS:,} segments or {_MAX_SCANS:,} scans, which no usual JPEG has"
            )
        if header and code == 0xDA:
            break
        if code == 0xD9:
            break
        if code <= 0x01 or 0xD0 <= code <= 0xD8:  # these have no length
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + size]
        if size < 2 or len(body) != size - 2:
            break
        at += size
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if scans.process >= 0 or len(body) < 6 or len(body) < 6 + 3 * body[5]:
                break
            parts = [body[6 + 3 * k : 9 + 3 * k] for k in range(body[5])]
            scans.process, scans.precision = code & 15, body[0]
            scans.last_bits = {part[0]: {} for part in parts}
            if len(parts) > 1:
                scans.mcu = (
                    8 * max(part[1] >> 4 or 1 for part in parts),
                    8 * max(part[1] & 15 or 1 for part in parts),
                )
        elif code == 0xDD and len(body) >= 2:
            has_restarts = any(body[:2])
        elif code == 0xDA:
            if not body or len(body) < 4 + 2 * body[0]:
                break
            first, last, low = body[-3], body[-2], body[-1] & 15
            if scans.process != 2:
                first, last, low = 0, 63, 0
            for k in range(body[0]):
                bits = scans.last_bits.setdefault(body[1 + 2 * k], {})
                bits.update(dict.fromkeys(range(first, min(last, 63) + 1), low))
            scans.count += 1
            end = _END_OF_SCAN.search(data, at)
            start, scans.end = at, end.start() if end else len(data)
            at = scans.end
            while end and data[scans.end - 1] == 0xFF:  # fill bytes belong to the marker
                scans.end -= 1
            scans.restart = -1
            if has_restarts:
                last = max(data.rfind(bytes([0xFF, 0xD0 + k]), start, scans.end) for k in range(8))
                scans.restart = (data[last + 1] - 0xCF) % 8 if last >= 0 else 0
    return scans


def _ends_grey(image: Image.Image) -> bool:
    """Return True if the last pixel is libjpeg's filling, which inverted CMYK shows as 127."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    levels = pixel if isinstance(pixel, tuple) else (pixel,)
    return all(level in (127, 128) for level in levels)


def _signature(image: Image.Image, mcu: tuple[int, int], margin: int = 2) -> int:
    """Return the CRC of all pixels but the last MCU's, whose final bits some encoders omit.

    Chroma is interpolated, so pixels within `margin` of that MCU depend on it, and are left out too.
    """
    columns = ((image.width - 1) // mcu[0]) * mcu[0] - margin
    rows = ((image.height - 1) // mcu[1]) * mcu[1] - margin
    crc = 0
    step = max(1, scaling.STRIP // image.width)
    for top, bottom, right in ((0, rows, image.width), (max(0, rows), image.height, columns)):
        for y in range(top, bottom, step):
            if right > 0:
                crc = zlib.crc32(image.crop((0, y, right, min(y + step, bottom))).tobytes(), crc)
    return crc
