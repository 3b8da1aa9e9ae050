"""The comparison of exported parts with the tokenizer that they were made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vartok.errors import VartokError
from vartok.export.formats import Run
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer

IMAGES = 2
"""Number of images of the schedule's size that are compared."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of exported parts with the tokenizer, on images of random soft shapes with grain.

    Attributes:
        latent: largest difference of the encoder's latents, as a share of their largest value.
        tokens: share of equal tokens, from images through encoder and quantizer.
        f_hat: largest difference of the dequantizer's f_hat, as a share of its largest value.
        images: largest difference of pixels in [-1, 1], from equal tokens through dequantizer and decoder.
    """

    latent: float
    tokens: float
    f_hat: float
    images: float


BOUNDS = Agreement(latent=1e-4, tokens=0.95, f_hat=1e-5, images=1e-3)
"""The largest differences, and the smallest share of equal tokens, that `check` allows."""

DISAGREE = "the exported files do not agree with the checkpoint"


def check(agreement: Agreement) -> None:
    """Check that an agreement is within `BOUNDS`.

    Raises:
        VartokError: it is not, or not a number.
    """
    for name, bound in dataclasses.asdict(BOUNDS).items():
        found = getattr(agreement, name)
        if name == "tokens" and not found >= bound:
            raise VartokError(f"{DISAGREE}: only {found:.2%} of the tokens are equal, less than {bound:.0%}")
        if name != "tokens" and not found <= bound:
            raise VartokError(f"{DISAGREE}: {name} differ by {found:.2g}, more than {bound:g}")


def compare(load: Callable[[str], Run], tokenizer: Tokenizer, schedule: Schedule) -> Agreement:
    """Run exported parts and the tokenizer on the same images.

    Encoder and decoder run each image alone, and then a batch of smaller ones, as their sizes are free.

    Args:
        load: opens the part of a name; only one part is open at a time.
        tokenizer: the tokenizer, on a CPU, in float32.
        schedule: (h, w) of every scale, the last one the latent's.
    """
    step, channels = tokenizer.config.downsample, tokenizer.config.in_channels
    height, width = schedule[-1]
    pictures = soft_images(IMAGES, channels, height * step, width * step)
    small = soft_images(2, channels, 2 * step, 3 * step)

    def each(part: str, whole: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        run = load(part)
        return torch.cat([run(one[None]) for one in whole]), run(other)

    latent, small_latent = tokenizer.latent(pictures), tokenizer.latent(small)
    tokens = tokenizer.encode(pictures, schedule)
    f_hat = tokenizer.f_hat(tokens)
    images, small_images = tokenizer.decode_latent(f_hat), tokenizer.decode_latent(small_latent)

    own_latent, own_small_latent = each("encoder", pictures, small)
    own_tokens = load("quantizer")(own_latent)
    own_f_hat = load("dequantizer")(tokens.flatten())
    own_images, own_small_images = each("decoder", own_f_hat, small_latent)
    return Agreement(
        latent=max(_relative(own_latent, latent), _relative(own_small_latent, small_latent)),
        tokens=float((own_tokens == tokens.flatten()).float().mean()),
        f_hat=_relative(own_f_hat, f_hat),
        images=max(_largest(own_images - images), _largest(own_small_images - small_images)),
    )


def soft_images(number: int, channels: int, height: int, width: int) -> Tensor:
    """Return images of soft shapes with grain, always the same: [number, channels, H, W] in [-1, 1]."""
    random = torch.Generator().manual_seed(0)
    soft = torch.rand(number, channels, 4, 5, generator=random) * 2 - 1
    grain = torch.randn(number, channels, height, width, generator=random) * 0.05
    return (F.interpolate(soft, (height, width), mode="bicubic") + grain).clamp(-1, 1)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return _largest(found - expected) / max(_largest(expected), torch.finfo(torch.float32).tiny)
