"""The building blocks of VAR's autoencoder, under VAR's attribute names.

Source: CompVis latent-diffusion (arXiv:2112.10752), as changed for VAR (arXiv:2404.02905).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return VAR's group normalization: 32 groups, eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Residual block: two 3x3 convolutions, each after group norm and SiLU, plus a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention over all cells, with one head and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x + self.proj_out(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """Compute self-attention without output projection and residual: [B, C, H, W] -> [B, C, H, W]."""
        B, C, H, W = x.shape
        # [B, 3C, H, W] -> three times [B, 1 head, H*W, C]
        q, k, v = self.qkv(self.norm(x)).view(B, 3, 1, C, H * W).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)  # fused: no [H*W, H*W] matrix in memory
        return h.transpose(-1, -2).reshape(B, C, H, W)


class Upsample2x(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample2x(nn.Module):
    """3x3 convolution of stride 2, padded by one at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def replace_modules(module: nn.Module, replacements: Mapping[type, Callable[[Any], nn.Module]]) -> nn.Module:
    """Replace modules by others that compute the same; the children of a replaced module are left to it.

    Args:
        module: changed in place, unless it is replaced itself.
        replacements: for each type of module, a function that returns a module's replacement.

    Returns:
        The module, or its replacement.
    """
    replacement = replacements.get(type(module))
    if replacement is not None:
        return replacement(module)
    for name, child in module.named_children():
        setattr(module, name, replace_modules(child, replacements))
    return module
