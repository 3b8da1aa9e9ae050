"""The multi-scale residual quantizer: one codebook, coarse to fine.

Source: Tian et al. 2024, arXiv:2404.02905, Algorithms 1 and 2. Attribute names are VAR's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import TokenizerConfig
from vartok.schedule import Grid, Schedule, phi_index

DISTANCES = 1 << 24
"""Distances held at once, 64 MiB: bounds how many cells are looked up together."""

TABLE_CELLS = 64
"""Cells looked up together on a CPU: of 4096 codes, 1 MiB of distances, which a core's cache holds."""

BLOCK = 64
"""Codes among which the nearest is found together, on a CPU: 64 blocks are the least work at 4096."""


def area_pool(f: Tensor, grid: Grid) -> Tensor:
    """Average [B, C, h, w] over the cells of a coarser grid: [B, C, *grid]."""
    if f.device.type == "mps":  # which pools only where grids divide
        return area_pool(f.cpu(), grid).to(f.device)
    return F.interpolate(f, grid, mode="area")


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h): smooths what upsampling left, [B, C, h, w] -> the same."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return h * (1 - self.ratio) + super().forward(h.contiguous()) * self.ratio


class SharedPhi(nn.Module):
    """One phi for all scales, under the name that VAR gives it."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi


class PartiallySharedPhi(nn.Module):
    """A few phis for all scales, under the name that VAR gives them."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class Lookup:
    """Finds the nearest code: of the smallest |z|^2 + |e|^2 - 2 z.e, or with znorm the largest cosine."""

    def __init__(self, codes: Tensor, *, znorm: bool) -> None:
        self._codes = F.normalize(codes, dim=1) if znorm else codes
        self._norms = None if znorm else codes.square().sum(1, keepdim=True)
        self._table: Tensor | None = None
        if codes.device.type == "cpu":  # where it takes long to allocate memory anew for every part
            self._table = codes.new_empty(len(codes), TABLE_CELLS)

    def __call__(self, z: Tensor) -> Tensor:
        """Look every cell of [B, C, h, w] up: [B, h, w] int64, the lowest index of equals."""
        B, C, h, w = z.shape
        cells = z.detach().permute(0, 2, 3, 1).contiguous().view(-1, C)
        count = max(1, DISTANCES // len(self._codes)) if self._table is None else self._table.shape[1]
        return torch.cat([self._nearest(part) for part in cells.split(count)]).view(B, h, w)

    def _nearest(self, cells: Tensor) -> Tensor:
        """Of [N, C], N at most the table's columns: [N] int64."""
        N, table = len(cells), self._table
        if table is None:
            table = cells.new_empty(len(self._codes), N)
        else:
            # Few cells are multiplied in another order: what a cell finds would depend on its company.
            cells = F.pad(cells, (0, 0, 0, table.shape[1] - N))
        if self._norms is None:
            torch.mm(self._codes, F.normalize(cells, dim=-1).T, out=table).neg_()
        else:
            torch.add(cells.square().sum(1), self._norms, out=table)
            table.addmm_(self._codes, cells.T, alpha=-2)
        return _argmin(table)[:N]


def _argmin(table: Tensor) -> Tensor:
    """The row of every column's smallest value, the lowest of equals: [V, N] -> [N] int64."""
    V, N = table.shape
    if table.device.type != "cpu" or V % BLOCK:
        return table.argmin(0)
    # torch finds a minimum ten times faster than its place: so first the minimum of every block.
    blocks = table.view(V // BLOCK, BLOCK, N)
    block = blocks.amin(1).T.contiguous().argmin(1)
    inside = blocks.permute(2, 0, 1)[torch.arange(N, device=table.device), block].argmin(1)
    return block * BLOCK + inside


class ScaleStep(NamedTuple):
    """What one turn of the loop over scales leaves.

    Attributes:
        indices: [B, h_k, w_k] int64, the scale's token map.
        f_hat: [B, C, h, w] float32, the latent as the scales so far approximate it.
        cells: [B, C, h_k, w_k] float32, what was looked up; None where token maps are replayed.
    """

    indices: Tensor
    f_hat: Tensor
    cells: Tensor | None


class MultiScaleQuantizer(nn.Module):
    """A codebook of V vectors, and the phis that refine what is looked up in it."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.using_znorm = config.using_znorm
        self.ema_vocab_hit_SV: Tensor  # [K, V], the use counts of VAR's trainer; nothing here reads them
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(config.patch_nums), config.vocab_size))
        # Zeros until trained or loaded: nn.Embedding's own random start, on the meta device where
        # checkpoints are loaded, makes torch import its compiler, which takes longer than all the rest.
        codes = torch.zeros(config.vocab_size, config.z_channels)
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(codes, freeze=False)
        self.phis: Sequence[nn.Module]
        self.phis = [Phi(config.z_channels, config.quant_resi) for _ in range(config.phi_count)]
        self.quant_resi: nn.Module
        if not self.phis:
            self.quant_resi = nn.Identity()
        elif config.share_quant_resi == 0:
            self.quant_resi = nn.ModuleList(self.phis)
        elif config.share_quant_resi == 1:
            self.quant_resi = SharedPhi(self.phis[0])
        else:
            self.quant_resi = PartiallySharedPhi(self.phis)

    def scale_steps(
        self, schedule: Schedule, *, latent: Tensor | None = None, maps: Sequence[Tensor] | None = None
    ) -> Iterator[ScaleStep]:
        """The loop over scales: quantize a latent, or replay token maps.

        Args:
            schedule: (h, w) of all K scales, the last one the latent's.
            latent: [B, C, h, w] float32 to quantize.
            maps: instead of `latent`: the first scales' maps, [B, h_k, w_k] int64 in [0, V);
                the loop ends where they end.

        Yields:
            A `ScaleStep` each, coarse to fine. Gradients flow from f_hat to codebook and phis.
        """
        f_hat, residual = None, latent
        lookup = self.lookup() if latent is not None else None
        for k, grid in enumerate(schedule if maps is None else schedule[: len(maps)]):
            last = k == len(schedule) - 1
            cells = None
            if maps is not None:
                indices = maps[k]
            else:
                assert residual is not None  # either latent or maps is given
                assert lookup is not None
                cells = residual if last else area_pool(residual, grid)
                indices = lookup(cells)
            h = self.embedding(indices).permute(0, 3, 1, 2)
            if not last:
                h = self.upsample(h, schedule[-1])
            h = self.refine(h, k, len(schedule))
            f_hat = h if f_hat is None else f_hat + h
            if residual is not None:
                residual = residual - h.detach()  # not latent - f_hat: VAR's tokens need VAR's rounding
            yield ScaleStep(indices, f_hat, cells)

    def lookup(self) -> Lookup:
        """The codebook as it is now, ready to be searched."""
        return Lookup(self.embedding.weight.detach(), znorm=self.using_znorm)

    def upsample(self, h: Tensor, grid: Grid) -> Tensor:
        """[B, C, h_k, w_k] -> [B, C, *grid], bicubic."""
        return F.interpolate(h.contiguous(), grid, mode="bicubic")

    def refine(self, h: Tensor, k: int, scales: int) -> Tensor:
        """Apply the phi that serves scale `k` of `scales` to [B, C, h, w]."""
        return self.phis[phi_index(k, scales, len(self.phis))](h) if self.phis else h
