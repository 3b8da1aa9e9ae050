"""One training step: gradient update, EMA of the weights, dead codes, and the check for divergence."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from vartok.errors import TrainError
from vartok.train.adversary import adaptive_weight
from vartok.train.distributed import Processes
from vartok.train.objective import latent_loss, reconstruction_loss, visible_cells
from vartok.train.perceptual import PerceptualNetworks, perceptual_distance, random_window
from vartok.train.settings import OptimizerSettings, TrainSettings
from vartok.train.state import TrainingState, diverged

REPLACE_UNTIL = 0.95  # share of the run; usage falls after it, but new codes need time to settle
COLLAPSED = 0.1  # share of the peak perplexity below which training has failed


def training_step(
    state: TrainingState,
    settings: TrainSettings,
    processes: Processes,
    images: Tensor,
    networks: PerceptualNetworks,
    fraction: float,
) -> dict[str, Tensor]:
    """Update the weights, the discriminator and the codebook.

    Args:
        state: state of the run, changed in place; the caller updates `step` and `ema_model`.
        settings: settings of the run.
        processes: processes of the run.
        images: [B, C, H, W] float32 in [-1, 1], this process's part of the batch, on its device.
        networks: networks of the losses, on the images' device.
        fraction: fraction of the run that is done, in [0, 1]; it sets the learning rate.

    Returns:
        This process's scalars by name: "loss", "psnr" in dB, "commitment" and "latent_anchor"; of losses
        that are used, also "perceptual", "generator" and "discriminator".
    """
    weights = settings.loss
    weights = dataclasses.replace(weights, log_mse=weights.log_mse * state.log_mse_factor)
    _set_learning_rates(state, settings.optimizer, fraction)
    out = state.parallel_model(images, state.step < settings.optimizer.encoder_warmup_steps)
    cells, values = visible_cells(settings.model), {}
    loss, squared = reconstruction_loss(out.reconstruction, images, weights, cells, networks.lpips)
    adversary = state.adversary if state.step >= weights.adversarial_start else None
    if weights.perceptual or adversary is not None:
        window = random_window(images.shape[2:], settings.run.seed, state.step)
        with processes.accelerator.autocast():
            real, fake = networks.views(images, out.reconstruction, window)
    if weights.perceptual:
        values["perceptual"] = perceptual_distance(real.features, fake.features)
        loss = loss + weights.perceptual * values["perceptual"]
    total = loss + latent_loss(out, weights)
    if adversary is not None:
        values["generator"] = generator = adversary.generator_loss(real, fake)
        ramp = min(1.0, (state.step - weights.adversarial_start) / max(1, weights.adversarial_ramp))
        weight = weights.adversarial * (ramp if weights.adversarial_ramp else 1.0)
        if weights.adversarial_adaptive:
            generator = adaptive_weight(loss, generator, out.reconstruction) * generator
        total = total + weight * generator
    processes.accelerator.backward(total)
    processes.accelerator.clip_grad_norm_(state.model.parameters(), settings.optimizer.grad_clip)
    state.parallel_optimizer.step()
    state.parallel_optimizer.zero_grad()
    if adversary is not None:
        values["discriminator"] = adversary.discriminator_step(real, fake)
    if settings.start.keep_tokens:
        state.codebook.update_usage(out.maps, processes.mean)
    else:
        state.codebook.update(out.scales, processes.mean)
    return {
        "loss": total.detach(),
        "psnr": (10 * torch.log10(4 / squared.clamp(min=1e-10))).mean(),
        "commitment": out.commitment.detach(),
        "latent_anchor": out.latent_anchor.detach(),
        **{name: value.detach() for name, value in values.items()},
    }


def _set_learning_rates(state: TrainingState, settings: OptimizerSettings, fraction: float) -> None:
    factor = min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
    if settings.decay_fraction:
        factor *= min(1.0, max(0.0, (1 - fraction) / settings.decay_fraction))
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@torch.no_grad()
def update_ema(state: TrainingState, decay: float) -> None:
    """Update the EMA of the weights. The first steps have a smaller decay, to forget the initial weights."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    pairs = list(zip(state.ema_model.parameters(), state.model.model.parameters(), strict=True))
    torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - decay)


@torch.no_grad()
def replace_dead_codes(
    state: TrainingState, settings: TrainSettings, processes: Processes, fraction: float
) -> None:
    """Re-initialise dead codes every `replace_every` steps, also in the EMA of the weights.

    AdamW's moments of these codes become zero: they belong to the codes that died.

    Nothing is done if tokens are kept, if the threshold is 0, or from the fraction `REPLACE_UNTIL` of the run
    on.
    """
    threshold = settings.quantizer.dead_code_threshold
    if settings.start.keep_tokens or not threshold or fraction >= REPLACE_UNTIL:
        return
    if state.step % state.codebook.replace_every == 0:
        seed = settings.run.seed * 1_000_003 + state.step
        replaced = state.codebook.replace_dead_codes(seed, processes.gather)
        codes = state.model.model.quantize.embedding.weight
        averages = state.ema_model.quantize.embedding.weight
        averages.copy_(torch.where(replaced[:, None], codes, averages))
        moments = state.optimizer.state.get(codes, {})  # of a codebook that is trained by gradient
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                moments[name].masked_fill_(replaced[:, None], 0)
        state.replaced_codes += replaced.sum()


def check_health(run: Path, state: TrainingState, settings: TrainSettings, loss: float) -> None:
    """Check that training works, and update `peak_perplexity`.

    Raises:
        TrainError: the loss is not finite, or the codebook has collapsed.
    """
    if not math.isfinite(loss):
        raise diverged(run, state.step)
    perplexity = state.codebook.total_perplexity()
    if state.step * (1 - settings.quantizer.codebook_ema_decay) > 3:  # the EMA has forgotten its start
        state.peak_perplexity = max(state.peak_perplexity, perplexity)
    if perplexity < COLLAPSED * state.peak_perplexity:
        raise TrainError(
            f"the codebook has collapsed at step {state.step}: its perplexity fell from "
            f"{state.peak_perplexity:.0f} to {perplexity:.0f}",
            hint="set [optimizer] encoder_lr lower, or [loss] latent_anchor higher",
        )
