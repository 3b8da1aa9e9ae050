"""A training run of a second, and its data, for the tests of training."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vartok.config import LightConfig, TokenizerConfig
from vartok.models.quantizer import MultiScaleQuantizer
from vartok.schedule import square
from vartok.train import TrainSettings, parse_settings, train
from vartok.train.data import Batch, Pictures, StreamPosition
from vartok.train.kmeans import init_like_var, init_quantizer
from vartok.train.settings import DataSettings

TINY = """
name = "tiny"

[model]
autoencoder = "light"
vocab_size = 64
z_channels = 8
widths = [8, 8, 8]
depths = [1, 1, 1]
patch_nums = [1, 2, 4]

[data]
batch_size = 4
val_fraction = 0.2

[start]
init_pictures = 16
kmeans_rounds = 2

[loss]
log_mse = 1.0
commitment = 0.1
latent_anchor = 0.02

[optimizer]
lr = 3e-3
warmup_steps = 3
encoder_warmup_steps = 5

[run]
steps = 8
precision = "float32"
"""
"""A run of a second: crops of 64 pixels."""


def tiny(**tables: dict[str, Any]) -> TrainSettings:
    """Return the settings of the tiny run, with some changed."""
    return parse_settings(TINY, tables)


def pictures(*sources: Path, seed: int = 0, **settings: Any) -> Pictures:
    """Return training pictures that become crops of 64 pixels."""
    return Pictures(sources, DataSettings(**settings), (64, 64), seed)


def take(
    source: Pictures, count: int, position: StreamPosition | None = None, size: int = 4, **options: int
) -> list[Batch]:
    """Return the next batches from a position on."""
    return list(itertools.islice(source.batches(size, position or StreamPosition(), **options), count))


def go(settings: TrainSettings, sources: Path | Sequence[Path], run: Path, **options: Any) -> list[Any]:
    """Train on the CPU, and return what was reported."""
    told: list[Any] = []
    done = train(
        settings,
        [sources] if isinstance(sources, Path) else sources,
        run,
        device="cpu",
        report=told.append,
        **options,
    )
    assert done != ("should_stop" in options)
    return told


LIGHT = TokenizerConfig(autoencoder=LightConfig(), vocab_size=64, z_channels=8, patch_nums=square(1, 2, 4))


def crops(tiles: Path, count: int = 16) -> NDArray[np.uint8]:
    """Return crops of the tiles, [N, 64, 64, 3]."""
    return take(pictures(tiles), 1, size=count)[0].pixels


def latents(count: int = 64) -> Tensor:
    """Return latents [N, 8, 4, 4], smooth over cells, with less variance in later channels."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 8, 2, 2, generator=random)
    fine = torch.randn(count, 8, 4, 4, generator=random)
    scale = torch.linspace(1, 0.1, 8)[:, None, None]
    return scale * (2 * nn.functional.interpolate(coarse, (4, 4), mode="bicubic") + fine)


def started(rounds: int) -> MultiScaleQuantizer:
    """Return a quantizer initialised by k-means on them, or as VAR does for 0 rounds."""
    quantizer = MultiScaleQuantizer(LIGHT)
    if rounds:
        init_quantizer(quantizer, latents(), LIGHT.patch_nums, rounds, seed=0)
    else:
        init_like_var(quantizer, seed=0)
    return quantizer.requires_grad_(False)
