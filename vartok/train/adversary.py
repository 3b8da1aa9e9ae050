"""The adversarial loss: a patch discriminator, and VQGAN's adaptive weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 64
MAX_ADAPTIVE_WEIGHT = 1e4


class PatchDiscriminator(nn.Sequential):
    """PatchGAN discriminator: [B, C, H, W] -> logits [B, 1, about H/8, about W/8].

    A logit has a receptive field of 70x70 pixels.

    Source: Isola et al. 2017, arXiv:1611.07004, section 6.1.2.
    """

    def __init__(self, in_channels: int = 3) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, CHANNELS, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, stride in enumerate((2, 2, 1)):
            before, after = CHANNELS * 2**i, CHANNELS * 2 ** (i + 1)
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(after, 1, 4, 1, 1))


class Adversary:
    """A patch discriminator and its optimizer.

    Args:
        accelerator: accelerate.Accelerator; it gives the device, and synchronizes the discriminator's
            gradients between processes.
        lr: learning rate of the discriminator.
        in_channels: C, the number of channels of the images.
    """

    def __init__(self, accelerator: Any, lr: float, in_channels: int = 3) -> None:
        self._accelerator = accelerator
        self._plain = PatchDiscriminator(in_channels).to(accelerator.device)
        self._adam = torch.optim.AdamW(self._plain.parameters(), lr=lr, betas=(0.5, 0.9))
        self._parallel, self._optimizer = accelerator.prepare(self._plain, self._adam)

    def generator_loss(self, images: Tensor, reconstruction: Tensor, loss: Tensor) -> Tensor:
        """Return the generator loss with VQGAN's adaptive weight: a scalar.

        The weight is ‖∇rec‖ / ‖∇gan‖, at most `MAX_ADAPTIVE_WEIGHT`.

        Args:
            images: [B, C, H, W] in [-1, 1], the originals. The discriminator gets originals and
                reconstructions in one batch, as in `discriminator_step`, so that its batch normalization has
                the same statistics.
            reconstruction: [B, C, H, W], as decoded; gradients must flow through it to the decoder.
            loss: reconstruction loss, a scalar.

        Source: Esser et al. 2021, arXiv:2012.09841, section 3.1; gradients are taken at the reconstruction,
        not at the decoder's last layer.
        """
        generator = -self._plain(torch.cat([images, reconstruction])).chunk(2)[1].mean()
        (rec_gradient,) = torch.autograd.grad(loss, reconstruction, retain_graph=True)
        (gan_gradient,) = torch.autograd.grad(generator, reconstruction, retain_graph=True)
        weight = (rec_gradient.norm() / (gan_gradient.norm() + 1e-6)).clamp(max=MAX_ADAPTIVE_WEIGHT)
        weighted: Tensor = weight * generator
        return weighted

    def discriminator_step(self, images: Tensor, reconstruction: Tensor) -> None:
        """Train the discriminator for one step with the hinge loss.

        Args:
            images: [B, C, H, W] in [-1, 1], the originals.
            reconstruction: [B, C, H, W], as decoded; detached here.
        """
        self._optimizer.zero_grad()  # clear the gradients of the generator loss
        real, fake = self._parallel(torch.cat([images, reconstruction.detach()])).chunk(2)
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        self._accelerator.backward(loss)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state dicts of the discriminator, "network", and of its optimizer, "optimizer"."""
        return {"network": self._plain.state_dict(), "optimizer": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a result of `state_dict`; the learning rate stays the one that `Adversary` was given."""
        rates = [group["lr"] for group in self._adam.param_groups]
        self._plain.load_state_dict(state["network"])
        self._adam.load_state_dict(state["optimizer"])
        for group, lr in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = lr
