"""Tokens: `TokenMaps` of a batch in torch, and `ImageTokens` of one image in numpy.

Both stand in one module, as each is made of the other and their checks are the same; half of it describes
them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vartok.errors import ScheduleError, TokensError, quoted
from vartok.metadata import ImageInfo, ModelInfo, View
from vartok.schedule import (
    Schedule,
    ScheduleLike,
    as_schedule,
    check_schedule,
    describe,
    first_scales,
    token_count,
)

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
        schedule: (h, w) of every scale of the whole schedule, of which the maps are the first K scales; the
            maps' own grids if it is empty.

    Raises:
        TokensError: there are no maps, a map is not a 3-d integer tensor, the batch sizes differ, the grids
            are not the first of a schedule, or its images have more than 4 Mi tokens.
    """

    maps: tuple[Tensor, ...]
    schedule: Schedule = ()

    def __post_init__(self) -> None:
        """Check the maps and convert them to int64."""
        maps = tuple(check_tensor(f"token map {k}", tokens, 3) for k, tokens in enumerate(self.maps))
        object.__setattr__(self, "maps", maps)
        grids = tuple((tokens.shape[1], tokens.shape[2]) for tokens in maps)
        object.__setattr__(self, "schedule", _whole_schedule(grids, self.schedule))
        if len({len(tokens) for tokens in maps}) > 1:
            raise TokensError(
                f"the maps' batch sizes differ: {', '.join(str(len(tokens)) for tokens in maps)}"
            )

    def __repr__(self) -> str:
        shown = _describe(self.schedule, len(self.maps))
        return f"TokenMaps(batch={len(self)}, {shown}, device={str(self.maps[0].device)!r})"

    def __len__(self) -> int:
        """B, the number of images in the batch."""
        return len(self.maps[0])

    @property
    def grids(self) -> Schedule:
        """The (h, w) of each of the K maps: the first K of `schedule`."""
        return self.schedule[: len(self.maps)]

    def flatten(self) -> Tensor:
        """Return the tokens as [B, L] int64: scales coarse to fine, each scale row by row."""
        import torch

        return torch.cat([tokens.flatten(1) for tokens in self.maps], dim=1)

    @classmethod
    def unflatten(
        cls, flat: Tensor | NDArray[Any], schedule: ScheduleLike, scales: int | None = None
    ) -> TokenMaps:
        """Invert `flatten`.

        Args:
            flat: [B, L] integers, a tensor or a numpy array.
            schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512".
            scales: K, the number of scales that the tokens are of, with L cells in all; all if None.

        Raises:
            TokensError: `flat` is not [B, L], does not hold integers, or `scales` is not from 1 to the number
                of scales.
            ScheduleError: `schedule` is not a schedule.
        """
        schedule = as_schedule(schedule)
        grids = first_scales(schedule, scales)
        flat = check_tensor("flat tokens", flat, 2)
        if flat.shape[1] != token_count(grids):
            raise TokensError(
                f"{flat.shape[1]} tokens, but the schedule has {token_count(grids)} cells",
                hint="set `schedule` to the grids of the tokens",
            )
        parts = flat.split([h * w for h, w in grids], dim=1)
        maps = tuple(part.unflatten(1, grid) for part, grid in zip(parts, grids, strict=True))
        return cls(maps, schedule)

    @classmethod
    def stack(cls, images: Sequence[ImageTokens]) -> TokenMaps:
        """Make a batch, on the CPU, from the tokens of images with one schedule; `unstack` inverts it.

        Raises:
            TokensError: there are no images, or they have several schedules or numbers of scales.
        """
        import torch

        if len({(image.schedule, len(image.scales)) for image in images}) != 1:
            raise TokensError("a batch must be one or more images, all of one schedule and number of scales")
        scales = zip(*(image.scales for image in images), strict=True)
        maps = tuple(torch.from_numpy(np.stack(scale).astype(np.int64)) for scale in scales)
        return cls(maps, images[0].schedule)

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
        grids = self.grids
        return [
            ImageTokens(split_tokens(flat, grids), model, image, schedule=self.schedule)
            for flat, image in zip(rows, images, strict=True)
        ]

    def check_vocab(self, vocab_size: int) -> None:
        """Check that every token is an index into a codebook of `vocab_size` vectors; waits for a GPU.

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
        schedule: (h, w) of every scale of the whole schedule, of which `scales` are the first K; the arrays'
            own grids if it is empty.

    Raises:
        TokensError: an array is not 2-d or not of integers, the grids are not the first of a schedule, it has
            more than 4 Mi tokens, or an index is outside the vocabulary; or the latent has another dtype, or
            another grid than the schedule's last.
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
    schedule: Schedule = ()

    def __post_init__(self) -> None:
        """Check the scales and copy them into the files' dtype."""
        for number, scale in enumerate(self.scales, 1):
            if not isinstance(scale, np.ndarray) or scale.dtype.kind not in "iu" or scale.ndim != 2:
                raise TokensError(f"scale {number} is not a 2-d array of integers")
        grids = tuple((scale.shape[0], scale.shape[1]) for scale in self.scales)
        object.__setattr__(self, "schedule", _whole_schedule(grids, self.schedule))
        # One copy and one range check for all scales: this runs for every row of a data set.
        flat = np.concatenate([scale.ravel() for scale in self.scales])
        if flat.dtype.kind not in "iu":  # numpy joins int64 and uint64 to float64
            raise TokensError("the scales mix uint64 with signed integers: convert them to one integer dtype")
        if not 0 <= int(flat.min()) <= int(flat.max()) < self.model.vocab_size:
            for number, scale in enumerate(self.scales, 1):
                _check_range(int(scale.min()), int(scale.max()), self.model.vocab_size, f"scale {number}: ")
        flat = flat.astype(token_dtype(self.model.vocab_size), copy=False)
        flat.flags.writeable = False
        object.__setattr__(self, "scales", split_tokens(flat, grids))
        if self.latent is not None:
            object.__setattr__(self, "latent", _checked_latent(self.latent, self.schedule))

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
        shown = _describe(self.schedule, len(self.scales))
        return f"ImageTokens(source={self.image.source!r}, {shown}, model={self.model.name!r})"

    @property
    def key(self) -> str:
        """Key of the image in a data set: its source."""
        return self.image.source

    @property
    def grids(self) -> Schedule:
        """The (h, w) of each of the K arrays: the first K of `schedule`."""
        return self.schedule[: len(self.scales)]

    @property
    def row_key(self) -> str:
        """Key of the row in a data set: the image's key, and with views the view's number, as "a#1"."""
        return row_key(self.key, None if self.view is None else self.view.number)

    def flatten(self) -> NDArray[Any]:
        """Return the tokens as [L] in the scales' dtype: scales coarse to fine, each scale row by row."""
        return np.concatenate([scale.ravel() for scale in self.scales])

    @classmethod
    def unflatten(
        cls,
        flat: NDArray[Any],
        schedule: ScheduleLike,
        model: ModelInfo,
        image: ImageInfo,
        scales: int | None = None,
    ) -> ImageTokens:
        """Invert `flatten`.

        Args:
            flat: [L] integers.
            schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512".
            model: the checkpoint that encoded the image.
            image: the image that was encoded.
            scales: K, the number of scales that the tokens are of, with L cells in all; all if None.

        Raises:
            TokensError: `flat` is not [L], does not hold integers, or has an index outside the vocabulary; or
                `scales` is not from 1 to the number of scales.
            ScheduleError: `schedule` is not a schedule.
        """
        schedule = as_schedule(schedule)
        grids = first_scales(schedule, scales)
        if flat.shape != (token_count(grids),):
            raise TokensError(
                f"tokens of shape {list(flat.shape)}, but the schedule has {token_count(grids)} cells"
            )
        return cls(split_tokens(flat, grids), model, image, schedule=schedule)

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
        import torch

        low, high = torch.stack(tokens.aminmax()).tolist()  # one wait for a GPU, not two
        _check_range(low, high, vocab_size)


def check_indices_without_waiting(maps: Sequence[Tensor], vocab_size: int) -> None:
    """Check token maps as `check_indices` does, but leave those on a CUDA device to torch.

    Reading from the device would make a training loop wait for it in every step. torch's lookup checks the
    indices there, and its error is raised by a later call.

    Raises:
        TokensError: a token on another device is not in [0, vocab_size).
    """
    if maps[0].device.type != "cuda":
        import torch

        check_indices(torch.cat([tokens.flatten() for tokens in maps]), vocab_size)


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


def _whole_schedule(grids: Schedule, schedule: Schedule) -> Schedule:
    """Return the schedule that begins with `grids`, after checking it: `grids` itself if it is empty.

    Raises:
        TokensError: it is not a schedule, has more than `MAX_TOKENS` tokens, or begins otherwise.
    """
    try:
        whole = _checked_schedule(schedule or grids)
    except TypeError:  # lists, as JSON has them, cannot be cached
        whole = check_token_schedule(schedule)
    if not grids or whole[: len(grids)] != grids:
        raise TokensError(
            f"the scales are {describe(grids) or 'none'}, but the schedule begins with "
            f"{describe(whole[: len(grids)] or whole)}"
        )
    return whole


def _describe(schedule: Schedule, scales: int) -> str:
    """Return a schedule, and the number of scales if it is not all, as attributes in a repr."""
    return f"schedule={describe(schedule)!r}" + (f", scales={scales}" if scales < len(schedule) else "")


def split_tokens(flat: NDArray[Any], schedule: Schedule) -> tuple[NDArray[Any], ...]:
    """Split [..., L] tokens into K arrays; array k is [..., h_k, w_k]. Those of [L] are views."""
    scales, start = [], 0
    for h, w in schedule:
        scales.append(flat[..., start : start + h * w].reshape(*flat.shape[:-1], h, w))
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
