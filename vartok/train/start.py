"""Where training starts: principal components, a codebook of every scale's residuals, phis that do nothing.

A codebook that starts at random leaves most of its codes unused, above all at the coarse scales, and phis
that start as random convolutions first destroy what is looked up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vartok.config import TokenizerConfig
from vartok.images import to_tensor
from vartok.models.light import Decoder, Encoder
from vartok.models.quantizer import MultiScaleQuantizer, Phi, area_pool
from vartok.models.vqvae import VQVAE
from vartok.schedule import Schedule

POINTS_PER_CODE = 20  # of k-means: fewer give codes that serve one picture only
LLOYD_STEPS = 5  # a round; later rounds see other residuals anyway
CHUNK = 64  # pictures worked on at once


class LinearTransform(nn.Module):
    """Patches to their leading principal components: [B, 3, H, W] -> [B, z, H/d, W/d]; never trained.

    Args:
        components: [z, 3, d, d], orthonormal.
        mean: [3, d, d], the mean patch.
    """

    def __init__(self, components: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.components: Tensor
        self.mean: Tensor
        self.register_buffer("components", components)
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, z, H/d, W/d] float32, whatever precision networks have."""
        with torch.autocast(x.device.type, enabled=False):
            bias = -torch.einsum("zcij,cij->z", self.components, self.mean)
            return F.conv2d(x, self.components, bias, stride=self.components.shape[-1])

    @classmethod
    def empty(cls, config: TokenizerConfig) -> LinearTransform:
        """One to load a saved state into."""
        d = config.downsample
        return cls(torch.zeros(config.z_channels, 3, d, d), torch.zeros(3, d, d))


def principal_components(
    pictures: NDArray[np.uint8], config: TokenizerConfig, device: torch.device
) -> LinearTransform:
    """The linear transform that keeps most of the variance of pictures' patches.

    Args:
        pictures: [N, H, W, 3] uint8.
        config: tells the patches' side and how many components there are.
        device: where it is computed, and stays.
    """
    d = config.downsample
    size = 3 * d * d
    total, products, count = (
        torch.zeros(size, dtype=torch.float64),
        torch.zeros(size, size, dtype=torch.float64),
        0,
    )
    for start in range(0, len(pictures), CHUNK):
        patches = F.pixel_unshuffle(to_tensor(pictures[start : start + CHUNK]).to(device), d)
        rows = patches.permute(0, 2, 3, 1).reshape(-1, size)
        total += rows.sum(0).cpu().double()
        products += (rows.T @ rows).cpu().double()
        count += len(rows)
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    components = vectors[:, -config.z_channels :].flip(1).T
    components *= components.sum(1, keepdim=True).sign() + (
        components.sum(1, keepdim=True) == 0
    )  # one sign of two
    shape = (3, d, d)
    return LinearTransform(components.reshape(-1, *shape).float(), mean.reshape(shape).float()).to(device)


def start_light(model: VQVAE, linear: LinearTransform) -> None:
    """Make a `light` autoencoder the linear transform and its inverse, with nothing between."""
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, Decoder)
    with torch.no_grad():
        model.encoder.linear.weight.copy_(linear.components)
        bias = -torch.einsum("zcij,cij->z", linear.components, linear.mean)
        _set(model.encoder.linear.bias, bias)
        model.decoder.linear.weight.copy_(linear.components.flatten(1).T[:, :, None, None])
        _set(model.decoder.linear.bias, linear.mean.flatten())
        for conv in (model.quant_conv, model.post_quant_conv):
            nn.init.dirac_(conv.weight)
            _set(conv.bias, torch.zeros(len(conv.weight)))


def start_quantizer(
    quantizer: MultiScaleQuantizer,
    latents: Tensor,
    schedule: Schedule,
    rounds: int,
    seed: int,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Make phis the identity, and the codebook what k-means finds in the residuals that scales see.

    Every scale gives as many residuals, since a coarse token stands for many cells. The first round takes
    the scales before it to be exact; each further one the residuals that the codebook found so far leaves.

    Args:
        quantizer: on the latents' device.
        latents: [N, C, h, w] float32.
        schedule: (h, w) of every scale, the last one the latents'.
        rounds: of k-means.
        seed: of what is drawn at random.
        report: is told of every round as it begins.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in quantizer.modules():
            if isinstance(module, Phi):
                nn.init.dirac_(module.weight)
                _set(module.bias, torch.zeros(len(module.weight)))
        cells = _exact_residuals(latents, schedule)
        for number in range(rounds):
            report(f"k-means over the residuals of {len(latents):,} crops, round {number + 1} of {rounds}")
            _k_means(
                quantizer, _balanced(cells, quantizer.embedding.num_embeddings, random), random, number == 0
            )
            if number + 1 < rounds:
                cells = _residuals(quantizer, latents, schedule)


def start_as_var(quantizer: MultiScaleQuantizer, seed: int) -> None:
    """VAR's own start: codes uniform in +-1/V; phis stay what nn.Conv2d starts with."""
    codes = quantizer.embedding.weight
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        codes.copy_(torch.empty(codes.shape).uniform_(-1 / len(codes), 1 / len(codes), generator=random))


def _exact_residuals(latents: Tensor, schedule: Schedule) -> list[Tensor]:
    """Per scale [n, C]: what is left of latents where every scale before gave exactly what it can."""
    cells, residual = [], latents
    for k, grid in enumerate(schedule):
        pooled = area_pool(residual, grid)
        cells.append(_rows(pooled))
        if k + 1 < len(schedule):
            residual = residual - F.interpolate(pooled, schedule[-1], mode="bicubic")
    return cells


def _residuals(quantizer: MultiScaleQuantizer, latents: Tensor, schedule: Schedule) -> list[Tensor]:
    """Per scale [n, C]: what the quantizer looks up."""
    found: list[list[Tensor]] = [[] for _ in schedule]
    for part in latents.split(CHUNK):
        for k, scale in enumerate(quantizer.scale_steps(schedule, latent=part)):
            assert scale.cells is not None  # a latent is quantized
            found[k].append(_rows(scale.cells))
    return [torch.cat(parts) for parts in found]


def _balanced(cells: list[Tensor], vocab_size: int, random: torch.Generator) -> Tensor:
    """Equally many residuals of every scale, drawn at random: [n, C]."""
    each = -(-POINTS_PER_CODE * vocab_size // len(cells))
    return torch.cat(
        [rows[torch.randint(len(rows), (each,), generator=random).to(rows.device)] for rows in cells]
    )


def _k_means(quantizer: MultiScaleQuantizer, points: Tensor, random: torch.Generator, fresh: bool) -> None:
    """Lloyd's algorithm from the quantizer's codes, or from points if `fresh`; codes of none start anew."""
    codes = quantizer.embedding.weight

    def draw(count: int) -> Tensor:
        return points[torch.randint(len(points), (count,), generator=random).to(points.device)]

    if fresh:
        codes.copy_(draw(len(codes)))
    for _ in range(LLOYD_STEPS):
        nearest = quantizer.lookup()(points[:, :, None, None]).flatten()
        counts = torch.bincount(nearest, minlength=len(codes))
        codes.copy_(torch.zeros_like(codes).index_add_(0, nearest, points) / counts.clamp(min=1)[:, None])
        codes[counts == 0] = draw(int((counts == 0).sum()))


def _rows(cells: Tensor) -> Tensor:
    return cells.permute(0, 2, 3, 1).reshape(-1, cells.shape[1])


def _set(parameter: Tensor | None, values: Tensor) -> None:
    assert parameter is not None  # every convolution here has a bias
    parameter.data.copy_(values)
