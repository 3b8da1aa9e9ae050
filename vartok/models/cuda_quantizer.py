"""The multi-scale quantizer in few kernel launches, for devices where a launch takes longer than its work."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vartok.models.optimized_quantizer import OptimizedQuantizer, folded
from vartok.models.packed_conv import PublicConv2d
from vartok.models.quantizer import Lookup, MultiScaleQuantizer, Phi, area_pool
from vartok.schedule import Grid, Schedule, phi_index

MAX_REFINING = 1 << 23
"""Largest number of elements of `ScaleMatrices.refining`, 32 MiB of float32; convolutions replace larger
matrices."""

CACHED_SCHEDULES = 8
"""Schedules whose matrices are kept: 6 MiB for 10 scales of 16x16 cells, 60 MiB for 10 of 32x32."""


class CudaQuantizer(OptimizedQuantizer):
    """`OptimizedQuantizer` in few launches, with maps as matrices [B, cells, C].

    Pooling is a product with a matrix. Upsampling and phi together are two products: a code's vector times
    the nine taps of phi's kernel, then a matrix that upsamples and shifts each of the nine. Encoding computes
    no f_hat. Sums are in another order than the plain quantizer's, so tokens can differ in near ties.
    """

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__(quantizer, PublicConv2d)
        self._taps = [_taps(folded(phi)) for phi in quantizer.phis if isinstance(phi, Phi)]
        self._lookup = RowLookup(quantizer.embedding.weight.detach(), znorm=quantizer.using_znorm)

    def lookup(self) -> Lookup:
        """Return the nearest-code search over the codebook that the quantizer was made with."""
        return self._lookup

    def encode(self, latent: Tensor, schedule: Schedule, scales: int | None = None) -> list[Tensor]:
        """Quantize a latent, coarse to fine; see `MultiScaleQuantizer.encode`."""
        B, C, h, w = latent.shape
        maps: list[Tensor] = []
        residual = latent.permute(0, 2, 3, 1).reshape(B, h * w, C)
        for k, grid in enumerate(schedule[:scales]):
            cells = residual if k == len(schedule) - 1 else self._pooled(residual, k, schedule)
            maps.append(self._nearest(cells.reshape(-1, C)).view(B, *grid))
            if k < len(schedule[:scales]) - 1:
                added = self.scale_latent(maps[-1], k, schedule).permute(0, 2, 3, 1)
                residual = residual - added.reshape(B, h * w, C)
        return maps

    def scale_latent(self, indices: Tensor, k: int, schedule: Schedule) -> Tensor:
        """Compute what one scale adds to f_hat; see `MultiScaleQuantizer.scale_latent`."""
        refining = self.matrices(schedule)[k].refining
        if refining is None:
            return super().scale_latent(indices, k, schedule)
        codes = self.embedding(indices.flatten(1))  # [B, cells, C]
        B, cells, C = codes.shape
        if self._taps:
            weight, bias = self._taps[phi_index(k, len(schedule), len(self._taps))]
            codes = F.linear(codes, weight, bias).view(B, cells * 9, C)
        return torch.bmm(refining.expand(B, -1, -1), codes).view(B, *schedule[-1], C).permute(0, 3, 1, 2)

    def matrices(self, schedule: Schedule) -> tuple[ScaleMatrices, ...]:
        """Return the matrices of each scale, which are cached; a CUDA graph must keep those that it uses."""
        return _matrices(schedule, bool(self._taps), self.embedding.weight.device)

    def _pooled(self, residual: Tensor, k: int, schedule: Schedule) -> Tensor:
        """Pool [B, cells of the latent, C] to the grid of scale `k`: [B, cells, C]."""
        B, _, C = residual.shape
        pooling = self.matrices(schedule)[k].pooling
        if pooling is None:
            f = residual.view(B, *schedule[-1], C).permute(0, 3, 1, 2)
            return area_pool(f, schedule[k]).permute(0, 2, 3, 1)
        return torch.bmm(pooling.expand(B, -1, -1), residual)

    def _nearest(self, cells: Tensor) -> Tensor:
        """Look up any number of cells: [N, C] -> [N] int64."""
        found = [self._lookup.nearest(part) for part in cells.split(self._lookup.cells_at_once())]
        return found[0] if len(found) == 1 else torch.cat(found)


class RowLookup(Lookup):
    """`Lookup` whose table has a row for each cell, which a device searches faster than a column.

    Codes that repeat an earlier one have an infinite distance, so that no rounding prefers them.
    """

    def __init__(self, codes: Tensor, *, znorm: bool) -> None:
        super().__init__(codes, znorm=znorm)
        norms = torch.zeros_like(self.norms) if znorm else self.norms
        self.norms = norms.flatten().masked_fill(_repeated(self.codes), math.inf)

    def nearest(self, cells: Tensor) -> Tensor:
        """Return the index of each cell's nearest code: [N, C] float32 -> [N] int64."""
        if self.znorm:
            return torch.addmm(self.norms, F.normalize(cells, dim=-1), self.codes.T, alpha=-1).argmin(1)
        distances = cells.square().sum(1, keepdim=True) + self.norms
        return distances.addmm_(cells, self.codes.T, alpha=-2).argmin(1)


class ScaleMatrices(NamedTuple):
    """The matrices of one scale of n cells in a latent of N cells; None where another operation is used.

    Attributes:
        pooling: [n, N] float32, area pooling.
        refining: [N, 9 n] float32, upsampling and then one of nine shifts; columns are cells, then shifts.
            [N, n], upsampling alone, where phi is the identity.
    """

    pooling: Tensor | None
    refining: Tensor | None


@functools.lru_cache(maxsize=CACHED_SCHEDULES)
def _matrices(schedule: Schedule, refine: bool, device: torch.device) -> tuple[ScaleMatrices, ...]:
    with torch.inference_mode(False), torch.no_grad():  # others than inference may use them too
        *coarser, finest = [(grid, math.prod(grid)) for grid in schedule]
        scales = []
        for grid, n in coarser:
            fits = 9 * n * finest[1] <= MAX_REFINING
            pooling = _pooling(grid, finest[0], device) if fits else None
            refining = _refining(grid, finest[0], refine, device) if fits else None
            scales.append(ScaleMatrices(pooling, refining))
        return (*scales, ScaleMatrices(None, None))


def _pooling(grid: Grid, finer: Grid, device: torch.device) -> Tensor:
    """Return the matrix of area pooling: [cells of `grid`, cells of `finer`] float32."""
    inside = _kron(*(_areas(*sides).to(device) for sides in zip(grid, finer, strict=True)))
    return inside / inside.sum(1, keepdim=True)


def _refining(grid: Grid, finer: Grid, refine: bool, device: torch.device) -> Tensor:
    """Return the matrix of `ScaleMatrices.refining`."""
    matrix = _kron(*(_bicubic(*sides).to(device) for sides in zip(grid, finer, strict=True)))
    if not refine:
        return matrix
    rows, columns = finer
    padded = F.pad(matrix.view(rows, columns, -1), (0, 0, 1, 1, 1, 1))
    shifts = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return torch.stack(shifts, -1).reshape(rows * columns, -1)


def _areas(cells: int, finer: int) -> Tensor:
    """Return which of `finer` cells of a side are in the area of each of `cells`: [cells, finer] 0 or 1."""
    alone = torch.eye(finer, dtype=torch.float32, device="cpu")
    return F.adaptive_avg_pool1d(alone, cells).T.gt(0).float()


def _bicubic(cells: int, finer: int) -> Tensor:
    """Return the matrix of bicubic upsampling along one side: [finer, cells] float32."""
    alone = torch.eye(cells, dtype=torch.float32, device="cpu").view(1, cells, cells, 1)
    return F.interpolate(alone, (finer, 1), mode="bicubic").view(cells, finer).T


def _kron(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the Kronecker product, [a, b] and [c, d] -> [a c, b d]; `torch.kron` fails on some strides."""
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _taps(phi: Phi) -> tuple[Tensor, Tensor]:
    """Return weight [9 C, C] and bias [9 C] of a linear layer that applies each tap of a folded phi.

    The bias is at the middle tap: a row of an upsampling matrix sums to 1.
    """
    C = phi.out_channels
    bias = phi.weight.new_zeros(9, C)
    if phi.bias is not None:
        bias[4] = phi.bias
    return phi.weight.permute(2, 3, 0, 1).reshape(9 * C, C).contiguous(), bias.flatten()


def _repeated(codes: Tensor) -> Tensor:
    """Return which codes equal one of lower index: [V, C] -> [V] bool."""
    _, inverse = torch.unique(codes, dim=0, return_inverse=True)
    index = torch.arange(len(codes), device=codes.device)
    first = torch.full_like(index, len(codes)).scatter_reduce_(0, inverse, index, "amin")
    return first[inverse] != index
