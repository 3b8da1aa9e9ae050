"""Tokens: `TokenMaps` of a batch in torch, and `ImageTokens` of one image in numpy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vartok.errors import ScheduleError, TokensError, quoted
from vartok.metadata import ImageInfo, ModelInfo
from vartok.schedule import Schedule, ScheduleLike, as_schedule, check_schedule, describe, token_count

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MAX_TOKENS = 1 << 22
"""Most tokens of an image; a token file of so many stays below `token_files.MAX_BYTES`."""


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """Token maps of a batch of images, as a tokenizer encodes and decodes them.

    `==` compares identity; `torch.equal(a.flatten(), b.flatten())` compares values.

    Attributes:
        maps: K token maps, coarse to fine; map k is [B, h_k, w_k] int64. Other integers are converted.

    Raises:
        TokensError: no maps, or a map that is not a 3-d integer tensor of the common batch size.
    """

    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Check the maps and convert them to int64."""
        maps = tuple(_check_tensor(f"token map {k}", tokens, 3) for k, tokens in enumerate(self.maps))
        object.__setattr__(self, "maps", maps)
        check_token_schedule(self.schedule)
        if len({len(tokens) for tokens in maps}) > 1:
            raise TokensError(
                f"the maps' batch sizes differ: {', '.join(str(len(tokens)) for tokens in maps)}"
            )

    def __repr__(self) -> str:
        grids = describe(self.schedule)
        return f"TokenMaps(batch={len(self)}, schedule={grids!r}, device={str(self.maps[0].device)!r})"

    def __len__(self) -> int:
        """B, the number of images in the batch."""
        return len(self.maps[0])

    @property
    def schedule(self) -> Schedule:
        """The (h, w) grid of every scale, coarse to fine."""
        return tuple((tokens.shape[1], tokens.shape[2]) for tokens in self.maps)

    def flatten(self) -> Tensor:
        """Return the tokens as [B, L] int64: scales coarse to fine, each scale row by row."""
        import torch

        return torch.cat([tokens.flatten(1) for tokens in self.maps], dim=1)

    @classmethod
    def unflatten(cls, flat: Tensor | NDArray[Any], schedule: ScheduleLike) -> TokenMaps:
        """Invert `flatten`.

        Args:
            flat: [B, L] integers, a tensor or a numpy array.
            schedule: (h, w) of every scale, or a text such as "1,2,4"; L cells in all.

        Raises:
            TokensError: `flat` is not of that shape, or holds no integers.
            ScheduleError: not a schedule.
        """
        schedule = as_schedule(schedule)
        flat = _check_tensor("flat tokens", flat, 2)
        if flat.shape[1] != token_count(schedule):
            raise TokensError(f"{flat.shape[1]} tokens, but the schedule has {token_count(schedule)} cells")
        scales = flat.split([h * w for h, w in schedule], dim=1)
        return cls(tuple(scale.unflatten(1, grid) for scale, grid in zip(scales, schedule, strict=True)))

    @classmethod
    def stack(cls, images: Sequence[ImageTokens]) -> TokenMaps:
        """Make a batch, on the CPU, from images whose tokens have one schedule; `unstack` inverts it.

        Raises:
            TokensError: no images, or images of several schedules.
        """
        import torch

        if len({image.schedule for image in images}) != 1:
            raise TokensError("a batch is one or more images of one schedule")
        scales = zip(*(image.scales for image in images), strict=True)
        return cls(tuple(torch.from_numpy(np.stack(scale).astype(np.int64)) for scale in scales))

    def unstack(self, model: ModelInfo, images: Sequence[ImageInfo]) -> list[ImageTokens]:
        """Make the tokens of each image, as token files hold them, from a batch.

        Args:
            model: the checkpoint that encoded them: `Tokenizer.info`.
            images: the B images.

        Raises:
            TokensError: not B images, or an index outside the vocabulary.
        """
        if len(images) != len(self):
            raise TokensError(f"{len(images)} images, but a batch of {len(self)}")
        rows = self.flatten().cpu().numpy()  # one transfer from a device
        schedule = self.schedule
        return [
            ImageTokens(_split(flat, schedule), model, image)
            for flat, image in zip(rows, images, strict=True)
        ]

    def check_vocab(self, vocab_size: int) -> None:
        """Check that every token is an index into a codebook of `vocab_size` vectors.

        Raises:
            TokensError: one is not in [0, vocab_size).
        """
        if len(self):
            low, high = self.flatten().aminmax()  # both at once: a GPU is waited for here
            _check_range(int(low), int(high), vocab_size)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Tokens of one image, with its metadata: the content of a token file or of a data set's row.

    `==` compares by value: all attributes but `notes`.

    Attributes:
        scales: K read-only arrays, coarse to fine; array k is [h_k, w_k] uint16, or uint32 where
            the vocabulary has more than 65,536 codes. Other integers are converted.
        model: the checkpoint that encoded them.
        image: the image that was encoded.
        label: class index, 0 or more; None where unknown. Data sets carry labels, token files do not.
        caption: caption of the image, or None. Data sets carry captions, token files do not.
        metadata: JSON text that came with the image, or None. Data sets carry it, token files do not.
        notes: remarks on how the image was read, for the user; not written to files.

    Raises:
        TokensError: an array is not 2-d integers, the grids are no schedule, there are more than 4 Mi
            tokens, or an index is outside the vocabulary.
    """

    scales: tuple[NDArray[Any], ...]
    model: ModelInfo
    image: ImageInfo
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the scales and copy them into the files' dtype."""
        for k, scale in enumerate(self.scales):
            if not isinstance(scale, np.ndarray) or scale.dtype.kind not in "iu" or scale.ndim != 2:
                raise TokensError(f"scale {k} is not a 2-d array of integers")
        schedule = _checked_schedule(self.schedule)
        # One copy and one range check for all scales: this runs for every row of a data set.
        flat = np.concatenate([scale.ravel() for scale in self.scales])
        if flat.dtype.kind not in "iu":  # numpy makes floats of int64 beside uint64
            raise TokensError("the scales have integer dtypes that no integer dtype holds")
        if not 0 <= int(flat.min()) <= int(flat.max()) < self.model.vocab_size:
            for k, scale in enumerate(self.scales):
                _check_range(int(scale.min()), int(scale.max()), self.model.vocab_size, f"scale {k}: ")
        flat = flat.astype(token_dtype(self.model.vocab_size), copy=False)
        flat.flags.writeable = False
        object.__setattr__(self, "scales", _split(flat, schedule))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageTokens):
            return NotImplemented
        return (
            (self.model, self.image, self.schedule) == (other.model, other.image, other.schedule)
            and (self.label, self.caption, self.metadata) == (other.label, other.caption, other.metadata)
            and np.array_equal(self.flatten(), other.flatten())
        )

    def __hash__(self) -> int:
        return hash((self.model, self.image))

    def __repr__(self) -> str:
        grids = describe(self.schedule)
        return f"ImageTokens(source={self.image.source!r}, schedule={grids!r}, model={self.model.name!r})"

    @property
    def key(self) -> str:
        """Key of the image in a data set: its source."""
        return self.image.source

    @property
    def schedule(self) -> Schedule:
        """The (h, w) grid of every scale, coarse to fine."""
        return tuple((scale.shape[0], scale.shape[1]) for scale in self.scales)

    def flatten(self) -> NDArray[Any]:
        """Return the tokens as [L] in the scales' dtype: scales coarse to fine, each scale row by row."""
        return np.concatenate([scale.ravel() for scale in self.scales])

    @classmethod
    def unflatten(
        cls, flat: NDArray[Any], schedule: ScheduleLike, model: ModelInfo, image: ImageInfo
    ) -> ImageTokens:
        """Invert `flatten`.

        Args:
            flat: [L] integers.
            schedule: (h, w) of every scale, or a text such as "1,2,4"; L cells in all.
            model: the checkpoint that encoded them.
            image: the image that was encoded.

        Raises:
            TokensError: `flat` is not of that shape, or an index is outside the vocabulary.
            ScheduleError: not a schedule.
        """
        schedule = as_schedule(schedule)
        if flat.shape != (token_count(schedule),):
            raise TokensError(f"tokens of shape {list(flat.shape)}, but {token_count(schedule)} cells")
        return cls(_split(flat, schedule), model, image)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a token file, whole or not at all; folders above it are made.

        Args:
            path: file to write, in the format of its suffix: .npz, .json or .jsonl.
            overwrite: replace an existing file.

        Raises:
            TokenFileError: the suffix names no format.
            OutputError: the file exists, or cannot be written.
        """
        from vartok.token_files import save_tokens

        save_tokens(self, path, overwrite=overwrite)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of indices in files: uint16, or uint32 if V is above 65,536; little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _check_tensor(name: str, tokens: Tensor | NDArray[Any], ndim: int) -> Tensor:
    """Return tokens as int64, after checking that they are integers with `ndim` dimensions."""
    import torch

    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", None)
    if isinstance(tokens, np.ndarray) and tokens.dtype.kind in "iu":
        tokens = torch.from_numpy(tokens.astype(np.int64))
    if (
        not isinstance(tokens, torch.Tensor)
        or tokens.ndim != ndim
        or tokens.is_floating_point()
        or tokens.is_complex()
        or tokens.dtype == torch.bool
    ):
        found = quoted(type(tokens).__name__) if shape is None else f"{list(shape)} {dtype}"
        hint = "add a batch dimension: `flat[None]`" if shape is not None and len(shape) == ndim - 1 else None
        raise TokensError(f"{name}: not a {ndim}-d tensor of integers, but {found}", hint=hint)
    return tokens.to(torch.int64)


def check_token_schedule(value: object) -> Schedule:
    """Return the schedule of an image's tokens.

    Raises:
        TokensError: not a schedule, or one of more than `MAX_TOKENS` tokens.
    """
    try:
        schedule = check_schedule(value)
    except ScheduleError as error:
        raise TokensError(str(error)) from None
    if token_count(schedule) > MAX_TOKENS:
        raise TokensError(f"a schedule of {token_count(schedule)} tokens: vartok takes up to {MAX_TOKENS}")
    return schedule


_checked_schedule = functools.lru_cache(maxsize=64)(check_token_schedule)


def _split(flat: NDArray[Any], schedule: Schedule) -> tuple[NDArray[Any], ...]:
    """Return [L] tokens as views [h_k, w_k], one a scale."""
    scales, start = [], 0
    for h, w in schedule:
        scales.append(flat[start : start + h * w].reshape(h, w))
        start += h * w
    return tuple(scales)


def _check_range(low: int, high: int, vocab_size: int, where: str = "") -> None:
    if low < 0 or high >= vocab_size:
        raise TokensError(f"{where}index {min(low, 0) or high} is outside the vocabulary of {vocab_size}")
