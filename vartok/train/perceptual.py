"""Perceptual networks of training, and the windows of the images that they see.

Networks with strides see an image through a grid. If that grid were always aligned with the decoder's cells,
the decoder could hide errors on it, and did: a faint grid of 4 pixels. So these networks see a window at a
random offset, the same of originals and reconstructions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vartok.features import EfficientNetLite, feature_distance, load_features
from vartok.metrics import load_lpips
from vartok.train.settings import LossSettings

DEPTHS = slice(1, None)
"""Depths of the features that the perceptual loss compares, of strides 4 to 32. Those of stride 2 are so near
to pixels that they reward blur as MSE does. Without them, 250 steps of the decoder lowered ST-LPIPS by .013
instead of .007, and cost half as much PSNR."""


class View(NamedTuple):
    """A window of a batch.

    Attributes:
        pixels: [B, C, h, w] in about [-1, 1].
        features: features of the window, [B, D, h/s, w/s] at every depth; empty without a network.
    """

    pixels: Tensor
    features: list[Tensor]

    def detach(self) -> View:
        """Return the view without gradients."""
        return View(self.pixels.detach(), [depth.detach() for depth in self.features])


def perceptual_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Return the loss `perceptual`: the `feature_distance` at `DEPTHS`, a scalar, float32.

    Args:
        first: features of a batch at all five depths.
        second: features of another batch of the same shape.
    """
    return feature_distance(first[DEPTHS], second[DEPTHS])


@dataclass
class PerceptualNetworks:
    """Frozen networks of the losses.

    Attributes:
        lpips: network that maps two batches to their LPIPS distances, see `load_lpips`; None: no such loss.
        features: network for the loss `perceptual` and the projected discriminator; None: neither is used.
    """

    lpips: nn.Module | None = None
    features: EfficientNetLite | None = None

    @classmethod
    def load(cls, settings: LossSettings) -> PerceptualNetworks:
        """Load the networks that the losses need, on the CPU.

        Raises:
            VartokError: a package or its weights are missing or damaged.
        """
        return cls(
            lpips=load_lpips().requires_grad_(False) if settings.lpips else None,
            features=load_features(settings.perceptual_net) if settings.uses_features else None,
        )

    def to(self, device: torch.device) -> None:
        """Move the networks to a device."""
        for network in (self.lpips, self.features):
            if network is not None:
                network.to(device)

    def views(self, images: Tensor, reconstruction: Tensor, window: tuple[slice, slice]) -> tuple[View, View]:
        """Return the same window of originals and reconstructions; gradients flow through the second alone.

        Args:
            images: [B, C, H, W] in [-1, 1], the originals.
            reconstruction: [B, C, H, W], as decoded.
            window: rows and columns, see `random_window`.
        """
        with torch.no_grad():
            real = self._view(images, window)
        return real, self._view(reconstruction, window)

    def _view(self, images: Tensor, window: tuple[slice, slice]) -> View:
        pixels = images[:, :, window[0], window[1]].contiguous(memory_format=torch.channels_last)
        rgb = pixels.expand(-1, 3, -1, -1)  # a grey level three times
        return View(pixels, [] if self.features is None else self.features(rgb))


def random_window(size: Sequence[int], seed: int, step: int) -> tuple[slice, slice]:
    """Return rows and columns of a window of 7/8 of the height and width, at the random offset of a step.

    Args:
        size: height and width of the images, in pixels.
        seed: seed of the run.
        step: number of the step. A resumed run has the windows that it would have had.
    """
    rng = random.Random(f"{seed}/{step}")
    sides = [max(1, side * 7 // 8) for side in size]
    starts = [rng.randint(0, whole - side) for whole, side in zip(size, sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns
