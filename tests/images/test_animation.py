"""Frames are encoded as animations."""

import io
import struct

import numpy as np
import pytest
from commands import count_frames
from PIL import Image

from vartok.errors import ArgumentError, ImageError
from vartok.images.animation import animated_size, encode_animation

FRAMES = [np.full((8, 12, 3), level, np.uint8) for level in (0, 100, 255)]


@pytest.mark.parametrize("format", ["webp", "gif", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_animations(format: str, channels: int) -> None:
    frames = [frame[..., :channels] for frame in FRAMES]
    data = encode_animation(frames, format, frame_time=0.1, loops=2)
    assert data == encode_animation(frames, format, frame_time=0.1, loops=2)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.size, count_frames(picture)) == ((12, 8), 3)
        assert picture.info["loop"] == (1 if format == "gif" else 2)  # GIF counts repetitions
        for n, level in enumerate((0, 100, 255)):
            picture.seek(n)
            assert abs(np.asarray(picture.convert("RGB"), int) - level).max() < 3
            assert picture.info["duration"] == (2000 if n == 2 else 100)


@pytest.mark.parametrize("loops", [0, 1])
def test_a_gif_plays_without_end_or_once(loops: int) -> None:
    with Image.open(io.BytesIO(encode_animation(FRAMES, "gif", loops=loops))) as picture:
        assert picture.info.get("loop") == (0 if loops == 0 else None)


def test_large_frames_are_scaled_down() -> None:
    with Image.open(io.BytesIO(encode_animation([np.zeros((2, 2000, 3), np.uint8)], "webp"))) as picture:
        assert picture.size == animated_size(2000, 2) == (1024, 1)


def test_animations_that_are_not_encoded() -> None:
    with pytest.raises(ImageError, match="webp, gif, png, not 'jpg'"):
        encode_animation(FRAMES, "jpg")
    for frames in ([], [FRAMES[0], FRAMES[1][:4]]):
        with pytest.raises(ImageError, match="one or more frames, all of one size"):
            encode_animation(frames, "gif")
    for timing in ({"frame_time": 11.0}, {"frame_time": float("nan")}, {"loops": 1001}, {"loops": -1}):
        with pytest.raises(ArgumentError):
            encode_animation(FRAMES, "webp", **timing)


def test_equal_frames_may_be_shown_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> None:
        struct.pack("H", 70_000)

    monkeypatch.setattr(Image.Image, "save", save)  # as an older Pillow does
    with pytest.raises(ImageError, match="over a minute"):
        encode_animation(FRAMES, "png", frame_time=10)
