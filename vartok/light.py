"""The shipped checkpoint's autoencoder: a linear transform of 16x16 patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import LIGHT_PATCH, TokenizerConfig


class Encoder(nn.Module):
    """Patches to their coefficients: one convolution whose stride is its kernel."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, config.z_channels, LIGHT_PATCH, stride=LIGHT_PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, z, H/16, W/16]."""
        return self.linear(x)


class Decoder(nn.Module):
    """Coefficients to patches, laid side by side."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.linear = nn.Conv2d(config.z_channels, 3 * LIGHT_PATCH**2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, z, h, w] -> [B, 3, 16 h, 16 w], not clamped."""
        return F.pixel_shuffle(self.linear(z), LIGHT_PATCH)
