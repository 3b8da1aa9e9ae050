"""The card of an exported checkpoint: what it is, how it was made, and how it did on pictures held out."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

import torch

from vartok import schedule as schedules
from vartok.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How the averaged weights do on pictures that are held out.

    Attributes:
        step: steps done.
        pictures: that were measured.
        psnr: mean over them, in dB, of rounded pixels.
        used: codes used by each scale.
        perplexity: of each scale's use of the codebook.
        total: codes used by any.
    """

    step: int
    pictures: int
    psnr: float
    used: tuple[int, ...]
    perplexity: tuple[float, ...]
    total: int


def describe(
    settings: TrainSettings,
    *,
    step: int,
    seconds: float,
    processes: int,
    device: torch.device,
    precision: str,
    validation: Validation | None,
) -> str:
    """A card in Markdown.

    Args:
        settings: of the run.
        step: steps done.
        seconds: that they took.
        processes: that took part.
        device: of the first of them.
        precision: of the networks in training.
        validation: of the weights exported; None where no picture is held out.
    """
    config = settings.model
    crop = "x".join(map(str, reversed(config.image_size)))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        f"# {settings.name}",
        "",
        "| | |",
        "| --- | --- |",
        f"| Autoencoder | `{config.autoencoder}` |",
        f"| Codebook | {config.vocab_size} vectors of {config.z_channels} channels, one for all scales |",
        f"| Schedule | {schedules.describe(config.patch_nums)}: "
        f"{schedules.token_count(config.patch_nums)} tokens for {crop} pixels |",
        f"| Licence | {settings.license or 'not stated'} |",
        "",
        "## Training",
        "",
        f"`vartok train` of vartok {version('vartok')}, torch {torch.__version__}: {step:,} steps of "
        f"{settings.data.batch_size} crops of {crop} pixels in {seconds / 60:.1f} minutes, on {processes} "
        f"process{'es' * (processes > 1)} ({device.type}, {machine}), networks in {precision}.",
        "",
        "```toml",
        settings.to_toml().rstrip(),
        "```",
    ]
    if validation is not None:
        lines += [
            "",
            "## Figures",
            "",
            f"On {validation.pictures} pictures held out of the training data, scaled to cover and cut to "
            f"their centre, {crop} pixels; PSNR of rounded pixels, mean over pictures: "
            f"{validation.psnr:.2f} dB. {validation.total} of {config.vocab_size} codes are used there:",
            "",
            "| scale | grid | codes used | perplexity |",
            "| --- | --- | --- | --- |",
            *(
                f"| {k} | {h}x{w} | {validation.used[k]} | {validation.perplexity[k]:.0f} |"
                for k, (h, w) in enumerate(config.patch_nums)
            ),
        ]
    return "\n".join(lines) + "\n"
