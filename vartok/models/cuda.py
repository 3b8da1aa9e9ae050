"""The networks optimized for inference on a CUDA device.

`optimize_for_cuda` replaces the modules of a loaded model, which `layers`, `light` and `quantizer` define:

- The quantizer computes a scale in few launches (`CudaQuantizer`).
- Networks in bfloat16, float16 or TF32 are channels last, weights and maps: the layout of cuDNN's kernels for
  them.
- There, group norm and SiLU are one operation of three kernels (`triton_kernels`). A convolution leaves its
  bias to the group norm or to the addition of the residual after it, as torch's own addition of a bias
  reads and writes the map once more.
- There, nearest-neighbour upsampling and its 3x3 convolution are one convolution with 2x2 kernels: 16
  products for an input cell instead of 36. A downsampling convolution pads its input itself.

Networks in float32 keep torch's own operations and layout, and with them their tokens: cuDNN's float32
kernels are no faster with channels last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.errors import one_line, warn
from vartok.models import light
from vartok.models.cuda_graphs import GRAPHED_CELLS, GRAPHED_PIXELS, GraphedFunction
from vartok.models.cuda_quantizer import CudaQuantizer
from vartok.models.layers import AttnBlock, Downsample2x, ResnetBlock, Upsample2x, replace_modules
from vartok.models.vqvae import VQVAE

CHANNELS_LAST = torch.channels_last


def optimize_for_cuda(model: VQVAE, dtype: str, *, networks: bool = True) -> None:
    """Replace a model's modules by their CUDA versions, in place.

    Afterwards the quantizer is for inference only. So are networks, unless they are in float32, which are not
    replaced. Without `networks`, or where Triton's kernels do not work, they only get channels-last weights.

    Args:
        model: model on its device, with the networks in their final dtype.
        dtype: precision of the networks: "float32", "tf32", "bfloat16" or "float16".
        networks: replace the modules of encoder and decoder too.

    Warns:
        VartokWarning: Triton's kernels do not work here; once for each device and dtype.
    """
    model.quantize = CudaQuantizer(model.quantize)
    if dtype == "float32":
        return
    weight = model.quant_conv.weight
    networks = networks and kernels_work(weight.device, weight.dtype)
    for name in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
        part = getattr(model, name)
        part.to(memory_format=CHANNELS_LAST)
        if networks:
            setattr(model, name, _optimized(part))


def graphed_networks(model: VQVAE) -> tuple[GraphedFunction, GraphedFunction]:
    """Return `model.encode` and `model.decode`, which use CUDA graphs for small batches."""
    return GraphedFunction(model.encode, GRAPHED_PIXELS), GraphedFunction(model.decode, GRAPHED_CELLS)


def graphed_quantizer(model: VQVAE) -> tuple[GraphedFunction, GraphedFunction]:
    """Return the `encode` and `decode` of an optimized model's quantizer, which use CUDA graphs likewise."""
    assert isinstance(model.quantize, CudaQuantizer)
    encode, decode, keep = model.quantize.encode, model.quantize.decode, model.quantize.matrices
    return GraphedFunction(encode, GRAPHED_CELLS, keep), GraphedFunction(decode, GRAPHED_CELLS, keep)


@functools.cache
def kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `triton_kernels` give torch's values on a device, in a dtype.

    Warns:
        VartokWarning: they do not.
    """
    random = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 2, 40, 5, 7, generator=random, device="cpu").add_(3).to(device, dtype)
    norm = nn.GroupNorm(8, 40, eps=1e-6, device=device, dtype=dtype).requires_grad_(False)
    bias = residual[0, :, 0, 0]
    summed = x.float() + bias.float().view(-1, 1, 1)
    want = (F.silu(F.group_norm(summed, 8, eps=norm.eps)), summed + residual.float())
    try:
        kernels = _kernels()
        found = (kernels.group_norm(x, norm, silu=True, offset=bias), kernels.add_(x, bias, residual))
        for one, other in zip(found, want, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02)
    except Exception as error:  # triton's compiler raises what it likes, an assertion too
        reason = one_line(str(error).strip().partition("\n")[0])
        warn(f"Triton's kernels do not work here ({reason}): going on with torch's own, which are slower")
        return False
    return True


def _kernels() -> Any:
    """Return the module of Triton's kernels; importing it needs triton."""
    from vartok.models import triton_kernels

    return triton_kernels


class GroupNorm(nn.Module):
    """`nn.GroupNorm`, with SiLU after it unless `silu` is false.

    Args:
        norm: the module to replace; its weight and bias are used.
        silu: apply SiLU to the result.
        offset: [C], added before; the bias of the convolution that computed the input.
    """

    def __init__(self, norm: nn.GroupNorm, *, silu: bool = True, offset: Tensor | None = None) -> None:
        super().__init__()
        self._norm = norm
        self._silu = silu
        self._offset = offset

    def forward(self, x: Tensor, *, inplace: bool = False) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], channels last; `inplace` may overwrite `x`."""
        return _kernels().group_norm(x, self._norm, silu=self._silu, offset=self._offset, inplace=inplace)


class PointwiseConv2d(nn.Module):
    """A 1x1 convolution as a product of matrices, which adds the bias as it writes.

    Args:
        conv: the module to replace.
        bias: add its bias.
    """

    def __init__(self, conv: nn.Conv2d, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = conv.weight.detach().flatten(1)
        self.bias = _bias(conv) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W], channels last."""
        cells = x.contiguous(memory_format=CHANNELS_LAST).permute(0, 2, 3, 1)
        return F.linear(cells, self.weight, self.bias).permute(0, 3, 1, 2)


class _ResnetBlock(nn.Module):
    """A `layers.ResnetBlock` whose biases are added by group norm and with the residual."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(block.norm1), block.conv1
        self.norm2, self.conv2 = GroupNorm(block.norm2, offset=_bias(block.conv1)), block.conv2
        self.bias = _bias(block.conv2).float()
        self.nin_shortcut: nn.Module = block.nin_shortcut
        if isinstance(block.nin_shortcut, nn.Conv2d):
            self.nin_shortcut = PointwiseConv2d(block.nin_shortcut, bias=False)
            self.bias = self.bias + _bias(block.nin_shortcut).float()

    def forward(self, x: Tensor) -> Tensor:
        h = _without_bias(self.conv1, self.norm1(x))
        h = _without_bias(self.conv2, self.norm2(h, inplace=True))
        return _kernels().add_(h, self.bias, self.nin_shortcut(x))


class _AttnBlock(nn.Module):
    """A `layers.AttnBlock` in channels last."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        self.bias = _bias(block.proj_out)
        self.proj_out = PointwiseConv2d(block.proj_out, bias=False)
        self.block = block
        for name, part in (("norm", GroupNorm(block.norm, silu=False)), ("qkv", PointwiseConv2d(block.qkv))):
            setattr(block, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return _kernels().add_(self.proj_out(self.block.attend(x)), self.bias, x)


class _Upsample2x(nn.Module):
    """`layers.Upsample2x` as one convolution with 2x2 kernels, four for each output channel.

    The four outputs of a cell see 2x2 different input cells each: those above or here, and here or below.
    """

    def __init__(self, upsample: Upsample2x) -> None:
        super().__init__()
        weight = upsample.conv.weight.detach().float()
        for side in (2, 3):
            before, here, after = weight.unbind(side)
            first = torch.stack([before, here + after], side)
            second = torch.stack([before + here, after], side)
            weight = torch.cat([first, second])  # output channels: columns' parity, rows' parity, channel
        C = len(weight) // 4
        weight = weight.view(2, 2, C, C, 2, 2).transpose(0, 1).reshape(4 * C, C, 2, 2)
        self.weight = weight.to(upsample.conv.weight.dtype).contiguous(memory_format=CHANNELS_LAST)
        self.bias = _bias(upsample.conv)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        y = F.conv2d(x.contiguous(memory_format=CHANNELS_LAST), self.weight, padding=1).permute(0, 2, 3, 1)
        # y[b, i, j] has what output cells 2i - 1 and 2i see, in rows, and 2j - 1 and 2j, in columns.
        y = y.contiguous()
        image, row, column, channel = y.stride()
        strides = (image, row, row + 2 * C, column, column + C, channel)
        out = torch.empty(B, H, 2, W, 2, C, dtype=x.dtype, device=x.device)
        torch.add(y.as_strided(out.shape, strides), self.bias, out=out)
        return out.view(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class _Downsample2x(nn.Module):
    """`layers.Downsample2x` without a padded copy: pads all sides, and drops the first row and column."""

    def __init__(self, downsample: Downsample2x) -> None:
        super().__init__()
        self.weight = downsample.conv.weight.detach()
        self.bias = _bias(downsample.conv).view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=CHANNELS_LAST)
        y = F.conv2d(x, self.weight, stride=2, padding=2)[:, :, 1:, 1:]
        return torch.add(y, self.bias).contiguous(memory_format=CHANNELS_LAST)


class _LightBlock(nn.Module):
    """A `light.Block` whose biases are added with the ReLU and with the residual."""

    def __init__(self, block: light.Block) -> None:
        super().__init__()
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.bias1, self.bias2 = _bias(block.conv1), _bias(block.conv2)

    def forward(self, h: Tensor) -> Tensor:
        h = h.contiguous(memory_format=CHANNELS_LAST)
        y = _kernels().add_(_without_bias(self.conv1, F.relu(h)), self.bias1, relu=True)
        return _kernels().add_(_without_bias(self.conv2, y), self.bias2, h)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # these networks' convolutions have one
    return conv.bias.detach()


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


_REPLACED: dict[type, Callable[[Any], nn.Module]] = {
    nn.GroupNorm: GroupNorm,  # outside of blocks, SiLU follows it
    nn.SiLU: lambda _: nn.Identity(),
    ResnetBlock: _ResnetBlock,
    AttnBlock: _AttnBlock,
    Upsample2x: _Upsample2x,
    Downsample2x: _Downsample2x,
    light.Block: _LightBlock,
}


def _optimized(module: nn.Module) -> nn.Module:
    return replace_modules(module, _REPLACED)
