"""VAR's multi-scale VQ-VAE: encoder, quantizer and decoder."""

from __future__ import annotations

from torch import Tensor, nn

from vartok.config import LightConfig, TokenizerConfig
from vartok.models import light, var
from vartok.models.quantizer import MultiScaleQuantizer


class VQVAE(nn.Module):
    """The whole model, with VAR's names in its state dict.

    The quantizer is float32. Encoder, quant_conv, post_quant_conv and decoder may have a smaller dtype.

    Source: Tian et al. 2024, arXiv:2404.02905.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        z, channels = config.z_channels, config.in_channels
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(config.autoencoder, LightConfig):
            self.encoder = light.Encoder(config.autoencoder, z, channels)
            self.decoder = light.Decoder(config.autoencoder, z, channels)
        else:
            self.encoder = var.Encoder(config.autoencoder, z, channels)
            self.decoder = var.Decoder(config.autoencoder, z, channels)
        self.quant_conv = nn.Conv2d(z, z, 3, padding=1)
        self.quantize = MultiScaleQuantizer(config)
        self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images to the latent: [B, in_channels, H, W] in [-1, 1] -> [B, C, h, w] float32."""
        return self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype))).float()

    def decode(self, f_hat: Tensor) -> Tensor:
        """Decode f_hat to images: [B, C, h, w] -> [B, in_channels, H, W] float32, clamped to [-1, 1]."""
        z = self.post_quant_conv(f_hat.to(self.post_quant_conv.weight.dtype))
        return self.decoder(z).float().clamp(-1, 1)
