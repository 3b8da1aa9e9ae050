"""The forward pass of training, with a straight-through estimator; the losses; the parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import LightConfig, TokenizerConfig
from vartok.metrics import spectral_peaks
from vartok.models.light import CELL
from vartok.models.quantizer import ScaleStep
from vartok.models.vqvae import VQVAE
from vartok.schedule import Schedule
from vartok.train.frozen import FrozenTokens
from vartok.train.settings import CONTRAST_WINDOW, LossSettings

FAINT_CONTRAST = 1e-3
"""Variance added before the logarithm, so that far less counts as no contrast: that of 4 levels of 255."""


class TrainingOutput(NamedTuple):
    """The outputs of `TrainingModel`.

    Attributes:
        reconstruction: [B, C, H, W] float32, not clamped.
        commitment: scalar, mean squared distance of latents from f_hat, mean over scales. Its gradient goes
            to the encoder. In encoder warm-up the latents are the anchor's, and there is no gradient.
        final_commitment: scalar, the commitment loss of the last scale alone.
        codebook: scalar, equal to `commitment`, but its gradient goes to phis and codebook.
        latent_anchor: scalar, mean squared distance of the encoder's latents from the anchor's latents.
        scales: K steps of the quantizer, coarse to fine; empty if tokens are kept.
        maps: K token maps, map k [B, h_k, w_k] int64.
    """

    reconstruction: Tensor
    commitment: Tensor
    final_commitment: Tensor
    codebook: Tensor
    latent_anchor: Tensor
    scales: list[ScaleStep]
    maps: list[Tensor]


class TrainingModel(nn.Module):
    """A VQ-VAE whose forward pass also computes the losses on latents.

    Args:
        model: the network that is trained.
        anchor: frozen network [B, C, H, W] -> [B, z, h, w]. The loss `latent_anchor` pulls the encoder's
            latents to the anchor's.
        schedule: (h, w) of every scale.

    Attributes:
        frozen: gives f_hat if tokens are kept, and the losses on latents are then 0; else None.
    """

    def __init__(self, model: VQVAE, anchor: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.model = model
        self.anchor = anchor.requires_grad_(False)
        self.schedule = schedule
        self.frozen: FrozenTokens | None = None

    def forward(self, images: Tensor, encoder_warmup: bool) -> TrainingOutput:
        """Encode, quantize and decode, with a straight-through estimator.

        Phis get gradients from the codebook loss, and from the reconstruction through f_hat; so does a
        codebook that is trained by gradient.

        Args:
            images: [B, C, H, W] float32 in [-1, 1].
            encoder_warmup: quantize the anchor's latents instead of the encoder's.

        Source: Tian et al. 2024, arXiv:2404.02905, section 3.2; straight-through estimator:
        Bengio et al. 2013, arXiv:1308.3432.
        """
        model = self.model
        if self.frozen is not None:
            f_hat, maps = self.frozen(images)
            reconstruction = model.decoder(model.post_quant_conv(f_hat)).float()
            zero = f_hat.new_zeros(())
            return TrainingOutput(reconstruction, zero, zero, zero, zero, [], maps)
        latent = model.quant_conv(model.encoder(images)).float()
        anchor = self.anchor(images).float()
        with torch.autocast(images.device.type, enabled=False):
            f = anchor if encoder_warmup else latent
            scales = list(model.quantize.scale_steps(self.schedule, latent=f.detach()))
            commitments = [F.mse_loss(f, scale.f_hat.detach()) for scale in scales]
            codebook = torch.stack([F.mse_loss(scale.f_hat, f.detach()) for scale in scales]).mean()
            f_hat = scales[-1].f_hat + (f - f.detach())
            latent_anchor = F.mse_loss(latent, anchor)
        reconstruction = model.decoder(model.post_quant_conv(f_hat)).float()
        commitment = torch.stack(commitments).mean()
        maps = [scale.indices for scale in scales]
        return TrainingOutput(
            reconstruction, commitment, commitments[-1], codebook, latent_anchor, scales, maps
        )


def latent_loss(out: TrainingOutput, weights: LossSettings) -> Tensor:
    """Return the weighted sum of the losses on latents, plus the codebook loss with weight 1: a scalar."""
    return (
        weights.commitment * out.commitment
        + weights.final_commitment * out.final_commitment
        + weights.latent_anchor * out.latent_anchor
        + out.codebook
    )


def reconstruction_loss(
    reconstruction: Tensor,
    images: Tensor,
    weights: LossSettings,
    cells: Sequence[int],
    lpips: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the losses on pixels, and the MSE of every picture.

    Args:
        reconstruction: [B, C, H, W] float32 in about [-1, 1], as decoded, not clamped.
        images: [B, C, H, W] float32 in [-1, 1], the originals.
        weights: weights of the losses.
        cells: sides of the cells whose borders a decoder may draw, in pixels, see `visible_cells`; the first
            is that of latent cells.
        lpips: network that maps two batches to their LPIPS distances; None: no such loss.

    Returns:
        The loss, a scalar; and the mean squared error of every picture, [B], without gradient.
    """
    error = reconstruction - images
    squared = error.square().mean((1, 2, 3))
    loss = torch.zeros((), device=images.device)
    if weights.mse:
        loss = loss + weights.mse * squared.mean()
    if weights.log_mse:
        loss = loss + weights.log_mse * torch.log(squared + 1e-5).mean()  # 1e-5: hardly falls above 56 dB
    if weights.l1:
        loss = loss + weights.l1 * error.abs().mean()
    if weights.gradient:
        loss = loss + weights.gradient * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    if weights.blockiness:
        for cell in cells:
            excess = _blockiness(reconstruction, cell) - _blockiness(images, cell)
            loss = loss + weights.blockiness * excess.square()
    if weights.periodicity:
        excess = spectral_peaks(reconstruction, cells[0]) - spectral_peaks(images, cells[0])
        loss = loss + weights.periodicity * excess.square().mean()
    if weights.local_contrast:
        pairs = zip(_log_contrasts(reconstruction), _log_contrasts(images), strict=True)
        distance = torch.stack([F.mse_loss(decoded, original) for decoded, original in pairs]).mean()
        loss = loss + weights.local_contrast * distance
    if lpips is not None:
        rgb = [batch.expand(-1, 3, -1, -1) for batch in (reconstruction, images)]  # a grey level three times
        loss = loss + weights.lpips * lpips(*rgb).mean()
    return loss, squared.detach()


def visible_cells(config: TokenizerConfig) -> tuple[int, ...]:
    """Return the sides of the cells whose borders a decoder may draw, in pixels.

    The first are the latent cells; then come those of the finest layer of a `light` decoder with a network.
    """
    light = isinstance(config.autoencoder, LightConfig) and bool(config.autoencoder.widths)
    return (config.downsample, CELL) if light else (config.downsample,)


def _log_contrasts(images: Tensor) -> list[Tensor]:
    """Return the logarithms of local contrast at full and at half resolution, each [B, C, rows, columns].

    Local contrast is the squared difference of a pixel from the mean of the 5x5 pixels around it, in each
    channel, averaged over windows that overlap by half. Their side is `CONTRAST_WINDOW` pixels of the images.

    Args:
        images: [B, C, H, W] in about [-1, 1], with sides of `CONTRAST_WINDOW` or more.
    """
    found = []
    for reduced, window in ((images, CONTRAST_WINDOW), (F.avg_pool2d(images, 2), CONTRAST_WINDOW // 2)):
        detail = reduced - F.avg_pool2d(reduced, 5, 1, padding=2, count_include_pad=False)
        contrast = F.avg_pool2d(detail.square(), window, window // 2)
        found.append(torch.log(contrast + FAINT_CONTRAST))
    return found


def _blockiness(images: Tensor, cell: int) -> Tensor:
    """Return the blockiness of a batch [B, C, H, W], a differentiable scalar.

    Blockiness is the mean step across cell borders divided by the mean step inside cells, as in
    `vartok.metrics.blockiness`; a step is the absolute difference of two neighbouring pixels. It
    is 1 if there are no borders or no cells of several pixels.
    """
    steps = [images.diff(dim=2).abs(), images.diff(dim=3).abs().transpose(2, 3)]
    borders = [step[:, :, cell - 1 :: cell] for step in steps]
    count = sum(border.numel() for border in borders)
    inner = sum(step.numel() for step in steps) - count
    if not count or not inner:
        return images.new_ones(())
    across = torch.stack([border.sum() for border in borders]).sum()
    others = torch.stack([step.sum() for step in steps]).sum() - across
    return across / count / (others / inner).clamp(min=1e-3)


def parameter_groups(
    model: VQVAE, lr: float, encoder_lr: float, *, train_codebook: bool
) -> list[dict[str, Any]]:
    """Return the two parameter groups of the optimizer: decoder and phis, then encoder and codebook.

    Frozen parameters, see `freeze_tokens`, are in neither group.

    Args:
        model: the network that is trained.
        lr: learning rate of decoder and phis.
        encoder_lr: learning rate of encoder and codebook.
        train_codebook: train the codebook by gradient. If False, it is in neither group, and its
            `requires_grad` is set to False.
    """
    codebook = model.quantize.embedding.weight
    codebook.requires_grad_(train_codebook)
    encoder = [*model.encoder.parameters(), *model.quant_conv.parameters(), *([codebook] * train_codebook)]
    excluded = {id(parameter) for parameter in (*encoder, codebook)}
    decoder = [parameter for parameter in model.parameters() if id(parameter) not in excluded]
    return [
        {"params": [one for one in part if one.requires_grad], "lr": rate, "base_lr": rate}
        for part, rate in ((decoder, lr), (encoder, encoder_lr))
    ]
