"""The multi-scale quantizer optimized for inference; `cpu` and `cuda` add what is their device's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models.quantizer import MultiScaleQuantizer, Phi
from vartok.schedule import Grid

MAX_MATRIX = 1 << 18
"""Largest number of elements of an upsampling matrix, 1 MiB of float32; `F.interpolate` replaces
larger ones."""


class OptimizedQuantizer(MultiScaleQuantizer):
    """`MultiScaleQuantizer` with cached upsampling matrices, and phis that are one convolution each.

    Args:
        quantizer: the quantizer to replace, on its device.
        conv2d: makes the module of a folded phi.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, conv2d: Callable[[nn.Conv2d], nn.Module]) -> None:
        nn.Module.__init__(self)
        self.using_znorm = quantizer.using_znorm
        self.last_phi = quantizer.last_phi
        self.embedding = quantizer.embedding
        self.phis = [conv2d(folded(phi)) for phi in quantizer.phis if isinstance(phi, Phi)]
        self.quant_resi = nn.ModuleList(self.phis)

    def upsample(self, h: Tensor, grid: Grid) -> Tensor:
        """Upsample by bicubic interpolation: [B, C, h_k, w_k] -> [B, C, *grid]."""
        B, C, *own = h.shape
        if own[0] * own[1] * grid[0] * grid[1] > MAX_MATRIX:
            return super().upsample(h, grid)
        cells = h.permute(0, 2, 3, 1).reshape(B, own[0] * own[1], C)
        matrix = upsampling((own[0], own[1]), grid, h.device)
        return (matrix @ cells).view(B, *grid, C).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def upsampling(grid: Grid, finer: Grid, device: torch.device) -> Tensor:
    """Return the matrix of bicubic upsampling: [cells of `finer`, cells of `grid`] float32."""
    cells = grid[0] * grid[1]
    alone = torch.eye(cells, dtype=torch.float32, device="cpu").view(1, cells, *grid)
    return F.interpolate(alone, finer, mode="bicubic").view(cells, -1).T.contiguous().to(device)


def folded(phi: Phi) -> Phi:
    """Return a copy of phi whose weights, as a plain convolution, compute (1 - r) h + r conv(h)."""
    folded = copy.deepcopy(phi).requires_grad_(False)
    folded.weight.mul_(phi.ratio)[:, :, 1, 1].diagonal().add_(1 - phi.ratio)
    if folded.bias is not None:
        folded.bias.mul_(phi.ratio)
    return folded
