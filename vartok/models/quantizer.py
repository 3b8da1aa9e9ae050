"""The multi-scale residual quantizer: one codebook for all scales, applied coarse to fine.

Source: Tian et al. 2024, arXiv:2404.02905, Algorithms 1 and 2. Attribute names are VAR's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import TokenizerConfig
from vartok.fingerprint import quantizer_fingerprint
from vartok.schedule import Grid, Schedule, phi_index

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_DISTANCES = 1 << 24
"""Largest number of distances that `Lookup` computes at once, 64 MiB of float32."""


def area_pool(f: Tensor, grid: Grid) -> Tensor:
    """Average [B, C, h, w] over the cells of a coarser grid: [B, C, *grid]."""
    if f.device.type == "mps":  # on MPS, torch needs `grid` to divide [h, w]
        return area_pool(f.cpu(), grid).to(f.device)
    return F.interpolate(f, grid, mode="area")


def scale_inputs(f_hat: Tensor, grid: Grid) -> Tensor:
    """Compute a next-scale transformer's inputs of one scale: f_hat, area-pooled to the scale's grid.

    Args:
        f_hat: [B, C, h, w], the sum over the coarser scales.
        grid: (h_k, w_k) of the scale.

    Returns:
        [B, h_k w_k, C], row by row.
    """
    return area_pool(f_hat, grid).flatten(2).transpose(1, 2)


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h), which refines an upsampled map.

    Attributes:
        ratio: r = |quant_resi|.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return h * (1 - self.ratio) + super().forward(h.contiguous()) * self.ratio


class SharedPhi(nn.Module):
    """One phi for all scales, under VAR's attribute name."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi


class PartiallySharedPhi(nn.Module):
    """A few phis for all scales, under VAR's attribute name."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class Lookup:
    """Nearest-code search: smallest |z|^2 + |e|^2 - 2 z.e, or with znorm the largest cosine.

    Args:
        codes: [V, C] float32, the codebook.
        znorm: compare directions instead of Euclidean distances.
    """

    def __init__(self, codes: Tensor, *, znorm: bool) -> None:
        self.codes = F.normalize(codes, dim=1) if znorm else codes
        self.znorm = znorm
        self.norms = codes.square().sum(1, keepdim=True)

    def __call__(self, z: Tensor) -> Tensor:
        """Find the nearest code of every cell.

        Args:
            z: [B, C, h, w] float32.

        Returns:
            [B, h, w] int64 in [0, V); the lowest index of equally near codes.
        """
        B, C, h, w = z.shape
        cells = z.detach().permute(0, 2, 3, 1).contiguous().view(-1, C)
        parts = cells.split(self.cells_at_once())
        return torch.cat([self.nearest(part) for part in parts]).view(B, h, w)

    def cells_at_once(self) -> int:
        """Return the largest number of cells that `nearest` is called with."""
        return max(1, MAX_DISTANCES // len(self.codes))

    def nearest(self, cells: Tensor) -> Tensor:
        """Return the index of each cell's nearest code: [N, C] float32 -> [N] int64."""
        if self.znorm:
            return (self.codes @ F.normalize(cells, dim=-1).T).neg_().argmin(0)
        distances = cells.square().sum(1) + self.norms
        return distances.addmm_(self.codes, cells.T, alpha=-2).argmin(0)


class ScaleStep(NamedTuple):
    """The result of the quantizer's loop for one scale.

    Attributes:
        indices: [B, h_k, w_k] int64 in [0, V), the scale's token map.
        f_hat: [B, C, h, w] float32, the sum over the scales up to this one.
        cells: [B, C, h_k, w_k] float32, the pooled residual whose nearest codes were looked up; None when
            token maps are decoded.
    """

    indices: Tensor
    f_hat: Tensor
    cells: Tensor | None


class MultiScaleQuantizer(nn.Module):
    """A codebook of V vectors, and the phis that refine the upsampled token maps.

    Attributes:
        phis: the phis, in the order of `phi_index`; empty if phi is the identity.
        last_phi: whether the last scale goes through its phi.
        lookup_class: class of the nearest-code search.
    """

    lookup_class: type[Lookup] = Lookup

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.using_znorm = config.using_znorm
        self.last_phi = config.last_phi
        self.ema_vocab_hit_SV: Tensor  # [K, V], usage counts of VAR's trainer; unused here
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(config.patch_nums), config.vocab_size))
        # Zeros: nn.Embedding's random weights make torch import its compiler on the meta device, where
        # checkpoints are loaded. The import takes longer than everything else.
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

    def encode(self, latent: Tensor, schedule: Schedule, scales: int | None = None) -> list[Tensor]:
        """Quantize a latent, coarse to fine.

        Args:
            latent: [B, C, h, w] float32.
            schedule: (h, w) of all K scales, the last one the latent's.
            scales: end after the first `scales` scales; after the last scale if None.

        Returns:
            A token map for each of these scales; map k is [B, h_k, w_k] int64 in [0, V).

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 1.
        """
        steps = self.scale_steps(schedule, latent=latent)
        return [step.indices for step in itertools.islice(steps, scales)]

    def decode(self, maps: Sequence[Tensor], schedule: Schedule) -> Tensor:
        """Compute f_hat, the sum over scales, from token maps.

        Args:
            maps: maps of the first scales, at least one; map k is [B, h_k, w_k] int64 in [0, V).
            schedule: (h, w) of all K scales.

        Returns:
            f_hat, [B, C, h, w] float32.

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 2.
        """
        *_, last = self.scale_steps(schedule, maps=maps)
        return last.f_hat

    def var_inputs(self, maps: Sequence[Tensor], schedule: Schedule) -> Tensor:
        """Compute the inputs for teacher-forcing a next-scale transformer.

        Args:
            maps: maps of the first scales, at least one; map k is [B, h_k, w_k] int64 in [0, V).
            schedule: (h, w) of all K scales.

        Returns:
            [B, L - h_0 w_0, C] float32: for every scale but the first, f_hat of the scales before it,
            area-pooled to its grid. Scales are in order, the cells of a grid row by row.

        Source: `idxBl_to_var_input` of VAR's code.
        """
        steps = zip(self.scale_steps(schedule, maps=maps[:-1]), schedule[1 : len(maps)], strict=True)
        inputs = [scale_inputs(step.f_hat, grid) for step, grid in steps]
        if not inputs:
            return self.embedding.weight.new_empty(len(maps[0]), 0, self.embedding.embedding_dim)
        return torch.cat(inputs, dim=1)

    def scale_steps(
        self, schedule: Schedule, *, latent: Tensor | None = None, maps: Sequence[Tensor] | None = None
    ) -> Iterator[ScaleStep]:
        """Run the loop over scales, which encoding and decoding share.

        Args:
            schedule: (h, w) of all K scales, the last one the latent's.
            latent: the latent to quantize, [B, C, h, w] float32.
            maps: instead of `latent`, the token maps to decode: map k is [B, h_k, w_k] int64 in [0, V). If
                there are fewer than K maps, the loop ends after the last map.

        Yields:
            The `ScaleStep` of each scale, coarse to fine. Gradients flow from f_hat to codebook and phis.
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
                cells = residual if last else self.pool(residual, grid)
                indices = lookup(cells)
            h = self.scale_latent(indices, k, schedule)
            f_hat = h if f_hat is None else f_hat + h
            if residual is not None:
                residual = residual - h.detach()  # not latent - f_hat: VAR's tokens need VAR's rounding
            yield ScaleStep(indices, f_hat, cells)

    def scale_latent(self, indices: Tensor, k: int, schedule: Schedule) -> Tensor:
        """Compute what one scale adds to f_hat: its codes, upsampled and refined.

        Args:
            indices: [B, h_k, w_k] int64 in [0, V), the token map of scale `k`.
            k: the scale, from 0.
            schedule: (h, w) of all K scales.

        Returns:
            [B, C, h, w] float32.
        """
        h = self.embedding(indices).permute(0, 3, 1, 2)
        if k < len(schedule) - 1:
            h = self.upsample(h, schedule[-1])
        return self.refine(h, k, len(schedule))

    def lookup(self) -> Lookup:
        """Return a nearest-code search over the current codebook."""
        return self.lookup_class(self.embedding.weight.detach(), znorm=self.using_znorm)

    def pool(self, residual: Tensor, grid: Grid) -> Tensor:
        """Pool by averages over areas: [B, C, h, w] -> [B, C, *grid]."""
        return area_pool(residual, grid)

    def upsample(self, h: Tensor, grid: Grid) -> Tensor:
        """Upsample by bicubic interpolation: [B, C, h_k, w_k] -> [B, C, *grid]."""
        return F.interpolate(h.contiguous(), grid, mode="bicubic")

    def refine(self, h: Tensor, k: int, scales: int) -> Tensor:
        """Apply the phi of scale `k` of `scales`: [B, C, h, w] -> [B, C, h, w].

        Without `last_phi` the last scale is returned as it is. Its phi comes after its lookup, so tokens and
        a transformer's inputs are the same with and without it.

        Source: `get_next_autoregressive_input` and `f_to_idxBl_and_frest` of HART's `HARTHybridQuantizer`
        (github.com/mit-han-lab/hart), `get_next_autoregressive_input` and `f_to_idxBl_or_fhat` of VARSR's
        `VectorQuantizer2` (github.com/qyp2000/VARSR). Both leave the phi of scale K - 1 out, when they encode
        and when they generate; their `embed_to_fhat`, which only decodes, applies it.
        """
        if k == scales - 1 and not self.last_phi:
            return h
        return self.phis[phi_index(k, scales, len(self.phis))](h) if self.phis else h

    def fingerprint(self) -> str:
        """Return the `quantizer_fingerprint`, 64 hex digits."""
        assert all(isinstance(phi, Phi) for phi in self.phis)  # `optimize_for_cpu` comes later
        phis = [
            (float(phi.ratio), _array(phi.weight), None if phi.bias is None else _array(phi.bias))
            for phi in self.phis
            if isinstance(phi, Phi)
        ]
        return quantizer_fingerprint(_array(self.embedding.weight), phis, last_phi=self.last_phi)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return array
