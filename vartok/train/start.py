"""Initial weights: computed from the pictures, or loaded from a checkpoint.

Pictures give the principal components of patches, for the loss `latent_anchor` and a `light` autoencoder, and
a codebook by k-means. With a random codebook most codes would stay unused, above all by the coarse scales.
Random phis would at first destroy the looked-up codes, so with k-means phis start as the identity.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.checkpoints import Checkpoint
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import TrainError
from vartok.images import to_tensor
from vartok.images.tensors import Pixels
from vartok.models.light import Decoder, Encoder
from vartok.models.vqvae import VQVAE
from vartok.train.data import Pictures, StreamPosition
from vartok.train.kmeans import CHUNK, Deadline, init_like_var, init_quantizer
from vartok.train.progress import StartProgress
from vartok.train.settings import TrainSettings
from vartok.train.settings_file import read_start


def start_from_pictures(
    model: VQVAE,
    pictures: Pictures,
    settings: TrainSettings,
    device: torch.device,
    *,
    workers: int = 1,
    deadline: Deadline | None = None,
    report: Callable[[StartProgress], None] = lambda _: None,
) -> tuple[LinearTransform, str]:
    """Initialise a model from crops of the training pictures.

    The quantizer is initialised, and a `light` autoencoder. The autoencoder `var` keeps its random weights.

    Args:
        model: model on `device`, changed in place.
        pictures: training pictures.
        settings: settings of the run.
        device: device of the computation.
        workers: number of threads that read pictures.
        deadline: approximate end. To meet it, fewer crops and k-means rounds are used. None: no deadline.
        report: called with the progress of each stage.

    Returns:
        The projection onto principal components, and a one-line summary with the time of each stage.

    Raises:
        TrainError: too few pictures can be read, see `Pictures.batches`.
    """
    start, config = settings.start, settings.model
    deadline = deadline or Deadline()
    begin = time.monotonic()
    crops = _read_crops(pictures, start.init_pictures, workers, deadline.within(0.5), report)
    read = time.monotonic()
    linear = principal_components(crops, config, device, deadline=deadline.within(0.5), report=report)
    if isinstance(config.autoencoder, LightConfig):
        init_light(model, linear)
    components = time.monotonic()
    times = f"reading {read - begin:.1f} s, principal components {components - read:.1f} s"
    if start.kmeans_rounds:
        parts = np.array_split(crops, -(-len(crops) // CHUNK))
        latents = torch.cat([linear(to_tensor(part).to(device)) for part in parts])
        rounds = init_quantizer(
            model.quantize,
            latents,
            config.patch_nums,
            start.kmeans_rounds,
            settings.run.seed,
            deadline=deadline,
            report=report,
        )
        times += f", k-means {time.monotonic() - components:.1f} s ({rounds} of {start.kmeans_rounds} rounds)"
    else:
        init_like_var(model.quantize, settings.run.seed)
    missing = f" of {start.init_pictures:,}" * (len(crops) < start.init_pictures)
    return linear, f"initialised from {len(crops):,}{missing} crops: {times}"


def start_from_checkpoint(model: VQVAE, settings: TrainSettings) -> Checkpoint:
    """Load the checkpoint that `settings.start` names into a model, and return it.

    Raises:
        CheckpointError: there is no such checkpoint, or vartok cannot run it.
        TrainError: the checkpoint's configuration is not the run's.
    """
    weights = settings.start.weights
    checkpoint = read_start(weights)
    if checkpoint.config != settings.model:
        raise TrainError(
            f"{weights}: its configuration is not the run's [model]",
            hint="`read_settings` sets [model] if it is given the checkpoint",
        )
    model.load_state_dict(checkpoint.tensors)
    return checkpoint


def checkpoint_anchor(model: VQVAE, settings: TrainSettings) -> nn.Module:
    """Return the anchor of fine-tuning: a copy of encoder and quant_conv, [B, C, H, W] -> [B, z, h, w].

    If tokens are kept, encoder and quant_conv do not change: the anchor is an empty network, and not used.
    """
    if settings.start.keep_tokens:
        return nn.Identity()
    return nn.Sequential(copy.deepcopy(model.encoder), copy.deepcopy(model.quant_conv))


def _read_crops(
    pictures: Pictures,
    count: int,
    workers: int,
    deadline: Deadline,
    report: Callable[[StartProgress], None],
) -> Pixels:
    """Return random crops, [N, H, W, C] uint8 or uint16.

    N is `count`; if `count` is above `CHUNK`, it is rounded up to a multiple of `CHUNK`. After the deadline
    no further batch is read, so N may be smaller; the first batch is always read.
    """
    stream = pictures.batches(min(CHUNK, count), StreamPosition(), workers=workers)
    batches: list[Pixels] = []
    for number in range(-(-count // CHUNK)):
        if number and deadline.passed():
            break
        report(StartProgress(stage="reading crops", done=min(count, number * CHUNK), total=count))
        batches.append(next(stream).pixels)
    return np.concatenate(batches)


class LinearTransform(nn.Module):
    """Projection of patches of side d onto principal components; never trained.

    Args:
        components: [z, C, d, d] float32, orthonormal.
        mean: [C, d, d] float32, the mean patch.
    """

    def __init__(self, components: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.components: Tensor
        self.mean: Tensor
        self.register_buffer("components", components)
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """Project [B, C, H, W] float32 in [-1, 1] to [B, z, H/d, W/d] float32, even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            bias = -torch.einsum("zcij,cij->z", self.components, self.mean)
            return F.conv2d(x, self.components, bias, stride=self.components.shape[-1])

    @classmethod
    def empty(cls, config: TokenizerConfig) -> LinearTransform:
        """Return a transform of zeros, into which a state dict can be loaded."""
        shape = (config.in_channels, config.downsample, config.downsample)
        return cls(torch.zeros(config.z_channels, *shape), torch.zeros(shape))


def principal_components(
    pictures: Pixels,
    config: TokenizerConfig,
    device: torch.device,
    *,
    deadline: Deadline | None = None,
    report: Callable[[StartProgress], None] = lambda _: None,
) -> LinearTransform:
    """Return the projection onto the leading principal components of the pictures' patches.

    Args:
        pictures: [N, H, W, C] uint8 or uint16.
        config: gives the side of a patch, `downsample`, and the number of components, `z_channels`.
        device: device of the computation and of the result.
        deadline: when it passes, the remaining pictures are skipped; the first 64 are always used.
        report: called with the progress after every 64 pictures.
    """
    d = config.downsample
    shape = (config.in_channels, d, d)
    size = math.prod(shape)
    total, products, count = (
        torch.zeros(size, dtype=torch.float64),
        torch.zeros(size, size, dtype=torch.float64),
        0,
    )
    for start in range(0, len(pictures), CHUNK):
        if start and deadline is not None and deadline.passed():
            break
        patches = F.pixel_unshuffle(to_tensor(pictures[start : start + CHUNK]).to(device), d)
        rows = patches.permute(0, 2, 3, 1).reshape(-1, size)
        total += rows.sum(0).cpu().double()
        products += (rows.T @ rows).cpu().double()
        count += len(rows)
        done = min(len(pictures), start + CHUNK)
        report(StartProgress(stage="principal components", done=done, total=len(pictures)))
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    components = vectors[:, -config.z_channels :].flip(1).T
    sums = components.sum(1, keepdim=True)
    components *= sums.sign() + (sums == 0)  # a component's sign is arbitrary: make its sum positive
    return LinearTransform(components.reshape(-1, *shape).float(), mean.reshape(shape).float()).to(device)


def init_light(model: VQVAE, linear: LinearTransform) -> None:
    """Set a `light` encoder to the linear transform, and the decoder to the inverse transform.

    quant_conv and post_quant_conv become the identity. A new model's residual networks give zero already.
    """
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


def _set(parameter: Tensor | None, values: Tensor) -> None:
    assert parameter is not None  # every convolution here has a bias
    parameter.data.copy_(values)
