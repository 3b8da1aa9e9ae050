"""Tokens: `TokenMaps` of a batch in torch, and `ImageTokens` of one image in numpy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vartok.errors import ScheduleError, TokensError, quoted
from vartok.metadata import ImageInfo, ModelInfo, View
from vartok.schedule import Schedule, ScheduleLike, as_schedule, check_schedule, describe, token_count

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MAX_TOKENS = 1 << 22
"""Largest number of tokens of an image; its token file stays below `token_files.MAX_DOCUMENT_BYTES`."""


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """Token maps of a batch of images, as a tokenizer encodes and decodes them.

    `==` compares identity; `torch.equal(a.flatten(), b.flatten())` compares values.

    Attributes:
        maps: K token maps, coarse to fine; map k is [B, h_k, w_k] int64. Tensors of other integer dtypes, and
            numpy arrays of integers, are converted.

    Raises:
        TokensError: there are no maps, a map is not a 3-d integer tensor, the batch sizes differ, the grids
            are not a schedule, or an image has more than 4 Mi tokens.
    """

    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Check the maps and convert them to int64."""
        maps = tuple(check_tensor(f"token map {k}", tokens, 3) for k, tokens in enumerate(self.maps))
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
            schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; L cells in all.

        Raises:
            TokensError: `flat` is not [B, L], or does not hold integers.
            ScheduleError: `schedule` is not a schedule.
        """
        schedule = as_schedule(schedule)
        flat = check_tensor("flat tokens", flat, 2)
        if flat.shape[1] != token_count(schedule):
            raise TokensError(
                f"{flat.shape[1]} tokens, but the schedule has {token_count(schedule)} cells",
                hint="set `schedule` to the grids of the tokens",
            )
        scales = flat.split([h * w for h, w in schedule], dim=1)
        return cls(tuple(scale.unflatten(1, grid) for scale, grid in zip(scales, schedule, strict=True)))

    @classmethod
    def stack(cls, images: Sequence[ImageTokens]) -> TokenMaps:
        """Make a batch, on the CPU, from the tokens of images with one schedule; `unstack` inverts it.

        Raises:
            TokensError: there are no images, or they have several schedules.
        """
        import torch

        if len({image.schedule for image in images}) != 1:
            raise TokensError("a batch must be one or more images, all of one schedule")
        scales = zip(*(image.scales for image in images), strict=True)
        return cls(tuple(torch.from_numpy(np.stack(scale).astype(np.int64)) for scale in scales))

    def unstack(self, model: ModelInfo, images: Sequence[ImageInfo]) -> list[ImageTokens]:
        """Return the `ImageTokens` of each of the B images of the batch.

        Args:
            model: the checkpoint that encoded the images: `Tokenizer.info`.
            images: metadata of the B images.

        Raises:
            TokensError: `images` does not have B items, or an index is outside the vocabulary.
        """
        if len(images) != len(self):
            raise TokensError(f"{len(images)} images are described, but the batch has {len(self)}")
        rows = self.flatten().cpu().numpy()  # one transfer from the GPU
        schedule = self.schedule
        return [
            ImageTokens(split_tokens(flat, schedule), model, image)
            for flat, image in zip(rows, images, strict=True)
        ]

    def check_vocab(self, vocab_size: int) -> None:
        """Check that every token is an index into a codebook of `vocab_size` vectors.

        Raises:
            TokensError: a token is not in [0, vocab_size).
        """
        check_indices(self.flatten(), vocab_size)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Tokens of one image, with its metadata: the content of a token file or of a data set's row.

    `==` compares by value: all attributes but `notes`.

    Attributes:
        scales: K read-only arrays, coarse to fine; array k is [h_k, w_k] uint16, or uint32 where
            the vocabulary has more than 65,536 codes. Other integer dtypes are converted.
        model: the checkpoint that encoded the image.
        image: the image that was encoded.
        label: class index, 0 or more; None if unknown. Data sets carry labels, token files do not.
        caption: caption of the image, or None. Data sets carry captions, token files do not.
        metadata: JSON text that came with the image, or None. Data sets carry it, token files do not.
        view: the part of the image that was encoded, in data sets with several views of each image; else
            None.
        latent: [C, h, w] float16, read-only: the latent before quantization, in data sets that keep it; else
            None.
        notes: remarks on how the image was read, for the user; not written to files.

    Raises:
        TokensError: an array is not 2-d or not of integers, the grids are not a schedule, there are more
            than 4 Mi tokens, or an index is outside the vocabulary; or the latent has another dtype, or
            another grid than the last scale.
    """

    scales: tuple[NDArray[Any], ...]
    model: ModelInfo
    image: ImageInfo
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    view: View | None = None
    latent: NDArray[np.float16] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the scales and copy them into the files' dtype."""
        for k, scale in enumerate(self.scales):
            if not isinstance(scale, np.ndarray) or scale.dtype.kind not in "iu" or scale.ndim != 2:
                raise TokensError(f"scale {k} is not a 2-d array of integers")
        schedule = _checked_schedule(self.schedule)
        # One copy and one range check for all scales: this runs for every row of a data set.
        flat = np.concatenate([scale.ravel() for scale in self.scales])
        if flat.dtype.kind not in "iu":  # numpy joins int64 and uint64 to float64
            raise TokensError("the scales mix uint64 with signed integers: convert them to one integer dtype")
        if not 0 <= int(flat.min()) <= int(flat.max()) < self.model.vocab_size:
            for k, scale in enumerate(self.scales):
                _check_range(int(scale.min()), int(scale.max()), self.model.vocab_size, f"scale {k}: ")
        flat = flat.astype(token_dtype(self.model.vocab_size), copy=False)
        flat.flags.writeable = False
        object.__setattr__(self, "scales", split_tokens(flat, schedule))
        if self.latent is not None:
            object.__setattr__(self, "latent", _checked_latent(self.latent, schedule))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageTokens):
            return NotImplemented
        return (
            (self.model, self.image, self.schedule) == (other.model, other.image, other.schedule)
            and (self.label, self.caption, self.metadata) == (other.label, other.caption, other.metadata)
            and self.view == other.view
            and np.array_equal(self.flatten(), other.flatten())
            and _same_latent(self.latent, other.latent)
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
    def row_key(self) -> str:
        """Key of the row in a data set: the image's key, and with views the view's number, as "a#1"."""
        return row_key(self.key, None if self.view is None else self.view.number)

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
            schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; L cells in all.
            model: the checkpoint that encoded the image.
            image: the image that was encoded.

        Raises:
            TokensError: `flat` is not [L], does not hold integers, or has an index outside the vocabulary.
            ScheduleError: `schedule` is not a schedule.
        """
        schedule = as_schedule(schedule)
        if flat.shape != (token_count(schedule),):
            raise TokensError(
                f"tokens of shape {list(flat.shape)}, but the schedule has {token_count(schedule)} cells"
            )
        return cls(split_tokens(flat, schedule), model, image)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a token file, whole or not at all; folders above it are made.

        Args:
            path: file to write, in the format of its suffix: .npz, .json or .jsonl.
            overwrite: replace an existing file.

        Raises:
            TokenFileError: `path` has another suffix.
            OutputError: the file exists and `overwrite` is false, or it cannot be written.
        """
        from vartok.token_files import save_tokens

        save_tokens(self, path, overwrite=overwrite)


def row_key(key: str, view: int | None) -> str:
    """Return the key of a view of an image, such as "a#1"; the image's own key if `view` is None."""
    return key if view is None else f"{key}#{view}"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of indices in files: uint16, or uint32 if V is above 65,536; little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def check_tensor(name: str, tokens: Tensor | NDArray[Any], ndim: int) -> Tensor:
    """Return tokens as an int64 tensor.

    Raises:
        TokensError: `tokens` is not a tensor or array of integers with `ndim` dimensions.
    """
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
        raise TokensError(f"{name} must be a {ndim}-d tensor of integers, not {found}", hint=hint)
    return tokens.to(torch.int64)


def check_indices(tokens: Tensor, vocab_size: int) -> None:
    """Check that every token is an index into a codebook of `vocab_size` vectors.

    Raises:
        TokensError: a token is not in [0, vocab_size).
    """
    if tokens.numel():
        low, high = tokens.aminmax()  # one kernel for both
        _check_range(int(low), int(high), vocab_size)


def check_token_schedule(value: object) -> Schedule:
    """Return the schedule of an image's tokens, after checking it.

    Raises:
        TokensError: `value` is not a schedule, or has more than `MAX_TOKENS` tokens.
    """
    try:
        schedule = check_schedule(value)
    except ScheduleError as error:
        raise TokensError(str(error)) from None
    if token_count(schedule) > MAX_TOKENS:
        raise TokensError(
            f"the schedule has {token_count(schedule)} tokens, but vartok takes up to {MAX_TOKENS}"
        )
    return schedule


_checked_schedule = functools.lru_cache(maxsize=64)(check_token_schedule)


def split_tokens(flat: NDArray[Any], schedule: Schedule) -> tuple[NDArray[Any], ...]:
    """Split [L] tokens into K views; view k is [h_k, w_k]."""
    scales, start = [], 0
    for h, w in schedule:
        scales.append(flat[start : start + h * w].reshape(h, w))
        start += h * w
    return tuple(scales)


def _checked_latent(latent: Any, schedule: Schedule) -> NDArray[np.float16]:
    """Return a read-only, contiguous latent, after checking its type and its grid."""
    if not isinstance(latent, np.ndarray) or latent.dtype != np.float16 or latent.ndim != 3:
        raise TokensError("a latent is not a [C, h, w] array of float16")
    if latent.shape[1:] != schedule[-1]:
        raise TokensError(
            f"a latent of shape {list(latent.shape)}, but the last scale is {describe(schedule[-1:])}"
        )
    kept: NDArray[np.float16] = np.ascontiguousarray(latent, "<f2").view()
    kept.flags.writeable = False
    return kept


def _same_latent(one: NDArray[np.float16] | None, other: NDArray[np.float16] | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _check_range(low: int, high: int, vocab_size: int, where: str = "") -> None:
    if low < 0 or high >= vocab_size:
        raise TokensError(f"{where}index {min(low, 0) or high} is outside the vocabulary of {vocab_size}")
