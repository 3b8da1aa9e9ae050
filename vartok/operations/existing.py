"""Compare outputs that exist with what a run would make, for `skip_existing`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vartok.buckets import nearest_bucket
from vartok.config import TokenizerConfig
from vartok.errors import ImageError, TokenFileError, counted, one_line, printable
from vartok.images import Fit
from vartok.images.arrays import is_array
from vartok.metadata import ImageInfo, ModelInfo
from vartok.npy import read_npy_header
from vartok.operations.inputs import Input
from vartok.operations.layouts import Layout
from vartok.operations.settings import parse_size, resolve_buckets
from vartok.schedule import Schedule, adapt_schedule, describe
from vartok.token_files import TokenMetadata
from vartok.token_streams import read_metadata


class Encoder(NamedTuple):
    """The tokenizer that made tokens, as their metadata tells it, and its configuration."""

    config: TokenizerConfig
    info: ModelInfo
    dtype: str


class TokenComparison:
    """Tells how token files differ from those that a run would write: by checkpoint and settings.

    Settings are size, fit, zoom, resampling, background, dtype, schedule, number of scales, and whether
    damaged pictures are allowed. The picture itself is not compared.

    Args:
        encoder: returns the run's tokenizer; called at the first comparison.
        fit: the fit, not yet resolved.
        size: size of the encoded pixels, as `parse_size` takes it; the checkpoint's own if None.
        schedule: (h, w) of every scale; the checkpoint's own if None.
        scales: number of scales that are encoded; all if None.
    """

    def __init__(
        self,
        encoder: Callable[[], Encoder],
        *,
        fit: Fit,
        size: str | int | tuple[int, int] | None,
        schedule: Schedule | None,
        scales: int | None,
    ) -> None:
        self._load, self._fit, self._size = encoder, fit, parse_size(size)
        self._schedule, self._scales = schedule, scales
        self._encoder: Encoder | None = None

    def __call__(self, item: Input | None, path: Path, made: TokenMetadata | None) -> str | None:
        """Return how a token file differs, as "size 256x256, not 512x512"; None if it does not.

        Raises:
            TokenFileError: the file is not a whole token file.
        """
        images = 0
        differing: Counter[str] = Counter()
        try:
            for images, found in enumerate(read_metadata(path), 1):  # noqa: B007
                self._encoder = self._encoder or self._load_encoder()
                differing.update(self._differences(found, self._encoder))
        except TokenFileError as error:
            raise TokenFileError(f"is no whole token file: {error}") from None
        told = [
            text if images == 1 or number == images else f"{text} in {number:,} of {counted(images, 'image')}"
            for text, number in differing.items()
        ]
        return one_line(", ".join(told), 200) or None

    def _load_encoder(self) -> Encoder:
        encoder = self._load()
        self._fit = resolve_buckets(encoder.config, self._fit, size=self._size, schedule=self._schedule)
        return encoder

    def _differences(self, found: TokenMetadata, encoder: Encoder) -> list[str]:
        config, image = encoder.config, found.image
        size = image.size if self._fit.mode == "native" else self._size or config.image_size
        latent = (size[0] // config.downsample, size[1] // config.downsample)
        schedule = self._schedule or adapt_schedule(config.patch_nums, latent)
        if self._fit.buckets:
            size, schedule = nearest_bucket(self._fit.buckets, image.height, image.width)
        pairs = {
            "checkpoint": (_name(found.model), _name(encoder.info)),
            "size": ("x".join(map(str, image.size)), "x".join(map(str, size))),
            "fit": (printable(image.fit), self._fit.mode),
            "zoom": (f"{image.zoom:g}", f"{self._fit.zoom:g}"),
            "resample": (printable(image.resample), self._fit.resample),
            "background": (_hex(image.background), _hex(self._fit.background)),
            "dtype": (printable(image.dtype), encoder.dtype),
        }
        if image.damaged is not None and not self._fit.allow_damaged:
            pairs["picture"] = ("damaged", "whole")
        if image.size == size:  # else the schedules differ anyway
            pairs["schedule"] = (one_line(describe(found.schedule), 50), one_line(describe(schedule), 50))
        if found.schedule == schedule:
            pairs["scales"] = (str(found.scales), str(self._scales or len(schedule)))
        told = [f"{name} {old}, not {new}" for name, (old, new) in pairs.items() if old != new]
        if not told and image.size == size and found.schedule != schedule:
            told = ["another schedule"]
        return told


class PictureComparison:
    """Tells how pictures differ from those that a run would decode: by their size, as nothing else is known.

    The picture itself is not compared: only its header is read.

    Args:
        scales: number of scales that are decoded; all if None.
        layout: how a decoded picture is drawn.
        restore_size: whether pictures get the original's width and height.
    """

    def __init__(self, *, scales: int | None, layout: Layout, restore_size: bool) -> None:
        self._scales, self._layout, self._restore_size = scales, layout, restore_size

    def __call__(self, item: Input | None, path: Path, made: TokenMetadata | None) -> str | None:
        """Return how a picture differs, as "256 x 256 pixels, not 512 x 512"; None if its size is the same.

        Raises:
            TokenFileError: the token file of the input cannot be read.
            ImageError: the picture cannot be read.
        """
        if made is None:
            assert item is not None
            assert item.place is not None  # a stream's metadata is given
            made = next(read_metadata(item.place), None)
            if made is None:
                return None  # no tokens to decode
        width, height = self._size(made.image, made.scales)
        try:
            found = _picture_size(path)
        except Exception as error:  # Pillow raises many types of errors
            raise ImageError("is no picture") from error
        if found == (width, height):
            return None
        return f"{found[0]} x {found[1]} pixels, not {width} x {height}"

    def _size(self, image: ImageInfo, scales: int) -> tuple[int, int]:
        """Return the width and height of the decoded picture, in pixels."""
        width, height = (image.width, image.height) if self._restore_size else image.size[::-1]
        return self._layout.size(width, height, min(self._scales or scales, scales))


def _picture_size(path: Path) -> tuple[int, int]:
    """Return the width and height of a decoded picture, of any format that is written."""
    with open(path, "rb") as file:
        if is_array(file):
            height, width, _ = read_npy_header(file).shape
            return width, height
    with Image.open(path) as picture:
        return picture.size


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _name(model: ModelInfo) -> str:
    return f"{printable(model.name, 60)} ({model.fingerprint[:12]})"
