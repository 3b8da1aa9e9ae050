"""PNG files with broken or large chunks that hold no pixels are read."""

import struct
import zlib
from pathlib import Path

import pytest
from picture_files import AS_IS, check_message, chunk, photo, png, read, saved
from PIL import Image, PngImagePlugin

from vartok.errors import ImageError
from vartok.images import png as png_module
from vartok.images import read_picture

ROW = bytes([1, 2, 3, 4, 5, 6])
PIXELS = [[[1, 2, 3], [4, 5, 6]]]


def wrong(name: bytes, data: bytes) -> bytes:
    return chunk(name, data)[:-4] + b"\1\2\3\4"


def file(*chunks: bytes) -> bytes:
    return png(2, 8, 2, [ROW], *chunks)


LARGE = b"x" * 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
        chunk(b"zTXt", b"workflow\0\7" + b"another compression"),
        chunk(b"tEXt", b"workflow\0" + LARGE),
    ],
    ids=["zTXt", "iTXt", "method", "tEXt"],
)
def test_large_text_is_passed_over(text: bytes, tmp_path: Path) -> None:
    assert read(file(text)) == PIXELS
    data = file()
    path = tmp_path / "a.png"
    path.write_bytes(data[:-12] + text + data[-12:])  # behind the pixels
    assert read_picture(path, AS_IS).pixels.tolist() == PIXELS


def test_text_beyond_the_limit_of_all_text_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 9_000)
    orientation = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="3"/>')
    texts = [chunk(b"tEXt", b"%d\0" % k + b"x" * 2_000) for k in range(8)]
    assert read(file(*texts[:4], orientation)) == read(file(*texts, orientation)) == [PIXELS[0][::-1]]


def test_text_that_says_how_the_picture_is_turned_is_kept() -> None:
    xmp = b'<x tiff:Orientation="3"/>'
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    large = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE))
    assert read(file(text)) == read(file(large, text)) == [PIXELS[0][::-1]]


@pytest.mark.parametrize("name", [b"tEXt", b"gAMA", b"pHYs", b"tIME", b"abCd"])
def test_a_wrong_checksum_of_no_pixels(name: bytes) -> None:
    picture = read_picture(file(wrong(name, b"\0\0\0\1\0\0\0\1\0")), AS_IS)
    assert picture.pixels.tolist() == PIXELS
    assert picture.notes == ()


def test_a_profile_and_exif_with_a_wrong_checksum_are_mentioned() -> None:
    exif = wrong(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    picture = read_picture(file(wrong(b"iCCP", b"p\0\0" + zlib.compress(b"profile")), exif), AS_IS)
    assert picture.pixels.tolist() == PIXELS
    assert picture.notes == (
        "ignored its colour profile, which is broken or too large",
        "ignored its EXIF data, which is broken",
    )


@pytest.mark.parametrize("name", [b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"acTL"])
def test_a_chunk_that_is_too_short(name: bytes) -> None:
    assert read(file(chunk(name, b""))) == PIXELS


def test_wrong_checksums_of_pixels_are_refused() -> None:
    palette = Image.new("P", (1, 1))
    palette.putpalette([1, 2, 3])
    whole = saved(palette, "PNG")
    at = whole.index(b"PLTE") - 4
    size = struct.unpack(">I", whole[at : at + 4])[0]
    broken = whole[: at + 8 + size] + b"\1\2\3\4" + whole[at + 12 + size :]
    for data in (broken, file(wrong(b"tRNS", struct.pack(">3H", 1, 2, 3)))):
        with pytest.raises(ImageError) as caught:
            read_picture(data, AS_IS)
        check_message(caught.value)


def test_an_animation_keeps_its_note() -> None:
    frames = [photo(8, 8, seed) for seed in range(3)]
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", LARGE.decode(), zip=True)
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], pnginfo=info)
    assert read_picture(data, AS_IS).notes == ("animation: took the first of 3 frames",)


@pytest.mark.parametrize("part", [chunk(b"teXt", b""), chunk(b"IDAT", b""), chunk(b"a_1b", b"")])
def test_more_chunks_than_a_file_has_are_refused(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_module, "_MAX_CHUNKS", 20)
    assert read(file(*[part] * 10)) == PIXELS
    with pytest.raises(ImageError, match="has more than 20 chunks, which no usual PNG file has"):
        read_picture(file(*[part] * 20), AS_IS)
