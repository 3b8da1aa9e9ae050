"""Agreement of a checkpoint's tokens on a device, or in a dtype, with those in float32 on the CPU.

The reference's tokens are those of VAR's own code, and do not depend on batches or threads.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vartok.codebook import Spread
from vartok.errors import ArgumentError, DeviceError, VartokWarning
from vartok.evaluation.equality import EqualTokens, count_equal, sum_equal
from vartok.images.tensors import Pixels
from vartok.loading import load
from vartok.models.quantizer import area_pool
from vartok.runtime import DTYPES, warn_of_dtype
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import TokenMaps

METHOD = (
    "tokens that equal those in float32 on the CPU. A first difference is one in the picture's coarsest "
    "scale that has any; it alters all finer scales. Margin: (d2 - d1) / d2, of the distances between the "
    "token's residual in float32 and the nearest two codes; 0 is a tie; medians "
    "are within 0.01 %"
)
"""How agreement is measured."""

CELLS_AT_ONCE = 1024
"""Number of cells whose distances to all codes are computed at once: 32 MiB of float64 for 4096 codes."""

DROPPED_BITS = 10
"""Number of last bits of a float32 that `MarginHistogram` ignores; 13 bits of the mantissa stay."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The tokens of a checkpoint on a device, in a dtype, compared with those in float32 on the CPU.

    Attributes:
        name: name of the device or dtype, as it was asked for.
        device: type of the device, such as "cuda".
        dtype: dtype of encoder and decoder.
        equal: tokens that are equal.
        differences: number of tokens that differ.
        first_differences: number of those in the picture's coarsest scale that has any.
        first_share: first differences / differences; None if no token differs.
        margin: margins of the tokens that differ, each in [0, 1], see `METHOD`; None if no token differs.
        first_margin: margins of the first differences, likewise.
    """

    name: str
    device: str
    dtype: str
    equal: EqualTokens
    differences: int
    first_differences: int
    first_share: float | None
    margin: Spread | None
    first_margin: Spread | None


class Differences(NamedTuple):
    """The tokens of one picture that differ from the reference.

    Attributes:
        equal: tokens that are equal.
        margins: [n] float32, margin of every token that differs, coarse to fine.
        first: number of these that are first differences: the first so many.
    """

    equal: EqualTokens
    margins: NDArray[np.float32]
    first: int


class MarginHistogram:
    """Minimum, median and maximum of any number of margins, in 8 MiB.

    Float32 values share a bin if all but their last `DROPPED_BITS` bits are equal. A bin's centre is then
    within 1 / 2^14 of each of its values.
    """

    def __init__(self) -> None:
        self.count = 0
        self._bins = np.zeros((_bits(np.ones(1, np.float32))[0] >> DROPPED_BITS) + 1, np.int64)
        self._minimum, self._maximum = 1.0, 0.0

    def add(self, margins: NDArray[np.float32]) -> None:
        """Add margins, [n] in [0, 1]."""
        self.count += len(margins)
        last = len(self._bins) - 1  # that of 1, and of NaN, where a huge codebook overflows
        np.add.at(self._bins, np.minimum(_bits(margins) >> DROPPED_BITS, last), 1)
        self._minimum = float(margins.min(initial=self._minimum))
        self._maximum = float(margins.max(initial=self._maximum))

    def spread(self) -> Spread | None:
        """Return exact minimum and maximum, and the median within 0.01 %; None without margins."""
        if not self.count:
            return None
        middle = [(self.count - 1) // 2, self.count // 2]
        bins = np.searchsorted(self._bins.cumsum(), middle, side="right").astype(np.uint32)
        centres = ((bins << DROPPED_BITS) + (1 << (DROPPED_BITS - 1))).view(np.float32)
        median = float(centres.astype(float).mean())
        return Spread(self._minimum, min(max(median, self._minimum), self._maximum), self._maximum)


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of values; those of larger values of 0 or more are larger."""
    return values.view(np.uint32)


class AgreementMeter:
    """Compares the tokens of tokenizers with those of a reference, and sums up over pictures.

    Args:
        reference: the checkpoint in float32 on the CPU.
        others: the same checkpoint on other devices or in other dtypes, by name.
        schedule: (h, w) of every scale; the checkpoint's own, adapted to a picture's latent, if None.
    """

    def __init__(
        self, reference: Tokenizer, others: Mapping[str, Tokenizer], schedule: Schedule | None = None
    ) -> None:
        self._reference = reference
        self._others = dict(others)
        self._schedule = schedule
        self._totals = [_Totals() for _ in others]

    def compare(self, pixels: Pixels) -> list[tuple[Differences, ...]]:
        """Compare the tokens of pictures, [B, H, W, C] uint8 or uint16: the differences of each."""
        latent = self._reference.latent(pixels)
        tokens = self._reference.quantize(latent, self._schedule)
        cells = list(self._cells(latent, tokens))
        found = [
            self._differences(tokens, cells, other.encode(pixels, tokens.schedule))
            for other in self._others.values()
        ]
        return list(zip(*found, strict=True))

    def add(self, found: tuple[Differences, ...]) -> None:
        """Add a picture's differences to the results."""
        for totals, differences in zip(self._totals, found, strict=True):
            totals.add(differences)

    def results(self) -> tuple[Agreement, ...]:
        """Return the agreement over all added pictures, for each tokenizer; empty without pictures."""
        return tuple(
            totals.describe(name, other, totals.equal)
            for (name, other), totals in zip(self._others.items(), self._totals, strict=True)
            if totals.equal is not None
        )

    def _cells(self, latent: Tensor, tokens: TokenMaps) -> Iterator[Tensor]:
        """Yield the pooled residual of each scale, whose nearest codes are the tokens: [B, C, h_k, w_k]."""
        steps = self._reference.generation(tokens.schedule)
        yield area_pool(latent, tokens.schedule[0])
        for token_map, grid in zip(tokens.maps[:-1], tokens.schedule[1:], strict=True):
            steps.add(token_map)
            yield area_pool(latent - steps.f_hat, grid)  # of the latent's own grid: the residual itself

    def _differences(self, tokens: TokenMaps, cells: Sequence[Tensor], other: TokenMaps) -> list[Differences]:
        """Return the differences of each picture of a batch."""
        maps = [part.cpu() for part in other.maps]
        margins: list[list[NDArray[np.float32]]] = [[] for _ in maps[0]]
        for own, found, residual in zip(tokens.maps, maps, cells, strict=True):
            differ = own != found
            rows = self._margins(residual.permute(0, 2, 3, 1)[differ])
            for b, part in enumerate(rows.split(differ.flatten(1).sum(1).tolist())):
                margins[b].append(part.numpy())
        return [
            Differences(equal, np.concatenate(parts), next((len(part) for part in parts if len(part)), 0))
            for equal, parts in zip(count_equal(tokens.maps, maps), margins, strict=True)
        ]

    def _margins(self, cells: Tensor) -> Tensor:
        """Return the margin of each residual, [n, C] -> [n] float32 in [0, 1]."""
        if not len(cells):
            return cells[:, 0]
        codes = self._reference.codebook.double()
        cells = cells.double()
        if self._reference.config.using_znorm:
            codes, cells = F.normalize(codes, dim=1), F.normalize(cells, dim=1)
        parts = [
            torch.cdist(part, codes).topk(2, largest=False).values for part in cells.split(CELLS_AT_ONCE)
        ]
        first, second = torch.cat(parts).unbind(1)
        return ((second - first) / second.clamp(min=1e-300)).float()


class _Totals:
    """The differences of one tokenizer, summed over pictures."""

    def __init__(self) -> None:
        self.equal: EqualTokens | None = None
        self._all, self._first = MarginHistogram(), MarginHistogram()

    def add(self, found: Differences) -> None:
        """Add the differences of a picture."""
        self.equal = found.equal if self.equal is None else sum_equal((self.equal, found.equal))
        self._all.add(found.margins)
        self._first.add(found.margins[: found.first])

    def describe(self, name: str, tokenizer: Tokenizer, equal: EqualTokens) -> Agreement:
        """Return the agreement of the tokenizer of a name."""
        return Agreement(
            name=name,
            device=tokenizer.device.type,
            dtype=tokenizer.dtype,
            equal=equal,
            differences=self._all.count,
            first_differences=self._first.count,
            first_share=self._first.count / self._all.count if self._all.count else None,
            margin=self._all.spread(),
            first_margin=self._first.spread(),
        )


def load_others(
    names: str | Sequence[str],
    weights: str | Path | None,
    tokenizer: Tokenizer,
    *,
    device: str,
    dtype: str,
) -> tuple[Tokenizer, dict[str, Tokenizer]]:
    """Load the tokenizers for `AgreementMeter`: the reference, and one for each name.

    Args:
        names: a dtype, computed on `device`; or a device, computing in `dtype`; one or several.
        weights: the checkpoint, as for `vartok.load`.
        tokenizer: the tokenizer that is measured; it is the reference if it computes in float32 on the CPU.
        device: device of the names that are dtypes.
        dtype: dtype of the names that are devices.

    Raises:
        ArgumentError: `tokenizer` is of another checkpoint than `weights`.
        DeviceError: a name is neither a dtype nor a device of this machine.
        CheckpointError: the checkpoint cannot be loaded.

    Warns:
        VartokWarning: the CPU does not compute in one of the dtypes, see `vartok.load`.
    """
    others = {}
    for name in [names] if isinstance(names, str) else names:
        try:
            where, precision = (device, name) if name in DTYPES else (name, dtype)
            others[name] = _load_again(weights, device=where, dtype=precision)
            warn_of_dtype(precision, others[name].device)
        except DeviceError as error:
            hint = f"name a device, or one of {', '.join(DTYPES)}, in `agree`"
            if close := difflib.get_close_matches(name, DTYPES, n=1, cutoff=0.5):
                hint = f"did you mean {close[0]}? {hint}"
            raise DeviceError(str(error), hint=hint) from None
        if others[name].info != tokenizer.info:
            raise ArgumentError(
                f"`agree` loads {others[name].name}, but {tokenizer.name} is measured",
                hint="name the measured checkpoint in `weights`",
            )
    is_reference = tokenizer.device.type == "cpu" and tokenizer.dtype == "float32"
    return tokenizer if is_reference else _load_again(weights, device="cpu", dtype="float32"), others


def _load_again(weights: str | Path | None, *, device: str, dtype: str) -> Tokenizer:
    """Load a checkpoint without its warnings, which the caller had when it loaded it first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VartokWarning)
        return load(weights, device=device, dtype=dtype)
