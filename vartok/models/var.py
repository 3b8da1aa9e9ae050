"""VAR's convolutional autoencoder: pixels to the latent and back.

Attribute names are VAR's, so that its state dicts load unmapped.
Source: Tian et al. 2024, arXiv:2404.02905, after the VQ-f16 model of arXiv:2112.10752.
"""

from __future__ import annotations

from torch import Tensor, nn

from vartok.config import VarConfig
from vartok.models.layers import AttnBlock, Downsample2x, ResnetBlock, Upsample2x, group_norm


class Mid(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if `attend` is true.

    The encoder may set `downsample`, the decoder `upsample`; the one that is set runs after the blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, *, blocks: int, attend: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attend else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h, w]; h and w are halved by `downsample` or doubled by `upsample`."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Encoder(nn.Module):
    """Encoder: pixels to the latent before quant_conv."""

    def __init__(self, config: VarConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = [config.ch * multiple for multiple in (1, *config.ch_mult)]
        last = len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i in range(last + 1):
            level = Level(channels[i], channels[i + 1], blocks=config.num_res_blocks, attend=i == last)
            if i != last:
                level.downsample = Downsample2x(channels[i + 1])
            self.down.append(level)
        self.mid = Mid(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.activation = nn.SiLU(inplace=True)
        self.conv_out = nn.Conv2d(channels[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] in [-1, 1] -> [B, z, H/d, W/d], d = 2 ** (levels - 1)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.activation(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Decoder: the output of post_quant_conv to pixels."""

    def __init__(self, config: VarConfig, z_channels: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = [config.ch * multiple for multiple in config.ch_mult]
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(z_channels, channels[last], 3, padding=1)
        self.mid = Mid(channels[last])
        self.up = nn.ModuleList()  # up[0] has the pixels' resolution and runs last
        for i in range(last + 1):
            above = channels[min(i + 1, last)]
            level = Level(above, channels[i], blocks=config.num_res_blocks + 1, attend=i == last)
            if i != 0:
                level.upsample = Upsample2x(channels[i])
            self.up.append(level)
        self.norm_out = group_norm(channels[0])
        self.activation = nn.SiLU(inplace=True)
        self.conv_out = nn.Conv2d(channels[0], in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, z, h, w] -> [B, in_channels, d h, d w], not clamped."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.activation(self.norm_out(x)))
