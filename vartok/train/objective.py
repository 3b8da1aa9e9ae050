"""What is computed of a batch in training: the model's forward with gradients, and its losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models.quantizer import ScaleStep
from vartok.models.vqvae import VQVAE
from vartok.schedule import Schedule
from vartok.train.settings import LossSettings


class Forward(NamedTuple):
    """What a training forward gives.

    Attributes:
        picture: [B, 3, H, W] float32, not clamped.
        commitment: scalar, mean over scales of the squared distance of latents from what quantizes them.
        last_commitment: scalar, the same of the last scale alone.
        codebook: scalar, `commitment` with the gradient going the other way, to codebook and phis.
        anchor: scalar, mean squared distance of latents from what they are held to.
        scales: of every scale, coarse to fine.
    """

    picture: Tensor
    commitment: Tensor
    last_commitment: Tensor
    codebook: Tensor
    anchor: Tensor
    scales: list[ScaleStep]


class TrainingModel(nn.Module):
    """The model in training.

    Args:
        model: what is trained.
        target: [B, 3, H, W] -> [B, z, h, w], what its latents are held to; never trained.
        schedule: (h, w) of every scale.
    """

    def __init__(self, model: VQVAE, target: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.model = model
        self.target = target.requires_grad_(False)
        self.schedule = schedule

    def forward(self, images: Tensor, taught: bool) -> Forward:
        """Encode, quantize, decode.

        Gradients pass the quantizer as if it were not there, and reach codebook and phis beside.

        Args:
            images: [B, 3, H, W] float32 in [-1, 1].
            taught: quantize the target's latents instead of the encoder's.

        Source: Tian et al. 2024, arXiv:2404.02905, section 3.2; the straight-through gradient:
        Bengio et al. 2013, arXiv:1308.3432.
        """
        model = self.model
        latent = model.quant_conv(model.encoder(images)).float()
        wanted = self.target(images).float()
        with torch.autocast(images.device.type, enabled=False):
            f = wanted if taught else latent
            scales = list(model.quantize.scale_steps(self.schedule, latent=f.detach()))
            commitments = [F.mse_loss(f, scale.f_hat.detach()) for scale in scales]
            codebook = torch.stack([F.mse_loss(scale.f_hat, f.detach()) for scale in scales]).mean()
            f_hat = scales[-1].f_hat + (f - f.detach())
            anchor = F.mse_loss(latent, wanted)
        picture = model.decoder(model.post_quant_conv(f_hat)).float()
        return Forward(picture, torch.stack(commitments).mean(), commitments[-1], codebook, anchor, scales)


def latent_loss(out: Forward, settings: LossSettings) -> Tensor:
    """What training asks of latents, codebook and phis, weighted: a scalar."""
    return (
        settings.commitment * out.commitment
        + settings.last_commitment * out.last_commitment
        + settings.anchor * out.anchor
        + out.codebook
    )


def reconstruction_loss(
    picture: Tensor, images: Tensor, settings: LossSettings, cell: int, lpips: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """How far pictures are from what they should be, weighted; and their squared errors.

    Args:
        picture: [B, 3, H, W] in about [-1, 1], as it was decoded.
        images: likewise, as it should be.
        settings: the weights.
        cell: pixels along a side of a latent's cell.
        lpips: gives the distances of two batches; needed where its weight is not 0.

    Returns:
        A scalar, and the mean squared error of every picture, [B], without gradient.
    """
    error = picture - images
    squared = error.square().mean((1, 2, 3))
    loss = torch.zeros((), device=images.device)
    if settings.mse:
        loss = loss + settings.mse * squared.mean()
    if settings.log_mse:
        loss = loss + settings.log_mse * torch.log(squared + 1e-5).mean()  # 1e-5: 56 dB is good enough
    if settings.l1:
        loss = loss + settings.l1 * error.abs().mean()
    if settings.gradient:
        loss = loss + settings.gradient * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    if settings.border:
        excess = _border_contrast(picture, cell) - _border_contrast(images, cell)
        loss = loss + settings.border * excess.square()
    if lpips is not None:
        loss = loss + settings.lpips * lpips(picture, images).mean()
    return loss, squared.detach()


def _border_contrast(pictures: Tensor, cell: int) -> Tensor:
    """[B, 3, H, W] -> scalar: the mean step across borders of cells by the mean step inside them; 1 if none.

    What `vartok.metrics.blockiness` is of whole pictures, with a gradient.
    """
    steps = [pictures.diff(dim=2).abs(), pictures.diff(dim=3).abs().transpose(2, 3)]
    borders = [step[:, :, cell - 1 :: cell] for step in steps]
    count = sum(border.numel() for border in borders)
    if not count:
        return pictures.new_ones(())
    across = torch.stack([border.sum() for border in borders]).sum()
    others = torch.stack([step.sum() for step in steps]).sum() - across
    inside = others / (sum(step.numel() for step in steps) - count)
    return across / count / inside.clamp(min=1e-3)


def parameter_groups(
    model: VQVAE, rate: float, encoder_rate: float, train_codebook: bool
) -> list[dict[str, Any]]:
    """The parameters that an optimizer moves, by how fast.

    Args:
        model: what is trained.
        rate: of decoder and phis.
        encoder_rate: of encoder and codebook.
        train_codebook: whether the codebook is among them; else it needs no gradient from here on.
    """
    codebook = model.quantize.embedding.weight
    codebook.requires_grad_(train_codebook)
    slow = [*model.encoder.parameters(), *model.quant_conv.parameters(), *([codebook] * train_codebook)]
    known = {id(parameter) for parameter in (*slow, codebook)}
    fast = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": fast, "lr": rate, "base": rate},
        {"params": slow, "lr": encoder_rate, "base": encoder_rate},
    ]
