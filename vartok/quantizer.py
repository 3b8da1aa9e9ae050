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

LOOKUP_ROWS = 4096
"""Vectors looked up at once: bounds the table of distances to 64 MiB at 4096 codes."""


def pool(f: Tensor, grid: Grid) -> Tensor:
    """Average [B, C, h, w] over the cells of a coarser grid: [B, C, *grid]."""
    if f.device.type == "mps":  # which pools only where grids divide
        return pool(f.cpu(), grid).to(f.device)
    return F.interpolate(f, grid, mode="area")


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h): smooths what upsampling left, [B, C, h, w] -> the same."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


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


class Scale(NamedTuple):
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
        self._phis = [Phi(config.z_channels, config.quant_resi) for _ in range(config.phi_count)]
        self.quant_resi: nn.Module
        if not self._phis:
            self.quant_resi = nn.Identity()
        elif config.share_quant_resi == 0:
            self.quant_resi = nn.ModuleList(self._phis)
        elif config.share_quant_resi == 1:
            self.quant_resi = SharedPhi(self._phis[0])
        else:
            self.quant_resi = PartiallySharedPhi(self._phis)

    def scales(
        self, schedule: Schedule, *, latent: Tensor | None = None, maps: Sequence[Tensor] | None = None
    ) -> Iterator[Scale]:
        """The loop over scales: quantize a latent, or replay token maps.

        Args:
            schedule: (h, w) of all K scales, the last one the latent's.
            latent: [B, C, h, w] float32 to quantize.
            maps: instead of `latent`: the first scales' maps, [B, h_k, w_k] int64 in [0, V);
                the loop ends where they end.

        Yields:
            A `Scale` each, coarse to fine. Gradients flow from f_hat to codebook and phis.
        """
        f_hat, residual = None, latent
        for k, grid in enumerate(schedule if maps is None else schedule[: len(maps)]):
            last = k == len(schedule) - 1
            cells = None
            if maps is not None:
                indices = maps[k]
            else:
                assert residual is not None  # either latent or maps is given
                cells = residual if last else pool(residual, grid)
                indices = self.nearest(cells)
            h = self.embedding(indices).permute(0, 3, 1, 2).contiguous()
            if not last:
                h = F.interpolate(h, schedule[-1], mode="bicubic")
            h = self.refine(h, k, len(schedule))
            f_hat = h if f_hat is None else f_hat + h
            if residual is not None:
                residual = residual - h.detach()  # not latent - f_hat: VAR's tokens need VAR's rounding
            yield Scale(indices, f_hat, cells)

    def nearest(self, z: Tensor) -> Tensor:
        """Look every cell of [B, C, h, w] up in the codebook: [B, h, w] int64, the lowest index of equals."""
        B, C, h, w = z.shape
        codes = self.embedding.weight.detach()
        rows = z.permute(0, 2, 3, 1).reshape(-1, C).split(LOOKUP_ROWS)
        if self.using_znorm:
            codes = F.normalize(codes.T, dim=0)
            found = [(F.normalize(part, dim=-1) @ codes).argmax(1) for part in rows]
        else:
            norms = codes.square().sum(1)
            found = [
                (part.square().sum(1, keepdim=True) + norms).addmm_(part, codes.T, alpha=-2).argmin(1)
                for part in rows
            ]
        return torch.cat(found).view(B, h, w)

    def refine(self, h: Tensor, k: int, scales: int) -> Tensor:
        """Apply the phi that serves scale `k` of `scales` to [B, C, h, w]."""
        return self._phis[phi_index(k, scales, len(self._phis))](h) if self._phis else h
