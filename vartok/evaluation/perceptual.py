"""Figures of pictures by networks of installed packages: ST-LPIPS, and features for a Fréchet distance."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vartok.errors import VartokError, warn
from vartok.features import NETWORKS, load_features
from vartok.images import to_tensor
from vartok.images.tensors import Pixels, to_rgb_bytes
from vartok.optional import require
from vartok.runtime import exact_float32
from vartok.st_lpips import PACKAGE, STLPIPS, load_st_lpips

MIN_SIDE = 32
"""Shortest side, in pixels, of a picture that is measured. AlexNet itself needs 21."""

MAX_PIXELS = 1 << 20
"""Largest number of pixels of a picture that is measured, for which VGG16 takes about 2 GB."""

LITE2 = "efficientnet-lite2"


class PerceptualNetworks(NamedTuple):
    """ST-LPIPS on AlexNet and on VGG16; and EfficientNet-Lite2, a list of features [B, C, h, w] of images."""

    alex: STLPIPS
    vgg: STLPIPS
    lite2: nn.Module


class PerceptualFigures(NamedTuple):
    """The figures of a picture's copies.

    Attributes:
        alex: ST-LPIPS on AlexNet of each copy.
        vgg: ST-LPIPS on VGG16 of each copy.
        by_scale: ST-LPIPS on AlexNet of each list of prefixes.
        features: Lite2's features [D] of the reference, then of each copy.
    """

    alex: tuple[float, ...]
    vgg: tuple[float, ...]
    by_scale: tuple[tuple[float, ...], ...]
    features: tuple[Tensor, ...]


def load_perceptual(channels: int) -> PerceptualNetworks | None:
    """Load the networks from their packages, on the CPU.

    Args:
        channels: number of channels of the pictures to measure.

    Returns:
        The networks; None if they cannot measure: their packages are not installed, or pictures have neither
        one nor three channels.

    Raises:
        VartokError: a file of weights cannot be read, or is another one.

    Warns:
        VartokWarning: the networks cannot measure.
    """
    try:
        require(PACKAGE, NETWORKS[LITE2].package, extra="perceptual", purpose="ST-LPIPS and Lite2's features")
        if channels not in (1, 3):
            raise VartokError(
                f"they need pictures of 1 or 3 channels, not the checkpoint's {channels}", hint=""
            )
    except VartokError as error:
        cure = f"; {error.hint}" if error.hint else ""
        warn(f"ST-LPIPS and the Fréchet distance (Lite2) are left out: {error}{cure}")
        return None
    return PerceptualNetworks(load_st_lpips("alex"), load_st_lpips("vgg"), load_features(LITE2))


class PerceptualMeter:
    """Measures pictures one at a time, from any thread: VGG16 takes much memory.

    Args:
        networks: the networks, which are moved to `device`.
        device: where they compute; it must support float64, which MPS does not.
    """

    def __init__(self, networks: PerceptualNetworks, device: torch.device) -> None:
        self._alex = networks.alex.to(device)
        self._vgg = networks.vgg.to(device)
        self._lite2 = networks.lite2.to(device)
        self._device = device
        self._lock = threading.Lock()

    @staticmethod
    def can_measure(height: int, width: int) -> bool:
        """Return whether pictures of this size in pixels are measured."""
        return min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS

    def measure(
        self, reference: Pixels, copies: Sequence[Pixels], prefixes: Sequence[Sequence[Pixels]]
    ) -> PerceptualFigures:
        """Measure the copies of a picture.

        Args:
            reference: [H, W, 1 or 3] uint8 or uint16.
            copies: each of the same shape and dtype.
            prefixes: lists of further copies, such as those after each scale, of which only ST-LPIPS on
                AlexNet is measured.
        """
        with self._lock, exact_float32(self._device):
            original = self._to_images(reference)
            images = [self._to_images(copy) for copy in copies]
            features = self._alex.features(original)

            def alex(image: Tensor) -> float:
                return float(self._alex.distance(self._alex.features(image), features))

            by_copy = tuple(map(alex, images))
            by_scale = tuple(tuple(alex(self._to_images(one)) for one in some) for some in prefixes)
            features = self._vgg.features(original)
            return PerceptualFigures(
                by_copy,
                tuple(float(self._vgg.distance(self._vgg.features(image), features)) for image in images),
                by_scale,
                tuple(self._lite2(image)[-1].mean((2, 3))[0] for image in (original, *images)),
            )

    def _to_images(self, pixels: Pixels) -> Tensor:
        return to_tensor(to_rgb_bytes(pixels)[None]).to(self._device)
