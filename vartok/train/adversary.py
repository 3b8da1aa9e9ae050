"""A discriminator of patches: what decoded pictures are judged by where they should look sharp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 64
LARGEST = 1e4
"""Bound of the weight that balances the discriminator's gradient against the reconstruction's."""


class PatchDiscriminator(nn.Sequential):
    """[B, 3, H, W] -> [B, 1, about H/8, about W/8]: above 0 where a patch of 70 pixels looks real.

    Source: Isola et al. 2017, arXiv:1611.07004, section 6.1.2.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, stride in enumerate((2, 2, 1)):
            before, after = CHANNELS * 2**i, CHANNELS * 2 ** (i + 1)
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(after, 1, 4, 1, 1))


class Adversary:
    """A discriminator, and how it learns.

    Args:
        accelerator: accelerate's, which spreads it over processes.
        rate: at which it learns.
    """

    def __init__(self, accelerator: Any, rate: float) -> None:
        self._accelerator = accelerator
        self._plain = PatchDiscriminator().to(accelerator.device)
        self._adam = torch.optim.AdamW(self._plain.parameters(), lr=rate, betas=(0.5, 0.9))
        self._parallel, self._optimizer = accelerator.prepare(self._plain, self._adam)

    def opinion(self, images: Tensor, picture: Tensor, loss: Tensor) -> Tensor:
        """How unreal pictures look, scaled so that its gradient is as large as that of `loss`.

        Args:
            images: [B, 3, H, W], real ones: batches are normalised together, here as when it learns.
            picture: likewise, as decoded, with gradient.
            loss: what else is minimised about them.

        Source: Esser et al. 2021, arXiv:2012.09841, section 3.1; gradients are taken at the picture,
        not at the decoder's last layer.
        """
        unreal = -self._plain(torch.cat([images, picture])).chunk(2)[1].mean()
        (theirs,) = torch.autograd.grad(loss, picture, retain_graph=True)
        (ours,) = torch.autograd.grad(unreal, picture, retain_graph=True)
        weight = (theirs.norm() / (ours.norm() + 1e-6)).clamp(max=LARGEST)
        scaled: Tensor = weight * unreal
        return scaled

    def learn(self, images: Tensor, picture: Tensor) -> None:
        """A step of telling real images from decoded ones, by the hinge loss."""
        self._optimizer.zero_grad()  # the opinion has left gradients here
        real, drawn = self._parallel(torch.cat([images, picture.detach()])).chunk(2)
        loss = (F.relu(1 - real).mean() + F.relu(1 + drawn).mean()) / 2
        self._accelerator.backward(loss)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on."""
        return {"network": self._plain.state_dict(), "optimizer": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, at this one's rate."""
        rates = [group["lr"] for group in self._adam.param_groups]
        self._plain.load_state_dict(state["network"])
        self._adam.load_state_dict(state["optimizer"])
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
