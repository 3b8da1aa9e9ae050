"""The card of an exported checkpoint: architecture, training, and quality on the validation pictures."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from vartok import schedule as schedules
from vartok.errors import counted
from vartok.train.progress import Validation
from vartok.train.settings import TrainSettings
from vartok.train.settings_file import dump_settings
from vartok.train.state import Origin


def describe(
    settings: TrainSettings,
    *,
    step: int,
    seconds: float,
    processes: int,
    device: torch.device,
    precision: str,
    validation: Validation | None,
    origin: Origin | None = None,
) -> str:
    """Return the card of the exported checkpoint, in Markdown.

    Args:
        settings: settings of the run.
        step: number of steps done.
        seconds: time of the run in seconds, over all sessions.
        processes: number of processes.
        device: device of the main process.
        precision: precision of the networks in training, see `Processes.describe_precision`.
        validation: quality of the exported weights; None if no picture is held out.
        origin: the checkpoint that was fine-tuned; None if training began from scratch.
    """
    config = settings.model
    crop = "x".join(map(str, reversed(config.image_size)))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        f"# {settings.name}",
        "",
        "| | |",
        "| --- | --- |",
        f"| Autoencoder | `{config.autoencoder.name}` |",
        *([] if config.in_channels == 3 else [f"| Channels | {config.in_channels} |"]),
        f"| Codebook | {config.vocab_size} vectors of {config.z_channels} channels, one for all scales |",
        f"| Schedule | {schedules.describe(config.patch_nums)}: "
        f"{counted(schedules.token_count(config.patch_nums), 'token')} for {crop} pixels |",
        f"| Licence | {settings.license or 'not stated'} |",
        "",
        "## Training",
        "",
        f"`vartok train` of vartok {version('vartok')}, torch {torch.__version__}: {counted(step, 'step')} "
        f"of {counted(settings.data.batch_size, 'crop')} of {crop} pixels in {seconds / 60:.1f} minutes, "
        f"on {processes} process{'es' * (processes > 1)} ({device.type}, {machine}), "
        f"networks in {precision}. {_begun(origin, settings.start.keep_tokens)}",
        "",
        "```toml",
        dump_settings(settings).rstrip(),
        "```",
    ]
    if validation is not None:
        lines += ["", "## Figures", "", *_figures(settings, validation, origin)]
    return "\n".join(lines) + "\n"


def _begun(origin: Origin | None, keep_tokens: bool) -> str:
    """Return sentences that say where the initial weights came from, and which part was not trained."""
    if origin is None:
        return "Trained from scratch."
    begun = f"Fine-tuned from {origin.name}, fingerprint {origin.fingerprint}."
    kept = f" Encoder, codebook and phis are those of {origin.name}: pictures keep their tokens."
    return begun + kept * keep_tokens


def _figures(settings: TrainSettings, validation: Validation, origin: Origin | None) -> list[str]:
    """Return the lines on quality and usage; of a fine-tuned checkpoint, also on its quality before."""
    config = settings.model
    crop = "x".join(map(str, reversed(config.image_size)))
    before = origin.validation if origin is not None else None
    lines = [
        f"On {counted(validation.pictures, 'picture')} held out of the training data, scaled to cover and "
        f"cut to their centre, {crop} pixels; PSNR of rounded pixels, mean over pictures: "
        f"{_quality(validation)}. Codes used there: {validation.total_used} of {config.vocab_size}.",
        "",
        "| scale | grid | codes used | perplexity |",
        "| --- | --- | --- | --- |",
        *(
            f"| {k + 1} | {h}x{w} | {validation.used[k]} | {validation.perplexity[k]:.0f} |"
            for k, (h, w) in enumerate(config.patch_nums)
        ),
    ]
    if before is not None and origin is not None:
        lines += [
            "",
            f"Before fine-tuning, {origin.name} on the same pictures: {_quality(before)}, "
            f"{counted(before.total_used, 'code')} used.",
        ]
    return lines


def _quality(validation: Validation) -> str:
    """Return PSNR, and the perceptual distance if it was measured."""
    distance = validation.perceptual
    return f"{validation.psnr:.2f} dB" + ("" if distance is None else f", perceptual distance {distance:.3f}")
