"""Shift-tolerant LPIPS (ST-LPIPS): a learned perceptual distance that small shifts change little.

Source: Ghildyal & Liu 2022, arXiv:2207.13686. The weights are those of the authors' package
`stlpips-pytorch`, and so are the distances.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.pretrained import load_pretrained

PACKAGE = "stlpips_pytorch"
"""Module of the package that holds the weights."""

SHA256 = {
    "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
}
"""Hash of each network's file of weights."""


class STLPIPS(nn.Module):
    """The distance of images by the features of a network at five depths.

    Args:
        layers: the network's layers at each depth, which take the features of the depth before.
        channels: number of channels at each depth.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: list[list[nn.Module]], channels: list[int]) -> None:
        super().__init__()
        self.depths = nn.ModuleList(nn.Sequential(*depth) for depth in layers)
        self.weights = nn.ModuleList(nn.Conv2d(count, 1, 1, bias=False) for count in channels)
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the features at every depth, each vector of unit length.

        Args:
            images: [B, 3, H, W] in [-1, 1]; sides of 21 or more.
        """
        x = ((images - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        found = []
        for depth in self.depths:
            x = depth(x)
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return the distances [B], 0 or more, between the `features` of B images and of B or one others."""
        depths = zip(features, others, self.weights, strict=True)
        return torch.stack([weight((a - b).square()).mean((1, 2, 3)) for a, b, weight in depths]).sum(0)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distances [B] of two [B, 3, H, W] batches in [-1, 1]."""
        return self.distance(self.features(images), self.features(others))


class BlurPool(nn.Module):
    """Halves the size after a binomial filter of 3 by 3, with a reflected border of two pixels.

    Source: Zhang 2019, arXiv:1904.11486; the wider border is ST-LPIPS's.
    """

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h, w] of [B, C, H, W]; h is half of H, rounded up, and one more."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def load_st_lpips(network: Literal["alex", "vgg"]) -> STLPIPS:
    """Load ST-LPIPS from the installed package `stlpips-pytorch`.

    Args:
        network: "alex" for AlexNet, "vgg" for VGG16.

    Raises:
        VartokError: the package is not installed, or its file of weights is missing or another one.
    """
    tensors = load_pretrained(
        PACKAGE, f"weights/vST0.0/{network}_shift_tolerant.pth", sha256=SHA256[network], purpose="ST-LPIPS"
    )
    # Layers are numbered through all depths in the file: net.slice2.4.filt is of the network's layer 4.
    own = {name.split(".", 2)[2]: value for name, value in tensors.items() if name.startswith("net.")}
    weights = [tensors[f"lin{depth}.model.1.weight"] for depth in range(5)]
    with torch.device("meta"):  # initializes no weights
        layers = _alexnet() if network == "alex" else _vgg16()
        distance = STLPIPS(layers, [len(weight[0]) for weight in weights])
    nn.Sequential(*itertools.chain(*layers)).load_state_dict(own, assign=True)
    for module, weight in zip(distance.weights, weights, strict=True):
        module.load_state_dict({"weight": weight}, assign=True)
    distance.shift, distance.scale = tensors["scaling_layer.shift"], tensors["scaling_layer.scale"]
    distance.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return distance.eval().requires_grad_(False)


def _alexnet() -> list[list[nn.Module]]:
    return [
        [nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU()],
        [nn.MaxPool2d(3, 1), BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
        [nn.MaxPool2d(3, 1), BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
    ]


def _vgg16() -> list[list[nn.Module]]:
    depths: list[list[nn.Module]] = []
    before = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2, 1), BlurPool(before)] if depths else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        depths.append(layers)
    return depths
