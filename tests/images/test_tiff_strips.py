"""Strips of TIFF files whose data ends early."""

import io
import struct
import zlib
from collections.abc import Callable

import pytest
from picture_files import AS_IS, check_message, photo, saved, tiff
from PIL import Image, TiffImagePlugin

from vartok.errors import ImageError
from vartok.images import read_picture, tiff_strips

GREY = Image.new("RGB", (64, 64), (128, 128, 128))


def strips(data: bytes) -> list[tuple[int, int]]:
    """Return the start and the size of every strip."""
    with Image.open(io.BytesIO(data)) as opened:
        tags = opened.tag_v2  # type: ignore[attr-defined]
        return list(zip(tags[273], tags[279], strict=True))


def zeroed(data: bytes, left: Callable[[int], int]) -> bytes:
    """Return a TIFF file with zeros after the first `left(size)` bytes of its second strip."""
    start, size = strips(data)[1]
    kept = left(size)
    return data[: start + kept] + bytes(size - kept) + data[start + size :]


@pytest.mark.parametrize("compression", ["jpeg", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_strip_that_ends_in_a_hole_is_refused(
    monkeypatch: pytest.MonkeyPatch, compression: str, mode: str
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 2048)
    whole = saved(photo(64, 64).convert(mode), "TIFF", compression=compression)
    assert read_picture(whole, AS_IS).notes == ()
    with pytest.raises(ImageError, match="the data of its strip 2 ends before its pixels") as caught:
        read_picture(zeroed(whole, lambda size: size // 2), AS_IS)
    check_message(caught.value)


@pytest.mark.parametrize("image", [photo(64, 64), GREY])
def test_a_strip_without_an_end_marker_may_be_whole(
    monkeypatch: pytest.MonkeyPatch, image: Image.Image
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 2048)
    whole = saved(image, "TIFF", compression="jpeg")
    odd = zeroed(whole, lambda size: size - 2)
    assert (read_picture(odd, AS_IS).pixels == read_picture(whole, AS_IS).pixels).all()


def test_zlib_data_may_be_padded() -> None:
    bits = bytes(range(256)) * 2
    plain = tiff(64, 64, 1, 1, bits)
    padded = tiff(64, 64, 1, 1, zlib.compress(bits) + bytes(40))
    padded = padded.replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 8))
    assert (read_picture(padded, AS_IS).pixels == read_picture(plain, AS_IS).pixels).all()


def test_strips_of_one_bomb_are_inflated_up_to_a_multiple_of_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 64)
    monkeypatch.setattr(tiff_strips, "_SMALL", 1 << 12)
    used = []
    check = tiff_strips._check_zlib

    def counted(data: bytes, max_bytes: int) -> tuple[bool, int]:
        used.append(check(data, max_bytes))
        return used[-1]

    monkeypatch.setattr(tiff_strips, "_check_zlib", counted)
    data = saved(Image.new("L", (64, 64), 7), "TIFF", compression="tiff_adobe_deflate")
    bomb = zlib.compress(bytes(30_000)) + bytes(40)
    places = zip(*strips(data), strict=True)
    for numbers, same in zip(places, (len(data), len(bomb)), strict=True):
        for code in "HI":
            data = data.replace(struct.pack(f"<64{code}", *numbers), struct.pack(f"<64{code}", *[same] * 64))
    assert not read_picture(data + bomb, AS_IS).pixels.any()
    assert used == [(True, 30_000), (True, 30_000), (True, 30_000)]
