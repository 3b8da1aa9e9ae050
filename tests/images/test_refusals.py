"""Files that are refused, and how the messages say so."""

import itertools
import os
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import AS_IS, check_message, chunk, photo, png, profile, read, saved
from PIL import Image

from vartok.errors import ImageError
from vartok.images import Fit, read_file, read_picture, reading, restore_size, scaling


def refused(file: Path | bytes, fit: Fit = AS_IS) -> str:
    start = time.process_time()
    with pytest.raises(ImageError) as caught:
        read_picture(file, fit)
    assert time.process_time() - start < 5
    check_message(caught.value)
    return str(caught.value)


def test_files_that_are_not_pictures(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.png") == "no such file or folder"
    assert refused(tmp_path) == "is a folder, not a picture"
    (tmp_path / "empty.png").touch()
    assert refused(tmp_path / "empty.png") == "is empty"
    assert refused(b"") == "is empty"
    (tmp_path / "text.png").write_text("hello")
    assert refused(tmp_path / "text.png") == "not a picture that vartok can read"
    assert (
        refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not a picture that vartok can read"
    )
    assert refused(tmp_path / "nul\0.png") == "embedded null byte"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refused(tmp_path / "loop.png") == "its links lead in a circle"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.png").write_bytes(b"x")
    monkeypatch.setattr(os, "stat", forbidden)
    assert refused(tmp_path / "secret.png") == "no permission"


def bits(side: int) -> bytes:
    """A PNG that is one bit a pixel, all zero."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    body = b"".join([*(deflate.compress(row) for _ in range(side)), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    header = png(65535, 8, 2, [b""], height=65535)
    assert "more than 100,000,000 pixels" in refused(header)
    assert "more than 178,956,970 pixels" in refused(header, Fit(max_pixels=10**10))  # Pillow's own
    assert "more than 100,000,000 pixels" in refused(bits(20_000))
    assert "12,000 x 10,000 pixels" in refused(png(12_000, 8, 2, [b""], height=10_000))
    assert "side" in refused(png(300_000, 8, 2, [b""], height=1))
    small = saved(Image.new("RGB", (20, 20)), "PNG")
    assert refused(small, Fit(size=(8, 8), max_pixels=399)).startswith(
        "20 x 20 pixels are more than the limit of 399"
    )
    assert read_picture(small, Fit(size=(8, 8), max_pixels=400)).width == 20
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("bitmap", ["png", "bmp"])
def test_a_bomb_in_an_icon(bitmap: str) -> None:
    icon = saved(Image.new("RGBA", (16, 16), (1, 2, 3, 255)), "ICO", sizes=[(16, 16)], bitmap_format=bitmap)
    assert read(icon)[0][0] == [1, 2, 3]
    big = struct.pack(">II", 12_000, 10_000) if bitmap == "png" else struct.pack("<ii", 12_000, 20_000)
    offset = 22 + (16 if bitmap == "png" else 4)
    bomb = bytearray(icon)
    bomb[offset : offset + 8] = big
    if bitmap == "png":
        bomb[offset + 13 : offset + 17] = struct.pack(">I", zlib.crc32(bomb[offset - 4 : offset + 13]))
    assert "12,000 x 10,000 pixels" in refused(bytes(bomb))


SAMPLES = {
    "png": saved(photo(64, 48), "PNG"),
    "jpg": saved(photo(64, 48), "JPEG"),
    "progressive": saved(photo(64, 48), "JPEG", progressive=True),
    "webp": saved(photo(64, 48), "WEBP"),
    "gif": saved(photo(64, 48), "GIF"),
    "tiff": saved(photo(64, 48), "TIFF", compression="tiff_adobe_deflate"),
    "bmp": saved(photo(64, 48), "BMP"),
    "ico": saved(photo(64, 48).convert("RGBA"), "ICO", sizes=[(32, 32)]),
    "la": saved(photo(64, 48).convert("LA"), "PNG"),
    "icc": saved(photo(64, 48), "JPEG", icc_profile=profile(b"RGB ", 1.4)),
    "animation": saved(photo(64, 48), "GIF", save_all=True, append_images=[photo(64, 48, 1)]),
}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "animation"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(name: str, share: float) -> None:
    refused(SAMPLES[name][: int(len(SAMPLES[name]) * share)])


def test_a_truncated_picture_is_called_so() -> None:
    for name in ("png", "jpg", "gif"):
        message = refused(SAMPLES[name][: len(SAMPLES[name]) // 2])
        assert message == "is truncated: the file ends before its picture does"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_mutations_are_read_or_refused(name: str) -> None:
    chance = random.Random(name)
    for _ in range(60):
        data = bytearray(SAMPLES[name])
        for _ in range(chance.choice((1, 2, 8, 64))):
            where = chance.randrange(min(len(data), chance.choice((64, 700, len(data)))))
            data[where] = chance.choice((0, 255, chance.randrange(256)))
        try:
            assert read_picture(bytes(data), Fit(size=(16, 16))).pixels.shape == (16, 16, 3)
        except ImageError as error:
            check_message(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory to decode it"),
        (RecursionError(), "is broken: RecursionError"),
        (OverflowError("a\nb\x1b[31m\0c"), "is broken: a b [31m c"),
        (ValueError("x" * 5000), "is broken: " + "x" * 117 + "..."),
    ],
)
def test_whatever_pillow_raises_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", broken)
    assert refused(b"x" * 99) == message


def test_threads_read_the_same_pixels_as_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LARGE", 0)  # every picture waits for its turn
    files = list(SAMPLES.values()) * 4
    alone = [read_picture(data, Fit(size=(32, 32))).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = [
            picture.pixels for picture in pool.map(read_picture, files, itertools.repeat(Fit(size=(32, 32))))
        ]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("format", "share"), [("WEBP", 1.5), ("JPEG2000", 2), ("PNG", 1)])
def test_formats_that_take_more_memory_may_have_fewer_pixels(format: str, share: float) -> None:
    data = saved(Image.new("RGB", (60, 50)), format)
    assert read_picture(data, Fit(size=(16, 16), max_pixels=int(3000 * share))).width == 60
    assert "3,000" not in refused(data, Fit(size=(16, 16), max_pixels=int(3000 * share) - 2))


def test_a_limit_on_files_is_none_on_what_is_encoded() -> None:
    data = saved(Image.new("RGB", (60, 50)), "PNG")
    assert read_picture(data, Fit(size=(256, 256), max_pixels=3000)).pixels.shape == (256, 256, 3)


def test_too_many_pixels_have_a_hint_where_a_higher_limit_helps() -> None:
    small = saved(Image.new("RGB", (20, 20)), "PNG")
    with pytest.raises(ImageError, match="20 x 20") as caught:
        read_picture(small, Fit(size=8, max_pixels=399))
    assert "`max_pixels`" in str(caught.value.hint)
    with pytest.raises(ImageError, match="side") as caught:
        read_picture(png(300_000, 8, 2, [b""], height=1), AS_IS)
    assert caught.value.hint is None
    pixels = np.zeros((4, 4, 3), np.uint8)
    for impossible in (
        lambda: Fit(size=20_000),
        lambda: restore_size(pixels, width=20_000, height=20_000, mode="stretch"),
    ):
        with pytest.raises(ImageError, match="more than the limit of 100,000,000") as caught:
            impossible()
        assert caught.value.hint is None


def test_a_picture_in_memory_has_a_limit_of_bytes_and_a_file_has_none(tmp_path: Path) -> None:
    data = SAMPLES["png"]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    exact, less = Fit(size=8, max_bytes=len(data)), Fit(size=8, max_bytes=len(data) - 1)
    assert np.array_equal(read_picture(data, exact).pixels, read_picture(path, less).pixels)
    with pytest.raises(ImageError, match=f"more than {len(data) - 1:,} bytes") as caught:
        read_picture(data, less)
    assert "`max_bytes`" in str(caught.value.hint)
    assert read_file(path, len(data)) == data
    with pytest.raises(ImageError, match="bytes"):
        read_file(path, len(data) - 1)


@pytest.mark.parametrize("fit", [256, "crop", {"size": 256}])
def test_a_fit_is_a_fit(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"fit must be a Fit, not ") as error:
        read_picture(tmp_path / "a.png", fit)
    assert error.value.hint == "give `Fit(size=256)`, for example"


def test_a_file_is_a_path_or_bytes() -> None:
    with pytest.raises(ImageError, match="a picture's file must be a path or bytes, not 'Image'") as error:
        read_picture(Image.new("RGB", (8, 8)))  # type: ignore[arg-type]
    assert "`Tokenizer.encode`" in str(error.value.hint)


def test_the_default_fit_is_the_centre_at_256(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").pixels.shape == (256, 256, 3)


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SAMPLES["png"])
    assert read_picture(str(path), Fit(size=250)).pixels.shape == (250, 250, 3)
    assert Fit(size=250) == Fit(size=(250, 250))


def test_a_file_of_very_many_parts_is_refused_or_read_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = photo(8, 8)
    comment = b"P6\n#" + b"x" * 300 + b"\n8 8 255\n" + pixels.tobytes()
    gif = saved(pixels, "GIF", save_all=True, append_images=[photo(8, 8, seed) for seed in range(1, 60)])
    assert read_picture(gif, AS_IS).notes == ("animation: took the first of 60 frames",)
    path = tmp_path / "file.ppm"
    path.write_bytes(comment)
    monkeypatch.setattr(reading, "MAX_READS", 200)
    for file in (comment, path):
        with pytest.raises(ImageError, match="has too many parts: reading them takes more than 200 steps"):
            read_picture(file, AS_IS)
    assert read_picture(gif, AS_IS).notes == ("took the first of very many frames",)
