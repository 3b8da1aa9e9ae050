"""The model as it runs on a CPU: the same sums of products, arranged so that less memory moves.

The modules of `autoencoder`, `light` and `quantizer` say what is computed: they are trained, they run on
other devices, and tests compare these with them. `arrange` replaces a model's parts once, after loading:

- Maps lie in memory channels last, as oneDNN's convolutions want them: none is reordered on the way.
- Weights are packed for these convolutions once, for the shape of map that comes first, and not anew for
  every picture.
- A block's last convolution adds to the map that the shortcut carries, in place, instead of writing a map
  of its own that is then added; likewise a ReLU is done as its convolution writes.
- Upsampling and its convolution are one transposed convolution: a cell repeated 2x2 meets sums of weights,
  made once, 16 products instead of 36.
- Group norm sums the columns of a map apart, since torch's own sums over such maps are too coarse.
- In the quantizer, upsampling is a product with a matrix that is kept for every pair of grids, and phi one
  convolution, its share of the identity added to the weights.

Every output is the same up to rounding, in the same precision: products are added in another order, as they
are on any other processor, and some weights before they are multiplied. SiLU, attention, pooling and the
search of the codebook are untouched.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models import light
from vartok.models.layers import AttnBlock, ResnetBlock, Upsample2x
from vartok.models.quantizer import MultiScaleQuantizer, Phi
from vartok.models.vqvae import VQVAE
from vartok.schedule import Grid

MATRIX = 1 << 18
"""Weights of the largest matrix that upsamples, 1 MiB, so that little is kept; above, torch interpolates."""

KEPT = 31 << 20
"""Bytes of a block that is taken and freed at once: glibc keeps freed memory up to the size of the largest
block that it has seen freed, 32 MiB at most, instead of asking the system for zeroed pages with every map."""

COLUMNS = 32
"""Sums that a map's statistics are taken of: more are exacter, and slower where they leave the cache."""

_ops: Any = torch.ops.mkldnn  # what torch's own compiler emits for a CPU; not part of torch's public names


def optimize_for_cpu(model: VQVAE) -> bool:
    """Replace a model's parts by those of this module, where this torch and processor have what they need.

    Args:
        model: on a CPU, its networks in the dtype that they shall run in. It can only infer
            afterwards: it has no state dict, and blocks overwrite the map that they are given.

    Returns:
        Whether that was done, of the quantizer at least.
    """
    if not torch.backends.mkldnn.enabled or not _can_pack(torch.float32):
        return False
    networks = _can_pack(model.quant_conv.weight.dtype)
    torch.empty(KEPT, dtype=torch.uint8, device="cpu")  # freed at once, and never touched
    for name, part in model.named_children():
        if networks or part is model.quantize:  # which computes in float32 always
            setattr(model, name, _optimized(part))
    return True


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have oneDNN's convolutions for a dtype, as `Conv` calls them."""
    if dtype == torch.bfloat16:
        wanted = getattr(_ops, "_is_mkldnn_bf16_supported", bool)()
    else:
        wanted = dtype == torch.float32
    # Where Arm's library stands in for oneDNN's own kernels, torch's compiler avoids these too.
    arm = getattr(_ops, "_is_mkldnn_acl_supported", bool)()
    if not wanted or arm or not torch.backends.mkldnn.is_available():
        return False
    try:
        conv = Conv(nn.Conv2d(8, 8, 1, device="cpu", dtype=dtype).requires_grad_(False))
        x = torch.zeros(1, 8, 4, 4, device="cpu", dtype=dtype)
        conv(conv(x, relu=True), into=x)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


class Conv(nn.Module):
    """A convolution with packed weights, which may add to a map or clip what it writes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self._packed: tuple[torch.Size, Tensor] | None = None

    def forward(self, x: Tensor, *, into: Tensor | None = None, relu: bool = False) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W'], channels last; `into`, overwritten, plus that if given."""
        x = x.contiguous(memory_format=torch.channels_last)
        weight = self._weight_for(x)
        if into is None:
            after = "relu" if relu else "none"
            return _ops._convolution_pointwise(x, weight, self.bias, *self._how, after, [], "")
        into = into.contiguous(memory_format=torch.channels_last)
        what: Any = (weight, self.bias, *self._how, "add", None, None, [], None)
        return _ops._convolution_pointwise_.binary(into, x, *what)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # which can be neither copied nor pickled

    def _weight_for(self, x: Tensor) -> Tensor:
        """Packed for the first shape that is seen, which with most users stays the only one.

        Maps of another shape may want another packing, and a wrong one costs up to 30 times the work.
        """
        if self._packed is None and x.numel():
            packed = _ops._reorder_convolution_weight(self.weight, *self._how, list(x.shape))
            self._packed = x.shape, packed
        shape, weight = self._packed or (None, self.weight)
        return weight if shape == x.shape else self.weight


class _GroupNorm(nn.Module):
    """`nn.GroupNorm`, whose own sums over maps that lie channels last are too coarse in float32.

    There torch adds up a channel's values one after the other: of 512x512 cells, the result is off by 1e-3
    where the mean is five times the deviation. Here columns of the map are summed apart.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], channels last; `out` may be `x` itself."""
        if x.dtype != torch.float32:
            return self._norm(x)
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x) if out is None else out
        for picture, normalized in zip(x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True):
            scale, shift = self._affine(picture)
            torch.addcmul(shift, picture, scale, out=normalized)
        return out

    def _affine(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """What normalizes [H, W, C]: a factor and a summand of every channel, [C]."""
        H, W, C = picture.shape
        columns = math.gcd(W, COLUMNS)
        strips = picture.view(1, H * W // columns, 1, columns * C).permute(0, 3, 1, 2)
        statistics = torch.batch_norm_update_stats(strips, None, None, 0)
        mean, variance = (part.view(columns, self._norm.num_groups, -1) for part in statistics)
        center = mean.mean((0, 2), keepdim=True)
        spread = (variance + (mean - center).square_()).mean((0, 2), keepdim=True)
        scale = self._norm.weight.view(1, self._norm.num_groups, -1) * (spread + self._norm.eps).rsqrt_()
        return scale.flatten(), self._norm.bias - (center * scale).flatten()


class _ResnetBlock(nn.Module):
    """`layers.ResnetBlock`."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = _GroupNorm(block.norm1), _GroupNorm(block.norm2)
        self.conv1, self.conv2 = Conv(block.conv1), Conv(block.conv2)
        self.nin_shortcut = _optimized(block.nin_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = F.silu(self.norm2(h, out=h), inplace=True)
        return self.conv2(h, into=self.nin_shortcut(x))


class _AttnBlock(nn.Module):
    """`layers.AttnBlock`."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        self.block = block
        for name, part in block.named_children():
            setattr(block, name, _optimized(part))

    def forward(self, x: Tensor) -> Tensor:
        return self.block.proj_out(self.block.attend(x), into=x)


class _Upsample2x(nn.Module):
    """`layers.Upsample2x`: all that a cell's 2x2 copies add to, 4x4 cells, from the cell itself."""

    def __init__(self, upsample: Upsample2x) -> None:
        super().__init__()
        conv = upsample.conv
        weight = conv.weight.detach().float()
        for side in (2, 3):
            before, here, after = weight.unbind(side)
            weight = torch.stack([after, here + after, before + here, before], side)
        weight = weight.transpose(0, 1).to(conv.weight.dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


class _Block(nn.Module):
    """`light.Block`."""

    def __init__(self, block: light.Block) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(block.conv1), Conv(block.conv2)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv2(self.conv1(F.relu(h), relu=True), into=h)


class _Quantizer(MultiScaleQuantizer):
    """`quantizer.MultiScaleQuantizer`."""

    def __init__(self, quantizer: MultiScaleQuantizer) -> None:
        nn.Module.__init__(self)
        self.using_znorm = quantizer.using_znorm
        self.embedding = quantizer.embedding
        self.phis = [Conv(_folded(phi)) for phi in quantizer.phis if isinstance(phi, Phi)]
        self.quant_resi = nn.ModuleList(self.phis)

    def upsample(self, h: Tensor, grid: Grid) -> Tensor:
        B, C, *own = h.shape
        if own[0] * own[1] * grid[0] * grid[1] > MATRIX:
            return super().upsample(h, grid)
        cells = h.permute(0, 2, 3, 1).reshape(B, own[0] * own[1], C)
        return (_upsampling((own[0], own[1]), grid) @ cells).view(B, *grid, C).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _upsampling(grid: Grid, finer: Grid) -> Tensor:
    """[cells of `finer`, cells of `grid`]: what every cell of a map weighs in those it is upsampled to."""
    cells = grid[0] * grid[1]
    alone = torch.eye(cells, dtype=torch.float32, device="cpu").view(1, cells, *grid)
    return F.interpolate(alone, finer, mode="bicubic").view(cells, -1).T.contiguous()


def _folded(phi: Phi) -> Phi:
    """A convolution that alone does (1 - r) h + r conv(h)."""
    folded = copy.deepcopy(phi).requires_grad_(False)
    folded.weight.mul_(phi.ratio)[:, :, 1, 1].diagonal().add_(1 - phi.ratio)
    if folded.bias is not None:
        folded.bias.mul_(phi.ratio)
    return folded


_REPLACED: dict[type, Callable[[Any], nn.Module]] = {
    nn.Conv2d: Conv,
    nn.GroupNorm: _GroupNorm,
    ResnetBlock: _ResnetBlock,
    AttnBlock: _AttnBlock,
    Upsample2x: _Upsample2x,
    light.Block: _Block,
    MultiScaleQuantizer: _Quantizer,
}


def _optimized(module: nn.Module) -> nn.Module:
    replacement = _REPLACED.get(type(module))
    if replacement is not None:
        return replacement(module)
    for name, child in module.named_children():
        setattr(module, name, _optimized(child))
    return module
