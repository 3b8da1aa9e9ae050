"""Fits and their undoing."""

import io
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import MAGENTA, check_message, photo, saved
from PIL import Image

from vartok import images
from vartok.buckets import Bucket
from vartok.errors import ImageError
from vartok.images import Fit, read_picture, restore_size, scaling


@pytest.mark.parametrize("size", [(256, 256), (96, 160), (160, 96), (64, 333)])
@pytest.mark.parametrize("shape", [(427, 320), (320, 427), (301, 301), (50, 61), (333, 64)])
@pytest.mark.parametrize("zoom", [1.0, 1.125])
def test_crop_is_resize_then_centre_crop(size: tuple[int, int], shape: tuple[int, int], zoom: float) -> None:
    image = photo(*shape)
    height, width = size
    rows, columns = round(height * zoom), round(width * zoom)
    if rows / image.height >= columns / image.width:
        columns = int(rows * image.width / image.height)
    else:
        rows = int(columns * image.height / image.width)
    left, top = round((columns - width) / 2.0), round((rows - height) / 2.0)
    whole = image.resize((columns, rows), Image.Resampling.LANCZOS)
    expected = np.asarray(whole)[top : top + height, left : left + width]
    picture = read_picture(saved(image, "PNG"), Fit(size=size, zoom=zoom))
    assert np.array_equal(picture.pixels, expected)
    assert (picture.width, picture.height) == shape


@pytest.mark.parametrize("size", [16, 61, 64])
@pytest.mark.parametrize("shape", [(427, 320), (301, 128), (127, 300), (50, 61), (61, 61)])
@pytest.mark.parametrize("zoom", [1.0, 1.1])
def test_adm_is_the_centre_crop_of_guided_diffusion(size: int, shape: tuple[int, int], zoom: float) -> None:
    image = scaled = photo(*shape)
    cover = int(size * zoom)
    while min(scaled.size) >= 2 * cover:
        scaled = scaled.resize((scaled.width // 2, scaled.height // 2), Image.Resampling.BOX)
    factor = cover / min(scaled.size)
    sides = (round(scaled.width * factor), round(scaled.height * factor))
    pixels = np.asarray(scaled.resize(sides, Image.Resampling.BICUBIC))
    top, left = ((side - cover) // 2 for side in pixels.shape[:2])
    square = pixels[top : top + cover, left : left + cover]
    inset = round((cover - size) / 2)  # torchvision's CenterCrop of that square
    expected = square[inset : inset + size, inset : inset + size]
    picture = read_picture(saved(image, "PNG"), Fit(size=size, zoom=zoom, resample="adm"))
    assert np.array_equal(picture.pixels, expected)
    assert (picture.width, picture.height) == shape


@pytest.mark.parametrize("mode", ["crop", "bucket"])
def test_adm_covers_two_sides(mode: str) -> None:
    # 400 x 128 covers twice 60 x 40, and 200 x 64 does not: one halving, then a scale by the height.
    image = photo(400, 128)
    halved = image.resize((200, 64), Image.Resampling.BOX).resize((125, 40), Image.Resampling.BICUBIC)
    picture = read_picture(saved(image, "PNG"), Fit(mode=mode, size=(40, 60), resample="adm"))
    assert np.array_equal(picture.pixels, np.asarray(halved)[:, 32:92])


@pytest.mark.parametrize(
    ("mode", "resample"), [*((mode, "lanczos") for mode in images.FITS), ("crop", "adm")]
)
def test_parts_and_strips_give_what_the_whole_gives(
    mode: str, resample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.eval(
        photo(601, 397), lambda level: level // 3 + 80
    )  # nothing that overshoots and is clipped
    data = saved(image.convert("RGBA"), "PNG")
    fit = Fit(mode=mode, size=(200, 300), zoom=1.2, resample=resample)
    whole = read_picture(data, fit).pixels.astype(int)
    monkeypatch.setattr(scaling, "LARGE", 1000)
    monkeypatch.setattr(scaling, "STRIP", 1000)
    parts = read_picture(data, fit).pixels.astype(int)
    difference = np.abs(parts - whole)
    assert difference.max() <= 2  # native: Pillow scales rows first or columns first, whichever is less work
    assert mode == "native" or difference.mean() < 1e-3


@pytest.mark.parametrize("mode", images.FITS)
def test_sides_that_fit_are_kept(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(160, 96)
    fit = Fit(mode=mode, size=(96, 160))
    for large in (scaling.LARGE, 1000):  # whole, and in strips
        monkeypatch.setattr(scaling, "LARGE", large)
        monkeypatch.setattr(scaling, "STRIP", large)
        assert np.array_equal(read_picture(saved(image, "PNG"), fit).pixels, np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(1, 4096), (4096, 1), (1, 1), (3, 100_000), (100_000, 3)])
@pytest.mark.parametrize("mode", images.FITS)
def test_odd_shapes_take_no_time(width: int, height: int, mode: str) -> None:
    data = saved(Image.new("RGB", (width, height), (9, 8, 7)), "PNG")
    start = time.process_time()
    pixels = read_picture(data, Fit(mode=mode, background=(9, 8, 7))).pixels
    assert time.process_time() - start < 5
    assert (pixels == [9, 8, 7]).all()


def test_a_tall_picture_is_shortened_before_it_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LARGE", 10_000)
    image = photo(2, 3000)
    pixels = read_picture(saved(image, "PNG"), Fit(mode="stretch", size=(64, 64))).pixels
    expected = image.resize((2, 64), Image.Resampling.LANCZOS).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels, np.asarray(expected))


def test_pad_lies_in_the_middle_and_comes_off() -> None:
    image = photo(100, 50)
    picture = read_picture(saved(image, "PNG"), Fit(mode="pad", size=(64, 50), background=MAGENTA))
    inner = np.asarray(image.resize((50, 25), Image.Resampling.LANCZOS))
    assert np.array_equal(picture.pixels[19:44], inner)
    assert (picture.pixels[:19] == MAGENTA).all()
    assert (picture.pixels[44:] == MAGENTA).all()
    assert np.array_equal(restore_size(picture.pixels, width=50, height=25, mode="pad"), inner)
    full = restore_size(picture.pixels, width=100, height=50, mode="pad")
    enlarged = Image.fromarray(inner).resize((100, 50), Image.Resampling.LANCZOS)
    assert np.array_equal(full, np.asarray(enlarged))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((48, 32), (48, 32)),
        ((55, 41), (48, 48)),
        ((56, 40), (64, 32)),
        ((1, 7), (16, 16)),
        ((9, 25), (16, 32)),
    ],
)
def test_native_is_the_nearest_multiple(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = photo(*shape)
    picture = read_picture(saved(image, "PNG"), Fit(mode="native"))
    assert np.array_equal(picture.pixels, np.asarray(image.resize(expected, Image.Resampling.LANCZOS)))
    if shape == expected:
        assert np.array_equal(picture.pixels, np.asarray(image))
    restored = restore_size(picture.pixels, width=shape[0], height=shape[1], mode="native")
    assert restored.shape == (shape[1], shape[0], 3)
    with pytest.raises(ImageError, match="more than"):
        read_picture(saved(image, "PNG"), Fit(mode="native", max_pixels=70_000, multiple=512))


def test_a_bucket_is_a_crop_to_the_nearest_aspect() -> None:
    buckets = tuple(Bucket(size, ((2, 2),)) for size in ((64, 64), (48, 80), (80, 48)))
    for (width, height), size in (((300, 200), (48, 80)), ((90, 80), (64, 64)), ((200, 999), (80, 48))):
        data = saved(photo(width, height), "PNG")
        picture = read_picture(data, Fit(mode="bucket", buckets=buckets))
        assert np.array_equal(picture.pixels, read_picture(data, Fit(size=size)).pixels)
    turned = photo(300, 200)
    turned.getexif()[0x0112] = 6  # its sides are swapped: 200 wide, 300 high
    stream = io.BytesIO()
    turned.save(stream, "PNG", exif=turned.getexif())
    assert read_picture(stream.getvalue(), Fit(mode="bucket", buckets=buckets)).pixels.shape == (80, 48, 3)


@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    zoom=st.floats(1, 4),
    mode=st.sampled_from([*images.FITS, "adm"]),
    multiple=st.integers(1, 32),
)
def test_every_fit_gives_its_size(
    width: int, height: int, size: tuple[int, int], zoom: float, mode: str, multiple: int
) -> None:
    resample = "lanczos"
    if mode == "adm":
        mode, resample = "crop", mode
    fit = Fit(mode=mode, size=size, zoom=zoom, resample=resample, multiple=multiple)
    picture = read_picture(saved(Image.new("L", (width, height), 90), "PNG"), fit)
    rows, columns, channels = picture.pixels.shape
    assert channels == 3
    if mode == "native":
        assert rows % multiple == columns % multiple == 0
        assert abs(rows - height) <= max(multiple / 2, multiple - height)
        assert abs(columns - width) <= max(multiple / 2, multiple - width)
    else:
        assert (rows, columns) == size
    if mode != "pad":
        assert (picture.pixels == 90).all()
    if mode not in ("crop", "bucket"):
        restored = restore_size(picture.pixels, width=width, height=height, mode=mode)
        assert restored.shape == (height, width, 3)
        assert (restored == 90).all()


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        ({"width": 10**9, "height": 1}, "side"),
        ({"width": 200_000, "height": 200_000}, "more than the limit of 100,000,000"),
        ({"width": 0, "height": 5}, "0 x 5"),
        ({"width": 5, "height": -1}, "5 x -1"),
        ({"width": True, "height": 5}, "True"),
        ({"width": 2.5, "height": 5}, "2.5"),
        ({"width": "9" * 500, "height": 5}, "9"),
        ({"width": 5, "height": 5, "mode": "crop"}, "another fit"),
        ({"width": 5, "height": 5, "mode": "bucket"}, "another fit"),
        ({"width": 5, "height": 5, "mode": "zoom"}, "one of"),
        ({"width": 20, "height": 20, "max_pixels": 399}, "more than the limit of 399"),
    ],
)
def test_sizes_that_are_not_restored(size: dict[str, Any], cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as caught:
        restore_size(np.zeros((4, 4, 3), np.uint8), **{"mode": "stretch", **size})
    check_message(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "zoom"},
        {"size": (0, 5)},
        {"size": "256x384"},
        {"size": (1, 2, 3)},
        {"size": None},
        {"background": "red"},
        {"size": (20_000, 20_000)},
        {"zoom": 0.5},
        {"zoom": float("nan")},
        {"zoom": 1e9},
        {"resample": "bicubic"},
        {"resample": "adm", "mode": "pad"},
        {"background": (0, 0, 256)},
        {"background": (0, 0)},
        {"multiple": 0},
        {"buckets": (Bucket((32, 32), ((2, 2),)),)},
        {"mode": "bucket", "buckets": (Bucket((20_000, 20_000), ((2, 2),)),)},
        {"max_pixels": 0},
    ],
)
def test_fits_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ImageError) as caught:
        Fit(**options)
    check_message(caught.value)
