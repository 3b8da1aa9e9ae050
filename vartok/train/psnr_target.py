"""The weight of `log_mse`, which follows a target: how much PSNR a run may give up for looks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vartok.errors import TrainError
from vartok.images import to_tensor
from vartok.images.tensors import Pixels
from vartok.train.distributed import Processes
from vartok.train.settings import TrainSettings
from vartok.train.state import TrainingState

EVERY = 200  # steps
GAIN = 1.5  # change of the weight's logarithm for every dB between PSNR and target
MAX_CHANGE = 0.15  # largest change of the weight's logarithm
RANGE = (1 / 16, 4.0)  # of the factor of the weight


def target_psnr(state: TrainingState, settings: TrainSettings, pictures: Sequence[Pixels]) -> float | None:
    """Return the PSNR that the validation pictures should have, in dB; None if there is no target.

    Args:
        state: state of the run, which holds the PSNR of the checkpoint that it fine-tunes.
        settings: settings of the run.
        pictures: the validation pictures.

    Raises:
        TrainError: there are none, now or when the run began.
    """
    drop = settings.loss.target_psnr_drop
    if drop is None:
        return None
    if state.origin is None or state.origin.validation is None or not pictures:
        raise TrainError(
            "[loss] target_psnr_drop needs the PSNR of the checkpoint that is fine-tuned and that of the "
            "run, and no picture is held out to measure them",
            hint="add pictures, raise [data] val_fraction, or leave target_psnr_drop out",
        )
    return state.origin.validation.psnr - drop


@torch.no_grad()
def follow_target(
    state: TrainingState, settings: TrainSettings, processes: Processes, pictures: Sequence[Pixels]
) -> None:
    """Every `EVERY` steps, raise the weight of `log_mse` if PSNR is below the target, and lower it if above.

    PSNR is that of the weights in training, not of their EMA, which lags behind: the weight would swing.

    Args:
        state: state of the run; its `log_mse_factor` is changed.
        settings: settings of the run.
        processes: processes of the run; the main process measures.
        pictures: validation pictures, arrays [H, W, C] of one size; used in the main process.
    """
    if settings.loss.target_psnr_drop is None or state.step % EVERY:
        return
    change = 0.0
    if processes.is_main:
        target = target_psnr(state, settings, pictures)
        assert target is not None
        change = GAIN * (target - _psnr(state, processes, pictures, settings.data.batch_size))
    factor = state.log_mse_factor * math.exp(processes.from_main(max(-MAX_CHANGE, min(MAX_CHANGE, change))))
    state.log_mse_factor = max(RANGE[0], min(RANGE[1], factor))


def _psnr(state: TrainingState, processes: Processes, pictures: Sequence[Pixels], size: int) -> float:
    """Return the mean PSNR of pictures, in dB, in batches of `size` and in the precision of training."""
    total = 0.0
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        images = torch.cat([to_tensor(pixels[None]) for pixels in batch]).to(processes.device)
        with processes.accelerator.autocast():
            out = state.model(images, encoder_warmup=False)
        squared = (out.reconstruction.float().clamp(-1, 1) - images).square().mean((1, 2, 3))
        total += float((10 * torch.log10(4 / squared.clamp(min=1e-10))).sum())
    return total / len(pictures)
