"""Metadata of tokens: the checkpoint and the image that they belong to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vartok.errors import TokensError, quoted

MAX_IMAGE_CHANNELS = 256
MAX_VOCAB = 1 << 24
MAX_STATED_SIDE = 1 << 24  # pixels
WHITE = (255, 255, 255)
MAX_TEXT = 4096  # characters of a name or a path
MAX_VIEWS = 100  # views of an image
MAX_WORD = 64  # characters of `ImageInfo.resample`


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The checkpoint that tokens belong to.

    Attributes:
        name: name of the checkpoint.
        fingerprint: sha256 of codebook and phis, 64 lower-case hex digits; see `Tokenizer.fingerprint`.
        vocab_size: V, the number of codes.

    Raises:
        TokensError: a value has another type or is out of range.
    """

    name: str
    fingerprint: str
    vocab_size: int

    def __post_init__(self) -> None:
        """Check every value."""
        _check_text("model name", self.name)
        if not isinstance(self.fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise TokensError(f"fingerprint must be 64 lower-case hex digits, not {quoted(self.fingerprint)}")
        _check_whole("vocab_size", self.vocab_size, MAX_VOCAB)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """The image that was encoded, and its preprocessing.

    Attributes:
        source: path or name of the image.
        width: width of the original image, in pixels.
        height: height of the original image, in pixels.
        size: (height, width) of the encoded pixels.
        fit: mode of the fit to that size: "crop", "pad", "stretch", "native" or "bucket".
        zoom: factor of the fits "crop" and "bucket", above 0 and up to a million: the image was scaled to
            cover `size` times `zoom`, then cut to `size`.
        background: RGB levels, 0 to 255, under transparency and around a padded image.
        device: type of the device that the encoder ran on, such as "cpu".
        dtype: dtype that the encoder computed in, such as "float32".
        resample: how the image was scaled: "lanczos" or "adm"; see `vartok.images.Fit`.
        damaged: how the image's file is damaged, so that not all pixels are its own; None if it is whole.

    Raises:
        TokensError: a value has another type or is out of range.
    """

    source: str
    width: int
    height: int
    size: tuple[int, int]
    fit: str
    zoom: float
    device: str
    dtype: str
    background: tuple[int, int, int] = WHITE
    resample: str = "lanczos"
    damaged: str | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("source", "fit", "device", "dtype"):
            _check_text(name, getattr(self, name))
        _check_text("resample", self.resample, MAX_WORD)
        if self.damaged is not None:
            _check_text("damaged", self.damaged)
        if not isinstance(self.size, (list, tuple)) or len(self.size) != 2:
            raise TokensError(f"size must be [height, width], not {quoted(self.size)}")
        object.__setattr__(self, "size", tuple(self.size))
        for name, side in (("width", self.width), ("height", self.height), *(("size", n) for n in self.size)):
            _check_whole(name, side, MAX_STATED_SIDE)
        if type(self.zoom) not in (int, float) or not 0 < self.zoom <= 1e6:
            raise TokensError(f"zoom must be a number above 0 and up to a million, not {quoted(self.zoom)}")
        object.__setattr__(self, "zoom", float(self.zoom))
        levels = self.background
        if not isinstance(levels, (list, tuple)) or len(levels) != 3 or not all(map(_is_level, levels)):
            raise TokensError(f"background must be three levels from 0 to 255, not {quoted(levels)}")
        object.__setattr__(self, "background", tuple(levels))


@dataclass(frozen=True)
class View:
    """The part of an image that was encoded, where a data set has several views of each image.

    Attributes:
        number: number of the view among those of its image, from 0.
        box: (left, top, right, bottom) of the part, in pixels of the original after its EXIF orientation
            was applied. With the fit "pad" it is larger than the original, whose border it includes.
        flipped: True if the part was mirrored left to right.

    Raises:
        TokensError: a value has another type or is out of range.
    """

    number: int
    box: tuple[float, float, float, float]
    flipped: bool = False

    def __post_init__(self) -> None:
        """Check every value, and turn the box into floats."""
        if type(self.number) is not int or not 0 <= self.number < MAX_VIEWS:
            raise TokensError(
                f"view must be a whole number from 0 to {MAX_VIEWS - 1}, not {quoted(self.number)}"
            )
        if type(self.flipped) is not bool:
            raise TokensError(f"flipped must be true or false, not {quoted(self.flipped)}")
        if (
            not isinstance(self.box, (list, tuple))
            or len(self.box) != 4
            or not all(map(_is_finite, self.box))
        ):
            raise TokensError(f"box must be [left, top, right, bottom], not {quoted(self.box)}")
        left, top, right, bottom = map(float, self.box)
        if not (left < right and top < bottom):
            raise TokensError(f"box must not be empty: {quoted(self.box)}")
        object.__setattr__(self, "box", (left, top, right, bottom))


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _check_whole(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise TokensError(f"{name} must be a whole number from 1 to {high}, not {quoted(value)}")


def _is_level(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255


def _check_text(name: str, value: object, limit: int = MAX_TEXT) -> None:
    if not isinstance(value, str) or len(value) > limit:
        raise TokensError(f"{name} must be a text of up to {limit} characters, not {quoted(value)}")
    if re.search("[\ud800-\udfff]", value):  # half a surrogate pair, which no encoding can write
        raise TokensError(f"{name} is not valid Unicode: {quoted(value)}")
