"""The adversarial loss: discriminators, and VQGAN's adaptive weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vartok.train.distributed import adam_kernels, load_adam_state
from vartok.train.perceptual import View

CHANNELS = 64
MAX_ADAPTIVE_WEIGHT = 1e4

PROJECTED_DEPTHS = slice(1, 4)
"""Depths of the features that the projected discriminator sees, of strides 4, 8 and 16. A head at stride 2
would take three times as long as these together, and at stride 32 a feature sees all of a window."""


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

    def forward(self, pixels: Tensor, features: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the one map of logits; features are not used."""
        logits: Tensor = super().forward(pixels)  # type: ignore[no-untyped-call]
        return [logits]


class ProjectedDiscriminator(nn.Module):
    """Projected discriminator: a head on each of several depths of features, and one on pixels.

    A head sees the features through a frozen random 1x1 convolution. The head on pixels is a small patch
    discriminator: it sees what the features' network does not, such as grain. Spectral normalization takes
    the place of batch normalization, so that a logit depends on its own image alone.

    Args:
        feature_channels: number of channels of the features at every depth.
        in_channels: C, the number of channels of the images.

    Source: Sauer et al. 2021, arXiv:2111.01007, without its mixing of depths; spectral normalization:
    Miyato et al. 2018, arXiv:1802.05957.
    """

    def __init__(self, feature_channels: Sequence[int], in_channels: int = 3) -> None:
        super().__init__()
        widths = feature_channels[PROJECTED_DEPTHS]
        self.projections = nn.ModuleList(nn.Conv2d(width, CHANNELS, 1) for width in widths)
        self.projections.requires_grad_(False)
        C = CHANNELS
        self.heads = nn.ModuleList(
            _normalized(nn.Conv2d(C, C, 3, 1, 1), nn.Conv2d(C, C, 3, 1, 1), nn.Conv2d(C, 1, 1))
            for _ in widths
        )
        self.pixels = _normalized(
            nn.Conv2d(in_channels, C // 2, 4, 2, 1),
            nn.Conv2d(C // 2, C, 4, 2, 1),
            nn.Conv2d(C, C, 3, 1, 1),
            nn.Conv2d(C, 1, 3, 1, 1),
        )

    def forward(self, pixels: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of every head, [B, 1, h, w].

        Args:
            pixels: [B, C, H, W] in [-1, 1].
            features: features of the pixels at every depth.
        """
        chosen = zip(self.heads, self.projections, features[PROJECTED_DEPTHS], strict=True)
        return [*(head(projection(depth)) for head, projection, depth in chosen), self.pixels(pixels)]


def _normalized(*layers: nn.Conv2d) -> nn.Sequential:
    """Return convolutions with spectral normalization, and a leaky ReLU after each but the last."""
    parts = [part for conv in layers for part in (spectral_norm(conv), nn.LeakyReLU(0.2))]
    return nn.Sequential(*parts[:-1])


class Adversary:
    """A discriminator and its optimizer.

    Args:
        accelerator: accelerate.Accelerator; it gives the device, and synchronizes the discriminator's
            gradients between processes.
        lr: learning rate of the discriminator.
        in_channels: C, the number of channels of the images.
        feature_channels: channels of the features at every depth, for a `ProjectedDiscriminator`; empty: a
            `PatchDiscriminator`.
    """

    def __init__(
        self, accelerator: Any, lr: float, in_channels: int = 3, feature_channels: Sequence[int] = ()
    ) -> None:
        self._accelerator = accelerator
        self._plain: PatchDiscriminator | ProjectedDiscriminator
        if feature_channels:
            self._plain, second_beta = ProjectedDiscriminator(feature_channels, in_channels), 0.99
        else:
            self._plain, second_beta = PatchDiscriminator(in_channels), 0.9
        self._plain.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = [parameter for parameter in self._plain.parameters() if parameter.requires_grad]
        kernels = adam_kernels(accelerator.device)
        self._adam = torch.optim.AdamW(self._trained, lr=lr, betas=(0.5, second_beta), **kernels)
        self._parallel, self._optimizer = accelerator.prepare(self._plain, self._adam)

    def generator_loss(self, real: View, fake: View) -> Tensor:
        """Return the generator loss, a scalar: the negated mean logit of reconstructions.

        Args:
            real: view of the originals. A patch discriminator gets originals and reconstructions in one
                batch, as in `discriminator_step`, so that its batch normalization has the same statistics.
            fake: view of the reconstructions, through which gradients flow.
        """
        for parameter in self._trained:  # the discriminator's own gradients would take a third of the time
            parameter.requires_grad_(False)
        if isinstance(self._plain, PatchDiscriminator):
            logits = [self._plain(torch.cat([real.pixels, fake.pixels]))[0].chunk(2)[1]]
        else:
            logits = self._plain(*fake)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        return -torch.stack([head.mean() for head in logits]).mean()

    def discriminator_step(self, real: View, fake: View) -> Tensor:
        """Train the discriminator for one step with the hinge loss, and return it: a scalar.

        Args:
            real: view of the originals.
            fake: view of the reconstructions; detached here.
        """
        self._optimizer.zero_grad()
        fake = fake.detach()
        features = [torch.cat(depths) for depths in zip(real.features, fake.features, strict=True)]
        pairs = [head.chunk(2) for head in self._parallel(torch.cat([real.pixels, fake.pixels]), features)]
        losses = [(F.relu(1 - first).mean() + F.relu(1 + second).mean()) / 2 for first, second in pairs]
        loss = torch.stack(losses).mean()
        self._accelerator.backward(loss)
        self._optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the state dicts of the discriminator, "network", and of its optimizer, "optimizer"."""
        return {"network": self._plain.state_dict(), "optimizer": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a result of `state_dict`; the learning rate stays the one that `Adversary` was given."""
        rates = [group["lr"] for group in self._adam.param_groups]
        self._plain.load_state_dict(state["network"])
        load_adam_state(self._adam, state["optimizer"])
        for group, lr in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = lr


def adaptive_weight(loss: Tensor, generator: Tensor, reconstruction: Tensor) -> Tensor:
    """Return VQGAN's adaptive weight of the generator loss: ‖∇rec‖ / ‖∇gan‖, at most `MAX_ADAPTIVE_WEIGHT`.

    Args:
        loss: reconstruction loss, a scalar.
        generator: generator loss, a scalar.
        reconstruction: [B, C, H, W], as decoded; both losses depend on it.

    Source: Esser et al. 2021, arXiv:2012.09841, section 3.1; gradients are taken at the reconstruction, not
    at the decoder's last layer.
    """
    gradients = [torch.autograd.grad(one, reconstruction, retain_graph=True)[0] for one in (loss, generator)]
    weight: Tensor = (gradients[0].norm() / (gradients[1].norm() + 1e-6)).clamp(max=MAX_ADAPTIVE_WEIGHT)
    return weight
