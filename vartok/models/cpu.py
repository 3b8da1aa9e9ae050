"""The networks optimized for inference on a CPU: equal outputs up to rounding, with less memory traffic.

`optimize_for_cpu` replaces the modules of a loaded model, which `layers`, `light` and `quantizer` define:

- Feature maps are channels last in memory, the layout of oneDNN's convolutions.
- Convolution weights are packed once for an input shape (`PackedConv2d`).
- A residual block's last convolution adds its output to the shortcut in place. The ReLU between two
  convolutions is fused into the first.
- Nearest-neighbour upsampling and its 3x3 convolution are one transposed convolution: 16 products for an
  input cell instead of 36.
- In the quantizer (`OptimizedQuantizer`), upsampling is a product with a cached matrix, and phi is one
  convolution, whose weights include the identity's (1 - r).

With float32 networks, the latent and the tokens are the same, bit for bit, for any batch and any number of
threads: `GroupNorm` and `PaddedLookup` sum in a fixed order, `silu_` rounds in the same way, and no 1x1
convolution uses a kernel that torch chooses by the number of threads. Decoded images may differ between
numbers of threads in the last bits of float32 (`_Upsample2x`), and after rounding to 8 bits by one level.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models import light
from vartok.models.layers import AttnBlock, ResnetBlock, Upsample2x, replace_modules
from vartok.models.optimized_quantizer import OptimizedQuantizer
from vartok.models.packed_conv import PackedConv2d, PublicConv2d, can_pack
from vartok.models.quantizer import Lookup, MultiScaleQuantizer
from vartok.models.vqvae import VQVAE

STRIPS = 32
"""Largest number of partial sums of a channel in a group norm. More are more accurate, but slower once they
exceed the cache."""

PARALLEL_GRAIN = 1 << 15
"""torch's grain size: the smallest number of elements that a thread gets in an elementwise operation."""

VECTOR = 64
"""Number of elements that fills whole SIMD vectors, on every processor and in any dtype."""

LOOKUP_CELLS = 64
"""Cells per lookup. Their distances to 4096 codes take 1 MiB of float32, which fits into a core's cache."""

ARGMIN_BLOCK = 64
"""Codes per block of `_argmin`: for 4096 codes, 64 blocks of 64 are the least work."""


def optimize_for_cpu(model: VQVAE, *, networks: bool = True) -> None:
    """Replace a model's modules by their CPU versions, in place.

    Afterwards the model is for inference only: it has no gradients, its state dict is not VAR's, and
    residual blocks overwrite their input. Where oneDNN cannot pack convolutions of the networks' dtype,
    float32 networks use `PublicConv2d`, and networks of another dtype are not replaced.

    Args:
        model: model on a CPU, with the networks in their final dtype.
        networks: replace encoder and decoder too; if False, the quantizer alone.
    """
    dtype = model.quant_conv.weight.dtype
    for name, part in model.named_children():
        if part is model.quantize or (networks and (dtype == torch.float32 or can_pack(dtype))):
            setattr(model, name, _optimized(part))


class GroupNorm(nn.Module):
    """`nn.GroupNorm` for channels-last maps: accurate to float32, and equal for any number of threads.

    On such maps torch adds up a channel's values one by one: over 512x512 cells the result is off by 1e-3
    if the mean is five times the standard deviation. torch also splits the sums among threads, so that
    rounding depends on their number. Here a channel has up to `STRIPS` partial sums, all computed by one
    thread. Maps of another dtype than float32 go through `nn.GroupNorm`.

    Args:
        norm: the module to replace; its weight and bias are used.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Normalize [B, C, H, W]. A float32 result is channels last, and is written to `out` if given.

        Args:
            x: [B, C, H, W].
            out: [B, C, H, W] float32, may be `x`; not used if `x` has another dtype.
        """
        if x.dtype != torch.float32:
            return self._norm(x)
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x) if out is None else out
        for picture, normalized in zip(x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True):
            scale, shift = self._affine(picture)
            torch.addcmul(shift, picture, scale, out=normalized)
        return out

    def _affine(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift, [C] each, that normalize a picture [H, W, C]: picture * scale + shift."""
        H, W, C = picture.shape
        groups = self._norm.num_groups
        strips = math.gcd(H * W, STRIPS)
        columns = picture.reshape(1, -1, 1, strips * C).permute(0, 3, 1, 2)
        with one_thread():  # several threads would each sum a part of the rows
            statistics = torch.batch_norm_update_stats(columns, None, None, 0)
        mean, variance = (part.view(strips, groups, -1) for part in statistics)
        center = mean.mean((0, 2), keepdim=True)
        spread = (variance + (mean - center).square_()).mean((0, 2), keepdim=True)
        scale = self._norm.weight.view(1, groups, -1) * (spread + self._norm.eps).rsqrt_()
        return scale.flatten(), self._norm.bias - (center * scale).flatten()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Set torch's number of threads to one inside the block."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def silu_(x: Tensor) -> Tensor:
    """Apply SiLU, with the same rounding for any number of threads.

    torch splits a tensor evenly among its threads. Values at the end of a part that fill no whole SIMD
    vector are rounded differently. Here every part starts at a multiple of `VECTOR`, so that such values
    occur only at the end of the tensor.

    Args:
        x: [B, C, H, W]; overwritten if it is channels last.

    Returns:
        [B, C, H, W], channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    threads = min(torch.get_num_threads(), -(-flat.numel() // PARALLEL_GRAIN))
    while threads > 1:
        whole = flat.numel() // (threads * VECTOR) * threads * VECTOR
        if min(torch.get_num_threads(), -(-whole // PARALLEL_GRAIN)) == threads:
            break
        threads -= 1
    else:
        whole = flat.numel() if flat.numel() <= PARALLEL_GRAIN else PARALLEL_GRAIN
    for part in (flat[:whole], flat[whole:]):
        F.silu(part, inplace=True)
    return x


class SiLU(nn.Module):
    """`nn.SiLU`, computed by `silu_`."""

    def __init__(self, _: nn.SiLU) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return silu_(x)


class _ResnetBlock(nn.Module):
    """A `layers.ResnetBlock` that overwrites its input if the shortcut is the identity."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(block.norm1), GroupNorm(block.norm2)
        self.conv1, self.conv2 = _optimized(block.conv1), _optimized(block.conv2)
        self.nin_shortcut = _optimized(block.nin_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu_(self.norm1(x)))
        h = silu_(self.norm2(h, out=h))
        total: Tensor = self.conv2(h, into=self.nin_shortcut(x))
        return total


class _AttnBlock(nn.Module):
    """A `layers.AttnBlock` that overwrites its input: the residual is added to it in place."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        self.block = block
        for name, part in block.named_children():
            setattr(block, name, _optimized(part))

    def forward(self, x: Tensor) -> Tensor:
        return self.block.proj_out(self.block.attend(x), into=x)


class _Upsample2x(nn.Module):
    """`layers.Upsample2x` as one transposed 4x4 convolution: a cell's 2x2 copies affect 4x4 output cells.

    oneDNN rounds a transposed convolution differently for other numbers of threads.
    """

    def __init__(self, upsample: Upsample2x) -> None:
        super().__init__()
        conv = upsample.conv
        weight = conv.weight.detach().float()
        for side in (2, 3):
            before, here, after = weight.unbind(side)
            weight = torch.stack([after, here + after, before + here, before], side)
        del before, here, after  # they keep the smaller kernel in memory
        weight = weight.transpose(0, 1).to(conv.weight.dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


class _LightBlock(nn.Module):
    """A `light.Block` that overwrites its input: the residual is added to it in place."""

    def __init__(self, block: light.Block) -> None:
        super().__init__()
        self.conv1, self.conv2 = _optimized(block.conv1), _optimized(block.conv2)

    def forward(self, h: Tensor) -> Tensor:
        total: Tensor = self.conv2(self.conv1(F.relu(h), relu=True), into=h)
        return total


class PaddedLookup(Lookup):
    """`quantizer.Lookup` for a CPU: ten times as fast, and a cell's code depends on that cell alone.

    Cells are padded to a fixed number, `LOOKUP_CELLS`: BLAS sums narrow matrices in another order, and the
    nearest code would depend on the batch. Codes are padded to a multiple of `ARGMIN_BLOCK`: with few codes
    BLAS splits the sums among threads, and the nearest code would depend on their number. Padding codes have
    an infinite distance.
    """

    def __init__(self, codes: Tensor, *, znorm: bool) -> None:
        super().__init__(codes, znorm=znorm)
        if znorm:
            self.norms = torch.zeros_like(self.norms)
        missing = -len(codes) % ARGMIN_BLOCK
        if missing:
            self.codes = F.pad(self.codes, (0, 0, 0, missing))
            self.norms = F.pad(self.norms, (0, 0, 0, missing), value=math.inf)
        self._table = self.codes.new_empty(len(self.codes), LOOKUP_CELLS)  # allocating it again is slow

    def cells_at_once(self) -> int:
        """Return the largest number of cells that `nearest` takes."""
        return self._table.shape[1]

    def nearest(self, cells: Tensor) -> Tensor:
        """Return the index of each cell's nearest code: [N, C] -> [N] int64, N up to `cells_at_once`."""
        N, table = len(cells), self._table
        cells = F.pad(cells, (0, 0, 0, table.shape[1] - N))
        if self.znorm:
            table.copy_(self.norms.expand_as(table)).addmm_(
                self.codes, F.normalize(cells, dim=-1).T, alpha=-1
            )
        else:
            torch.add(cells.square().sum(1), self.norms, out=table)
            table.addmm_(self.codes, cells.T, alpha=-2)
        return _argmin(table)[:N]


def _argmin(table: Tensor) -> Tensor:
    """Return the row of every column's minimum, the first of equal ones: [V, N] -> [N] int64."""
    V, N = table.shape
    # torch's amin is ten times faster than argmin, so find the minimum of every block first.
    blocks = table.view(V // ARGMIN_BLOCK, ARGMIN_BLOCK, N)
    block = blocks.amin(1).T.contiguous().argmin(1)
    inside = blocks.permute(2, 0, 1)[torch.arange(N, device=table.device), block].argmin(1)
    return block * ARGMIN_BLOCK + inside


class _Quantizer(OptimizedQuantizer):
    """`OptimizedQuantizer` with `PaddedLookup` and packed convolutions."""

    lookup_class = PaddedLookup

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        super().__init__(quantizer, _conv2d)


def _conv2d(conv: nn.Conv2d) -> nn.Module:
    return PackedConv2d(conv) if can_pack(conv.weight.dtype) else PublicConv2d(conv)


_REPLACED: dict[type, Callable[[Any], nn.Module]] = {
    nn.Conv2d: _conv2d,
    nn.GroupNorm: GroupNorm,
    nn.SiLU: SiLU,
    ResnetBlock: _ResnetBlock,
    AttnBlock: _AttnBlock,
    Upsample2x: _Upsample2x,
    light.Block: _LightBlock,
    MultiScaleQuantizer: _Quantizer,
}


def _optimized(module: nn.Module) -> nn.Module:
    return replace_modules(module, _REPLACED)
