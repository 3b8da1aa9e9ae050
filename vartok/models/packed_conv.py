"""Convolutions for CPU inference: by oneDNN with weights packed once, or by torch's public operations.

oneDNN packs weights into the memory layout of its fastest kernel. torch offers this only as operations of
`torch.ops.mkldnn`, which its compiler emits. They are not public, so `can_pack` tests them before use.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ops: Any = torch.ops.mkldnn


class PackedConv2d(nn.Module):
    """`nn.Conv2d` with weights packed by oneDNN, and with a fused ReLU or addition.

    Weights are packed for the shape of the first input, and packed again when the shape changes: with
    weights packed for another shape, the convolution can take 30 times as long. Only the last packing is
    kept.

    Args:
        conv: the module to replace; only its present weights are used.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach()
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self._weight: tuple[torch.Size | None, Tensor] = (None, weight)  # input shape of the packing, weights

    def forward(self, x: Tensor, *, into: Tensor | None = None, relu: bool = False) -> Tensor:
        """Convolve [B, in, H, W] to [B, out, H', W'], channels last.

        Args:
            x: [B, in, H, W].
            into: [B, out, H', W'], to which the output is added, in place if it is channels last.
            relu: apply a ReLU to the output; not together with `into`.

        Returns:
            The output, or its sum with `into`.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        weight = self._weight_for(x)
        if into is None:
            after = "relu" if relu else "none"
            return _ops._convolution_pointwise(x, weight, self.bias, *self._geometry, after, [], "")
        into = into.contiguous(memory_format=torch.channels_last)
        how: Any = (weight, self.bias, *self._geometry, "add", None, None, [], None)
        return _ops._convolution_pointwise_.binary(into, x, *how)

    @property
    def weight(self) -> Tensor:
        """The weights; an opaque oneDNN tensor once they are packed."""
        return self._weight[1]

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights can be neither copied nor pickled.
        return {**self.__dict__, "_weight": (None, _unpacked(self._weight[1]))}

    def _weight_for(self, x: Tensor) -> Tensor:
        shape, weight = self._weight  # read once: another thread may replace it
        if not x.numel():
            return _unpacked(weight)
        if shape != x.shape:
            weight = _ops._reorder_convolution_weight(_unpacked(weight), *self._geometry, list(x.shape))
            self._weight = x.shape, weight
        return weight


class PublicConv2d(nn.Module):
    """`PackedConv2d` in torch's public operations, for processors without oneDNN's packed convolutions.

    Args:
        conv: the module to replace; only its present weights are used.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, *, into: Tensor | None = None, relu: bool = False) -> Tensor:
        """Convolve [B, in, H, W] to [B, out, H', W'], channels last.

        Args:
            x: [B, in, H, W].
            into: [B, out, H', W'], to which the output is added, in place if it is channels last.
            relu: apply a ReLU to the output; not together with `into`.

        Returns:
            The output, or its sum with `into`.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        if self.weight.shape[2:] == (1, 1) and self._geometry[:2] == ((1, 1), (0, 0)):
            # F.conv2d chooses its 1x1 kernel, and with it the rounding, by the number of threads.
            y = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        else:
            y = F.conv2d(x, self.weight, self.bias, *self._geometry)
        if relu:
            y = y.relu_()
        return y if into is None else into.contiguous(memory_format=torch.channels_last).add_(y)


def _unpacked(weight: Tensor) -> Tensor:
    if not weight.is_mkldnn:
        return weight
    return weight.to_dense().contiguous(memory_format=torch.channels_last)


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether `PackedConv2d` works on this processor for a dtype.

    The operations of `torch.ops.mkldnn` crash on processors without AVX2. So torch and oneDNN must both be
    free to use AVX2 (AVX-512 for bfloat16), and test convolutions must give `nn.Conv2d`'s values.
    """
    backend = torch.backends.mkldnn
    if not backend.is_available() or not backend.enabled:
        return False
    wanted = ("AVX512", "AVX10") if dtype == torch.bfloat16 else ("AVX2", "AVX512", "AVX10")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if not torch.backends.cpu.get_cpu_capability().upper().startswith(wanted):
        return False
    return limit.upper().startswith((*wanted, "ALL", "DEFAULT")) and _packed_conv_is_right(dtype)


@functools.cache
def _packed_conv_is_right(dtype: torch.dtype) -> bool:
    """Return whether `PackedConv2d` gives `nn.Conv2d`'s values for convolutions like the models'."""
    if dtype == torch.bfloat16:
        supported = getattr(_ops, "_is_mkldnn_bf16_supported", bool)()
    else:
        supported = dtype == torch.float32
    # Where oneDNN uses Arm's library for its kernels, torch's compiler avoids these operations too.
    if not supported or getattr(_ops, "_is_mkldnn_acl_supported", bool)():
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    try:
        # (in channels, out channels, kernel, stride, padding)
        for form in (
            (8, 8, 3, 1, 1),
            (48, 24, 1, 1, 0),
            (5, 12, 3, 2, 0),
            (3, 32, 16, 16, 0),
            (8, 16, 2, 2, 0),
        ):
            conv, x = _probe(*form, dtype)
            plain = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
            other = torch.ones_like(plain)
            packed = PackedConv2d(conv)
            found = [packed(x), packed(x, relu=True), packed(x, into=other.clone())]
            wanted = [plain, plain.relu(), plain + other]
            for one, another in zip(found, wanted, strict=True):
                if not torch.allclose(one.float(), another.float(), rtol=tolerance, atol=tolerance):
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def _probe(
    channels: int, out: int, kernel: int, stride: int, padding: int, dtype: torch.dtype
) -> tuple[nn.Conv2d, Tensor]:
    """Return a test convolution and its input, with deterministic values."""

    def waves(*shape: int) -> Tensor:
        values = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu").mul_(1.7).sin_()
        return values.view(shape).to(dtype)

    with torch.random.fork_rng(devices=[]):  # nn.Conv2d draws random weights, replaced below
        conv = nn.Conv2d(channels, out, kernel, stride, padding, device="cpu", dtype=dtype)
    conv.requires_grad_(False)
    conv.weight.copy_(waves(*conv.weight.shape) / math.sqrt(channels * kernel**2))
    assert conv.bias is not None
    conv.bias.copy_(waves(out))
    return conv, waves(1, channels, 32, 32)
