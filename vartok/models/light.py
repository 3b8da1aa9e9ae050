"""The shipped checkpoint's autoencoder: a linear transform of 16x16 patches plus a residual network.

The linear transform alone (principal component analysis) reaches the PSNR of much larger networks with a
thousandth of their operations, but it treats every patch by itself, which leaves visible patch borders. The
residual networks use neighbouring patches. Their last layers are initialised with zeros, so that training
starts from the linear transform. They have no normalization layers, which would remove brightness and
contrast.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import LightConfig

CELL = 4
"""Side of a cell of the networks' finest feature maps, in pixels; no layer runs at full resolution."""


class Block(nn.Module):
    """Pre-activation residual block: h + conv(relu(conv(relu(h)))); initialised as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return h + self.conv2(F.relu(self.conv1(F.relu(h))))


class EncoderNet(nn.Module):
    """Residual network of the encoder, added to the linear transform; its output is zero until trained."""

    def __init__(self, config: LightConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        quarter, eighth, sixteenth = config.widths
        blocks = [
            [Block(width) for _ in range(n)] for width, n in zip(config.widths, config.depths, strict=True)
        ]
        self.stem = nn.Conv2d(in_channels * CELL**2, quarter, 3, padding=1)
        self.quarter = nn.Sequential(*blocks[0])
        self.down1 = nn.Conv2d(quarter, eighth, 2, stride=2)
        self.eighth = nn.Sequential(*blocks[1])
        self.down2 = nn.Conv2d(eighth, sixteenth, 2, stride=2)
        self.sixteenth = nn.Sequential(*blocks[2])
        self.out = _zeroed(nn.Conv2d(sixteenth, z_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, z, H/16, W/16]."""
        h = self.quarter(self.stem(_cells(x)))
        h = self.eighth(self.down1(h))
        h = self.sixteenth(self.down2(h))
        return self.out(F.relu(h))


class DecoderNet(nn.Module):
    """Residual network of the decoder, added to the linear transform; its output is zero until trained."""

    def __init__(self, config: LightConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        quarter, eighth, sixteenth = config.widths
        blocks = [
            [Block(width) for _ in range(n + 1)]
            for width, n in zip(config.widths, config.depths, strict=True)
        ]
        self.stem = nn.Conv2d(z_channels, sixteenth, 3, padding=1)
        self.sixteenth = nn.Sequential(*blocks[2])
        self.up1 = nn.Conv2d(sixteenth, 4 * eighth, 1)
        self.eighth = nn.Sequential(*blocks[1])
        self.up2 = nn.Conv2d(eighth, 4 * quarter, 1)
        self.look = nn.Conv2d(in_channels * CELL**2, quarter, 1)
        self.quarter = nn.Sequential(*blocks[0])
        self.out = _zeroed(nn.Conv2d(quarter, in_channels * CELL**2, 3, padding=1))

    def forward(self, z: Tensor, blocky: Tensor) -> Tensor:
        """Compute the residual image.

        Args:
            z: [B, z, h, w].
            blocky: [B, in_channels, 16 h, 16 w], the linear transform's image of `z`.

        Returns:
            [B, in_channels, 16 h, 16 w].
        """
        h = self.sixteenth(self.stem(z))
        h = self.eighth(F.pixel_shuffle(self.up1(h), 2))
        h = F.pixel_shuffle(self.up2(h), 2) + self.look(_cells(blocky))
        return F.pixel_shuffle(self.out(F.relu(self.quarter(h))), CELL)


class Encoder(nn.Module):
    """Linear transform of patches (a convolution with stride = kernel size), plus the residual network."""

    def __init__(self, config: LightConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_channels, z_channels, config.patch, stride=config.patch)
        self.net = EncoderNet(config, z_channels, in_channels) if config.widths else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] in [-1, 1] -> [B, z, H/16, W/16]."""
        f = self.linear(x)
        return f if self.net is None else f + self.net(x)


class Decoder(nn.Module):
    """Linear transform of coefficients to patches, plus the residual network."""

    def __init__(self, config: LightConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.patch = config.patch
        self.linear = nn.Conv2d(z_channels, in_channels * config.patch**2, 1)
        self.net = DecoderNet(config, z_channels, in_channels) if config.widths else None

    def forward(self, z: Tensor) -> Tensor:
        """[B, z, h, w] -> [B, in_channels, 16 h, 16 w], not clamped."""
        x = F.pixel_shuffle(self.linear(z), self.patch)
        return x if self.net is None else x + self.net(z, x)


def _cells(x: Tensor) -> Tensor:
    """Apply pixel_unshuffle, also to empty batches: [B, C, H, W] -> [B, 16 C, H/4, W/4]."""
    B, C, H, W = x.shape
    cells = x.reshape(B, C, H // CELL, CELL, W // CELL, CELL).permute(0, 1, 3, 5, 2, 4)
    return cells.reshape(B, C * CELL**2, H // CELL, W // CELL)


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
