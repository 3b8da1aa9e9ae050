"""JPEG files whose data ends before their picture does are refused, and complete ones are not."""

import struct
from typing import Any

import pytest
from picture_files import AS_IS, check_message, photo, saved
from PIL import Image

from vartok.errors import ImageError
from vartok.images import jpeg, read_picture

EOI = b"\xff\xd9"
TRUNCATED = "is truncated or broken: its data ends before its picture does"
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "fine": {"quality": 100, "subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "progressive restarts": {"restart_marker_rows": 1, "progressive": True},
}


def message(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(data, AS_IS)
    check_message(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_file_with_an_end_marker(kind: str, mode: str) -> None:
    data = saved(photo(200, 150).convert(mode), "JPEG", **KINDS[kind])
    assert read_picture(data, AS_IS).width == 200
    assert read_picture(data + b"trailing data" + EOI, AS_IS).width == 200
    start = data.index(b"\xff\xda") + 14
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert message(data[: start + int((len(data) - start) * share)] + EOI) == TRUNCATED


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_end_is_zeros(kind: str) -> None:
    data = saved(photo(200, 150), "JPEG", **KINDS[kind])
    for share in (0.4, 0.7):
        kept = int(len(data) * share)
        assert "truncated" in message(data[:kept] + bytes(len(data) - kept))
    stuffed = data.index(b"\xff\0", len(data) // 3) + 1
    assert "truncated" in message(data[:stuffed] + bytes(len(data) - stuffed))
    read_picture(data + bytes(4096), AS_IS)  # a whole file in whole sectors


@pytest.mark.parametrize("level", [0, 127, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_flat_pictures_are_complete(kind: str, level: int) -> None:
    for image in (Image.new("L", (90, 70), level), Image.new("RGB", (90, 70), (level,) * 3)):
        assert read_picture(saved(image, "JPEG", **KINDS[kind]), AS_IS).notes == ()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (16, 16), (3, 300)])
@pytest.mark.parametrize("kind", KINDS)
def test_small_pictures_are_complete(kind: str, size: tuple[int, int]) -> None:
    assert read_picture(saved(photo(*size), "JPEG", **KINDS[kind]), AS_IS).width == size[0]


def test_a_progressive_file_that_lacks_whole_scans() -> None:
    data = saved(photo(64, 48), "JPEG", progressive=True)
    scans = [k for k in range(len(data)) if data.startswith(b"\xff\xda", k)]
    assert len(scans) > 3
    assert message(data[: scans[-1]] + EOI) == TRUNCATED  # a refinement
    assert message(data[: scans[1]] + EOI) == TRUNCATED


def test_a_long_run_of_fill_bytes_takes_no_time() -> None:
    data = saved(photo(64, 48), "JPEG")
    assert read_picture(data[:-2] + b"\xff" * 1_000_000 + EOI, AS_IS).width == 64
    assert read_picture(data + b"\xff" * 1_000_000, AS_IS).width == 64


def test_a_file_of_many_bytes_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo(64, 48), "JPEG", progressive=True)
    monkeypatch.setattr(jpeg, "MAX_BYTES", len(data) - 1)
    assert read_picture(data, AS_IS).width == 64
    read_picture(data[: len(data) * 3 // 4] + EOI + bytes(len(data)), AS_IS)


def test_12_bits_are_named() -> None:
    data = saved(photo(8, 8).convert("L"), "JPEG")
    at = data.index(b"\xff\xc0")
    data = data[:at] + b"\xff\xc1" + data[at + 2 : at + 4] + struct.pack("B", 12) + data[at + 5 :]
    assert message(data) == "is a JPEG of 12 bits a sample, of which vartok reads 8"


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\2", b"\xff\xe5\0\2", b"\xff"])
def test_more_segments_than_a_file_has_are_refused(segment: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_MAX_SEGMENTS", 30)
    data = saved(photo(8, 8), "JPEG")
    assert read_picture(data[:2] + segment * 10 + data[2:], AS_IS).width == 8
    assert message(data[:2] + segment * 30 + data[2:]).startswith("has more than 30 segments")


def test_more_scans_than_a_file_has_are_refused() -> None:
    data = saved(photo(8, 8), "JPEG")
    scan = data[data.index(b"\xff\xda") :][:14]
    assert "1,000 scans, which no usual JPEG has" in message(data[:-2] + scan * 1001 + EOI)
