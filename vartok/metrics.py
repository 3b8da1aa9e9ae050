"""Image quality metrics: PSNR, SSIM, MS-SSIM, blockiness, spectral peaks, LPIPS, and the Fréchet distance.

PSNR, SSIM and MS-SSIM compare two uint8 pictures; blockiness and spectral peaks describe one. The networks of
LPIPS and Inception are loaded from files that the user has downloaded; nothing is downloaded here.
"""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vartok.errors import ImageError, VartokError, one_line
from vartok.files import file_sha256, os_error_reason
from vartok.images.tensors import Pixels, peak
from vartok.optional import is_installed, require

EXACT_PSNR = 100.0
"""PSNR that is reported for an exact copy, in dB, and the largest that is reported. The true value is
infinite, and would make every mean that includes it infinite."""

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, in pixels. A picture with a shorter side has no SSIM."""

MS_SSIM_MIN_SIDE = 176
"""Shortest side, in pixels, of a picture that has MS-SSIM, which halves the picture four times."""

LPIPS_MIN_SIDE = 32
"""Shortest side, in pixels, of a picture whose LPIPS is measured. AlexNet itself needs 31."""

MIN_PERIODS = 8
"""Fewest cells along a side of a picture whose spectral peaks are measured: a peak is several bins wide."""

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


# Metrics of pixels.


def psnr(reference: Pixels, copy: Pixels) -> float:
    """Return the peak signal-to-noise ratio (PSNR) of two pictures, for a peak of 255, or of 65535.

    Args:
        reference: [H, W, C] uint8, or uint16.
        copy: [H, W, C] of the same dtype.

    Returns:
        Decibels, 0 to 100; 100 for an exact copy.
    """
    wide = np.int32 if reference.dtype == np.uint8 else np.int64  # the square of 65535 exceeds int32
    error = float(np.square(np.subtract(reference, copy, dtype=wide)).mean())
    return min(EXACT_PSNR, 10 * math.log10(peak(reference.dtype) ** 2 / error)) if error else EXACT_PSNR


def ssim(reference: Pixels, copy: Pixels) -> float:
    """Return the structural similarity (SSIM) of two pictures, as torchmetrics computes it by default.

    It is computed in float32 on the CPU, with a Gaussian window of 11 pixels, and averaged over the
    channels.

    Args:
        reference: [H, W, C] uint8 or uint16.
        copy: [H, W, C] of the same dtype.

    Returns:
        -1 to 1; 1 for an exact copy.

    Raises:
        ImageError: a side of the picture is smaller than the window.
        VartokError: torchmetrics is not installed.
    """
    if min(reference.shape[:2]) < SSIM_WINDOW:
        raise ImageError(f"the picture has a side of fewer than {SSIM_WINDOW} pixels, the window of SSIM")
    compute = require_torchmetrics().structural_similarity_index_measure
    with torch.no_grad():
        return float(compute(_to_levels(copy), _to_levels(reference), data_range=255.0))


def ms_ssim(reference: Pixels, copy: Pixels) -> float | None:
    """Return the multi-scale SSIM of two pictures, as torchmetrics computes it by default.

    Args:
        reference: [H, W, C] uint8 or uint16.
        copy: [H, W, C] of the same dtype.

    Returns:
        0 to 1; 1 for an exact copy. None if a side has fewer than 176 pixels, too few for five scales.

    Raises:
        VartokError: torchmetrics is not installed.
    """
    if min(reference.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    compute = require_torchmetrics().multiscale_structural_similarity_index_measure
    with torch.no_grad():
        return float(compute(_to_levels(copy), _to_levels(reference), data_range=255.0))


def _to_levels(pixels: Pixels) -> Tensor:
    """Convert [H, W, C] uint8 or uint16 pixels to [1, C, H, W] float32 in [0, 255]."""
    if pixels.dtype == np.uint8:
        return torch.tensor(pixels).permute(2, 0, 1)[None].float()
    return torch.tensor(pixels.astype(np.float32) / 257).permute(2, 0, 1)[None]


def count_steps(pixels: Pixels, cell: int) -> NDArray[np.int64]:
    """Sum the steps between neighbouring pixels, across the borders of cells and inside cells.

    A step is the absolute difference of two levels. Vertical and horizontal steps of all channels are summed.

    Args:
        pixels: [H, W, C] uint8.
        cell: side of the cells, in pixels; the first cell lies in the picture's top left corner.

    Returns:
        [4] int64: sum and number of the steps across borders, then sum and number of the steps inside
        cells. Results of several pictures may be summed.
    """
    counts = np.zeros(4, np.int64)
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels.astype(np.int16), axis=axis))
        border = np.arange(1, pixels.shape[axis]) % cell == 0
        for place, chosen in enumerate((border, ~border)):
            found = steps.compress(chosen, axis)
            counts[2 * place : 2 * place + 2] += (int(found.sum(dtype=np.int64)), found.size)
    return counts


def blockiness(steps: NDArray[np.int64]) -> float | None:
    """Return how visible borders are: the mean step across borders divided by the mean step inside.

    Args:
        steps: [4] int64, a result of `count_steps` or the sum of several.

    Returns:
        A ratio, about 1 if borders are not visible. None if there are no borders, or if the sum of the steps
        inside is 0.
    """
    across, borders, inside, others = (int(value) for value in steps)
    return (across / borders) / (inside / others) if borders and inside else None


def spectral_peaks(images: Tensor, cell: int) -> Tensor:
    """Return the peaks of the spectrum that a texture has if it repeats in every cell, or in parts of one.

    Args:
        images: [B, C, H, W] float in about [-1, 1], with sides of `MIN_PERIODS` cells or more. Pixels beyond
            the last whole cell are left out.
        cell: side of the cells, in pixels, 2 or more.

    Returns:
        [2, cell // 2], of rows and of columns, differentiable. Column k - 1 is the peak at k / cell cycles
        per pixel: the natural logarithm of the power, less its mean from a quarter of the way to the next
        multiples to half of it. The power is a mean over images, channels and lines, under a Hann window.
        Powers far below that of rounding to 8 bits count as equal.
    """
    found = []
    for lines in (images, images.transpose(2, 3)):
        periods = lines.shape[3] // cell
        side = periods * cell
        lines = lines[..., :side]
        window = torch.hann_window(side, device=images.device)
        waves = torch.view_as_real(torch.fft.rfft((lines - lines.mean(3, keepdim=True)) * window))
        power = waves.square().sum(4).mean((0, 1, 2)) / window.square().sum()
        power = torch.log(power + 1e-5)  # rounding has (2 / 255) ** 2 / 12
        multiples = torch.arange(1, cell // 2 + 1, device=images.device) * periods
        away = torch.arange(periods // 4, periods // 2 + 1, device=images.device)
        around = multiples[:, None] + torch.cat([-away, away])
        around = side // 2 - (side // 2 - around).abs()  # the spectrum is symmetric about 1/2
        found.append(power[multiples] - power[around].mean(1))
    return torch.stack(found)


def require_torchmetrics() -> Any:
    """Return the module `torchmetrics.functional.image`.

    Raises:
        VartokError: torchmetrics is not installed.
    """
    require("torchmetrics", extra="train", purpose="SSIM and the perceptual distances")
    import torchmetrics.functional.image

    return torchmetrics.functional.image


# Perceptual distances.


class FrechetDistance:
    """Fréchet distance between the features of reference pictures and the features of their copies.

    Means and covariances are summed in float64. The distance is biased upwards, the more the fewer pictures.

    Source: Heusel et al. 2017, arXiv:1706.08500.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._products = torch.zeros(0)  # [2, D] and [2, D, D]; `add` creates them

    def add(self, reference: Tensor, copy: Tensor) -> None:
        """Add the features of a reference picture and of its copy, [D] each, on a device with float64."""
        pair = torch.stack([reference, copy]).double()
        if not self._count:
            self._sum = torch.zeros_like(pair)
            self._products = pair.new_zeros(*pair.shape, pair.shape[1])
        self._count += 1
        self._sum += pair
        self._products.baddbmm_(pair[:, :, None], pair[:, None, :])

    def compute(self) -> float | None:
        """Return the distance, 0 or more; None for fewer than two pictures, whose covariance is undefined."""
        if self._count < 2:
            return None
        mean = self._sum / self._count
        outer = mean[:, :, None] * mean[:, None, :]
        first, second = (self._products - self._count * outer) / (self._count - 1)
        # trace (A B)^1/2 = trace (A^1/2 B A^1/2)^1/2, whose matrix is symmetric.
        values, vectors = torch.linalg.eigh(first)
        root = (vectors * _square_roots(values)) @ vectors.mT
        roots = _square_roots(torch.linalg.eigvalsh(root @ second @ root)).sum()
        distance = (mean[0] - mean[1]).square().sum() + first.trace() + second.trace() - 2 * roots
        return max(0.0, float(distance))


def _square_roots(values: Tensor) -> Tensor:
    """Return the square roots of eigenvalues, [D] in ascending order; 0 for those that may be rounding.

    The covariance of fewer pictures than features has eigenvalues of 0.
    """
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return torch.where(values > rounding, values, 0).sqrt()


def load_lpips() -> nn.Module:
    """Load torchmetrics' implementation of LPIPS on AlexNet. Nothing is downloaded.

    Returns:
        A module that maps two [B, 3, H, W] batches in [-1, 1] to their distances, [B, 1, 1, 1].

    Raises:
        VartokError: torchvision, torchmetrics or the weights are missing or cannot be loaded, or the weights
            do not have the hash in their file's name.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """
    _find_weights("LPIPS", "torchvision", ALEXNET_URL)
    require_torchmetrics()
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="alex").net
    except Exception as error:  # torchmetrics, or a torchvision for another torch, may raise anything
        raise VartokError(f"LPIPS cannot be loaded: {one_line(error)}") from error


def load_inception() -> nn.Module:
    """Load the Inception network whose features rFID compares. Nothing is downloaded.

    It is torch-fidelity's port, which resizes pictures as TensorFlow did when the weights were trained.
    torchmetrics would resize with antialiasing, which gives other distances.

    Returns:
        A module that maps [B, 3, H, W] uint8 to [B, 2048] features.

    Raises:
        VartokError: torch-fidelity or the weights are missing or cannot be loaded, or the weights do not
            have the hash in their file's name.
    """
    path = _find_weights("rFID", "torch-fidelity", INCEPTION_URL)
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return _FirstOutput(module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)))
    except Exception as error:  # torch-fidelity may raise anything
        raise VartokError(f"rFID cannot be loaded: {one_line(error)}") from error


class _FirstOutput(nn.Module):
    """Wraps a network that returns several outputs, and returns the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        first: Tensor = self.network(images)[0]
        return first


def _find_weights(metric: str, package: str, url: str) -> Path:
    """Return the path of weights in torch.hub's cache, after checking the file against the hash in its name.

    The check is needed, as the weights are pickles, which can run code when they are loaded.

    Args:
        metric: name of the metric, for messages.
        package: PyPI name of the package that loads the weights.
        url: address of the weights. Its last part is the file's name, NAME-HASH.pth, where HASH is the
            beginning of the file's sha256 (torch.hub's convention).

    Raises:
        VartokError: the package or the file is missing, or the file cannot be read or has another hash.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    cures = []
    if not is_installed(package.replace("-", "_")):
        cures.append(f"pip install {package}")
    if not path.is_file():
        cures.append(f"download {url} to {path}")
    if cures:
        raise VartokError(f"{metric} needs {package} and its weights: {', and '.join(cures)}")
    expected = re.sub(r".*-([0-9a-f]{8,})\.pth", r"\1", path.name)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise VartokError(f"{path} cannot be read: {os_error_reason(error)}") from None
    if not found.startswith(expected):
        raise VartokError(
            f"{path} is damaged or another file: its sha256 begins with {found[: len(expected)]}, "
            f"not with {expected}; download {url} again"
        )
    return path
