"""Encode frames as an animated picture file."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vartok.errors import ArgumentError, ImageError, quoted
from vartok.images.tensors import as_pil, drawable

if TYPE_CHECKING:
    from vartok.images.tensors import Pixels

ANIMATIONS = {".webp": "webp", ".gif": "gif", ".png": "png", ".apng": "png"}
"""Formats of animations, by suffix; the png is an APNG."""

MAX_ANIMATED_SIDE = 1024
"""Longest side of a frame in pixels; larger frames are scaled down."""

FRAME_TIME = 0.5
HOLD = 2.0
"""Time that the last frame is shown, in seconds, unless the other frames are shown longer."""


def check_timing(frame_time: float, loops: int) -> None:
    """Check the timing of an animation.

    Args:
        frame_time: time of each frame in seconds.
        loops: number of times that it plays; 0 for no end.

    Raises:
        ArgumentError: `frame_time` is not from 0.02 to 10, or `loops` not from 0 to 1000.
    """
    if not 0.02 <= frame_time <= 10:
        raise ArgumentError(f"`frame_time` must be from 0.02 to 10 seconds, not {quoted(frame_time)}")
    if not 0 <= loops <= 1000:
        raise ArgumentError(f"`loops` must be from 0 (no end) to 1,000, not {quoted(loops)}")


def encode_animation(
    frames: Sequence[Pixels], format: str, *, frame_time: float = FRAME_TIME, loops: int = 0
) -> bytes:
    """Encode frames as an animated WebP of quality 90, an APNG, or a GIF of 256 colours for each frame.

    The last frame is held for `HOLD` seconds. Frames with a side above `MAX_ANIMATED_SIDE` are scaled down,
    which bounds the size of the file. With the same Pillow, the same frames give the same bytes.

    Args:
        frames: [H, W, C] pixels, one or more of one size, shown as by `drawable`.
        format: "webp", "png" or "gif"; `ANIMATIONS` maps a file name's suffix to it.
        frame_time: time of each frame in seconds, from 0.02 to 10; GIF rounds it to hundredths.
        loops: number of times that the animation plays, up to 1000; 0 for no end.

    Raises:
        ArgumentError: `frame_time` or `loops` is out of range.
        ImageError: the format is unknown, there are no frames, or they have another shape or dtype or
            several sizes.
    """
    check_timing(frame_time, loops)
    if format not in ANIMATIONS.values():
        raise ImageError(
            f"animations are written as {', '.join(dict.fromkeys(ANIMATIONS.values()))}, not {quoted(format)}"
        )
    if len({frame.shape for frame in frames}) != 1:
        raise ImageError("an animation has one or more frames, all of one size")
    height, width = frames[0].shape[:2]
    size = animated_size(width, height)
    pictures = [as_pil(drawable(frame)) for frame in frames]
    if size != (width, height):
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    milliseconds = [round(1000 * frame_time)] * len(pictures)
    milliseconds[-1] = max(milliseconds[-1], round(1000 * HOLD))
    options: dict[str, Any] = {"duration": milliseconds, "loop": loops}
    if format == "webp":
        options |= {"quality": 90, "method": 4}
    if format == "gif":
        pictures = [picture.quantize(256) if picture.mode == "RGB" else picture for picture in pictures]
        if loops == 1:
            del options["loop"]  # without a count it plays once
        elif loops:
            options["loop"] = loops - 1  # GIF counts repetitions
    stream = io.BytesIO()
    try:
        pictures[0].save(stream, format, save_all=True, append_images=pictures[1:], **options)
    except struct.error:  # Pillow joins equal frames; Pillow 11 takes at most 65 s
        raise ImageError("a frame would be shown for over a minute: set a shorter time") from None
    return stream.getvalue()


def animated_size(width: int, height: int) -> tuple[int, int]:
    """Return the width and height of an animation's frames of this size; see `MAX_ANIMATED_SIDE`."""
    scale = min(1.0, MAX_ANIMATED_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
