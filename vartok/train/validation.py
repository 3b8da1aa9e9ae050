"""Validation on held-out pictures, and export of the EMA of the weights as a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vartok.checkpoints import Checkpoint, write_checkpoint
from vartok.codebook import count_codes, describe_usage
from vartok.features import EfficientNetLite
from vartok.files import write_bytes
from vartok.images import encode_picture, to_pixels, to_tensor
from vartok.images.tensors import Pixels, drawable
from vartok.metrics import psnr
from vartok.models.vqvae import VQVAE
from vartok.reports.gallery import Gallery
from vartok.tokenizer import Tokenizer
from vartok.train.folder import SAMPLES, WEIGHTS
from vartok.train.perceptual import perceptual_distance
from vartok.train.progress import Validation
from vartok.train.settings import TrainSettings

SAMPLE_PICTURES = 8


def as_tokenizer(model: VQVAE, settings: TrainSettings, device: torch.device) -> Tokenizer:
    """Return a float32 tokenizer with a copy of the model's weights."""
    return Tokenizer(copy.deepcopy(model), settings.model, name=settings.name, device=device, dtype="float32")


def validate(
    tokenizer: Tokenizer,
    pictures: Sequence[Pixels],
    step: int,
    gallery: Gallery | None = None,
    features: EfficientNetLite | None = None,
) -> tuple[Validation, NDArray[np.uint8]]:
    """Measure a tokenizer on the validation pictures.

    Args:
        tokenizer: tokenizer with the weights to validate.
        pictures: arrays [H, W, C] uint8 or uint16 of one size; at least one.
        step: number of steps that the weights were trained for.
        gallery: gets the pictures of the sample, decoded from 1, 2, ... K scales.
        features: network for the perceptual distance, on the tokenizer's device; None: it is not measured.

    Returns:
        The figures; and a sample, [2 H, n W, 3 or 1] uint8: the first n pictures, at most 8, in a row above
        their reconstructions. It shows the first channel of two, and the first three of more.
    """
    config = tokenizer.config
    found: list[float] = []
    distances: list[float] = []
    maps: list[list[NDArray[np.int64]]] = []
    decoded: list[Pixels] = []
    for number, pixels in enumerate(pictures, 1):
        tokens = tokenizer.encode(to_tensor(pixels[None]))
        if gallery is not None and number <= SAMPLE_PICTURES:
            copies = [to_pixels(prefix, pixels.dtype)[0] for prefix in tokenizer.decode_prefixes(tokens)]
            by_scale = [psnr(pixels, copy) for copy in copies]
            gallery.add(f"validation picture {number}", pixels, [copies], [by_scale])
            reconstruction = copies[-1]
        else:
            reconstruction = to_pixels(tokenizer.decode(tokens), pixels.dtype)[0]
        found.append(psnr(pixels, reconstruction))
        if features is not None:
            distances.append(_measure_distance(features, pixels, reconstruction, tokenizer.device))
        maps.append([token_map.cpu().numpy() for token_map in tokens.maps])
        if len(decoded) < SAMPLE_PICTURES:
            decoded.append(reconstruction)
    usage = describe_usage(count_codes(maps, config.vocab_size, len(config.patch_nums)))
    rows = (pictures[:SAMPLE_PICTURES], decoded)
    sample = np.concatenate([np.concatenate([drawable(pixels) for pixels in row], axis=1) for row in rows])
    validation = Validation(
        step=step,
        pictures=len(pictures),
        psnr=float(np.mean(found)),
        used=tuple(scale.used for scale in usage.scales),
        perplexity=tuple(scale.perplexity for scale in usage.scales),
        total_used=usage.overall.used,
        perceptual=float(np.mean(distances)) if distances else None,
    )
    return validation, sample


@torch.no_grad()
def _measure_distance(
    features: EfficientNetLite, pixels: Pixels, reconstruction: Pixels, device: torch.device
) -> float:
    images = [to_tensor(one[None]).to(device).expand(-1, 3, -1, -1) for one in (pixels, reconstruction)]
    return float(perceptual_distance(*map(features, images)))


def write_sample(run: Path, sample: NDArray[np.uint8], step: int) -> None:
    """Write the sample that `validate` returned to the run's folder, as a PNG named by the step.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(run / SAMPLES / f"{step:07}.png", encode_picture(sample, "png"), overwrite=True)


def export_weights(run: Path, model: VQVAE, settings: TrainSettings) -> None:
    """Write the model's weights to the run's folder, as a checkpoint.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(settings.name, settings.license, settings.model, tensors)
    write_checkpoint(run / WEIGHTS, checkpoint, overwrite=True)
