"""The state of a run: everything that training changes. It is saved in state.pt, and restored from it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vartok.errors import OutputError, TrainError, one_line
from vartok.files import open_output
from vartok.models.vqvae import VQVAE
from vartok.schedule import token_count
from vartok.train.adversary import Adversary
from vartok.train.codebook import EMACodebook
from vartok.train.data import StreamPosition
from vartok.train.distributed import Processes, adam_kernels, load_adam_state
from vartok.train.folder import STATE
from vartok.train.frozen import freeze_tokens
from vartok.train.objective import TrainingModel, parameter_groups
from vartok.train.progress import Validation
from vartok.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that a run fine-tunes.

    Attributes:
        name: name of the checkpoint.
        fingerprint: fingerprint of its quantizer, as in token files.
        validation: quality of the checkpoint before training; None if no picture is held out.
    """

    name: str
    fingerprint: str
    validation: Validation | None


@dataclass
class TrainingState:
    """Networks, optimizers and counters of a run.

    Attributes:
        model: the model that is trained, with its losses.
        ema_model: EMA of the weights, which is validated and exported.
        codebook: EMA of the codebook and of its usage.
        optimizer: AdamW for `model`.
        adversary: discriminator with its optimizer; None if the run has no adversarial loss.
        parallel_model: `model` in accelerate's wrapper for several processes and mixed precision.
        parallel_optimizer: `optimizer` in accelerate's wrapper.
        origin: the checkpoint that is fine-tuned; None if training began from scratch.
        step: number of optimizer steps done.
        position: position in this process's stream of pictures.
        seconds: time of all earlier sessions, in seconds.
        replaced_codes: number of dead codes re-initialised so far, a scalar int64 on the model's device, so
            that counting does not wait for the device.
        peak_perplexity: largest perplexity of the codebook so far; 0 in the first steps, when the EMA of its
            usage still remembers the start.
        log_mse_factor: factor of the weight of `log_mse`, see `follow_target`.
    """

    model: TrainingModel
    ema_model: VQVAE
    codebook: EMACodebook
    optimizer: torch.optim.AdamW
    adversary: Adversary | None
    parallel_model: Any
    parallel_optimizer: Any
    replaced_codes: Tensor
    origin: Origin | None = None
    step: int = 0
    position: StreamPosition = field(default_factory=StreamPosition)
    seconds: float = 0.0
    peak_perplexity: float = 0.0
    log_mse_factor: float = 1.0


def create_state(
    model: VQVAE,
    anchor: nn.Module,
    settings: TrainSettings,
    processes: Processes,
    feature_channels: Sequence[int] = (),
) -> TrainingState:
    """Create the state of a run at step 0; every process gets the weights of the main process.

    Args:
        model: model with initialised weights, on the process's device.
        anchor: frozen network for the loss `latent_anchor`, see `TrainingModel`.
        settings: settings of the run.
        processes: processes of the run.
        feature_channels: channels of the features for a projected discriminator, at every depth.
    """
    config, rates = settings.model, settings.optimizer
    training_model = TrainingModel(model, anchor, config.patch_nums)
    training_model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_tokens = settings.start.keep_tokens
    by_gradient = settings.quantizer.codebook == "gradient" and not keep_tokens
    if keep_tokens:
        freeze_tokens(model)
    groups = parameter_groups(model, rates.lr, rates.encoder_lr, train_codebook=by_gradient)
    kernels = adam_kernels(processes.device)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=rates.weight_decay, **kernels)
    adversary = None
    if settings.loss.adversarial:
        seen = feature_channels if settings.loss.adversarial_net == "projected" else ()
        adversary = Adversary(processes.accelerator, rates.lr, config.in_channels, seen)
    parallel_model, parallel_optimizer = processes.accelerator.prepare(training_model, optimizer)
    tokens = [token_count([grid]) for grid in config.patch_nums]
    return TrainingState(
        model=training_model,
        ema_model=copy.deepcopy(model).requires_grad_(False).eval(),
        codebook=EMACodebook(model.quantize, tokens, settings.quantizer, settings.data.batch_size),
        optimizer=optimizer,
        adversary=adversary,
        parallel_model=parallel_model,
        parallel_optimizer=parallel_optimizer,
        replaced_codes=torch.zeros((), dtype=torch.int64, device=processes.device),
    )


def save_state(
    run: Path,
    state: TrainingState,
    *,
    positions: Sequence[Sequence[int]],
    seconds: float,
    pictures: int,
) -> None:
    """Write the state to the run's folder.

    Args:
        run: folder of the run.
        state: state to save, except its `seconds` and `position`.
        positions: position of every stream of pictures, as (epoch, offset), see `Pictures.streams`.
        seconds: time of the run so far in seconds, over all sessions.
        pictures: `Pictures.fingerprint` of the training pictures.

    Raises:
        TrainError: a weight is not finite. A state saved earlier is kept.
        OutputError: the state cannot be written. A state saved earlier is kept.
    """
    adversary = None if state.adversary is None else state.adversary.state_dict()
    networks: list[dict[str, Tensor]] = [
        state.model.state_dict(),
        state.ema_model.state_dict(),
        {"sums": state.codebook.sums},
    ]
    if adversary is not None:
        networks.append(adversary["network"])
    if not all(bool(tensor.isfinite().all()) for network in networks for tensor in network.values()):
        raise diverged(run, state.step)
    saved = {
        "pictures": pictures,
        "step": state.step,
        "positions": [tuple(position) for position in positions],
        "seconds": seconds,
        "replaced_codes": int(state.replaced_codes),
        "peak_perplexity": state.peak_perplexity,
        "log_mse_factor": state.log_mse_factor,
        "origin": None if state.origin is None else dataclasses.asdict(state.origin),
        "model": state.model.state_dict(),
        "ema_model": state.ema_model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "usage": state.codebook.usage,
        "sums": state.codebook.sums,
        "adversary": adversary,
    }
    try:
        with open_output(run / STATE, overwrite=True) as file:
            torch.save(saved, file)
    except RuntimeError as error:  # torch.save turns an OSError into one
        raise OutputError(f"cannot write {run / STATE}: {one_line(error)}") from None


def read_state(run: Path) -> dict[str, Any]:
    """Return the values that `save_state` wrote, by name, with tensors on the CPU.

    Raises:
        TrainError: the run's folder has no state, or the file is not a state.
    """
    path = run / STATE
    if not path.is_file():
        raise TrainError(f"{run} holds no state of a run to resume")
    try:
        # weights_only: torch loads only tensors and plain containers, so that the file can run no code.
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly every type on a damaged file
        raise TrainError(f"{path} is not a run's state ({one_line(error)})") from None
    return saved


def restore_state(
    run: Path, state: TrainingState, saved: dict[str, Any], settings: TrainSettings
) -> list[StreamPosition]:
    """Load the values of `read_state` into a state. Learning rates and weight decay come from the settings.

    Returns:
        The position of every stream of pictures; the caller sets `position`.

    Raises:
        TrainError: a value is missing, or does not fit the state, as after a run with other networks.
    """
    try:
        state.model.load_state_dict(saved["model"])
        state.ema_model.load_state_dict(saved["ema_model"])
        load_adam_state(state.optimizer, saved["optimizer"])
        state.codebook.usage.copy_(saved["usage"])
        state.codebook.sums.copy_(saved["sums"])
        if state.adversary is not None:
            state.adversary.load_state_dict(saved["adversary"])
        state.step, state.seconds = saved["step"], saved["seconds"]
        positions = [StreamPosition(*one) for one in saved.get("positions") or [saved["position"]]]
        state.replaced_codes.fill_(saved["replaced_codes"])
        state.peak_perplexity = saved["peak_perplexity"]
        state.log_mse_factor = saved.get("log_mse_factor", 1.0)  # earlier versions had no target
        state.origin = _origin(saved["origin"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainError(f"{run / STATE} does not fit this run's settings ({one_line(error)})") from None
    rates = settings.optimizer
    for group, lr in zip(state.optimizer.param_groups, (rates.lr, rates.encoder_lr), strict=True):
        group["base_lr"], group["weight_decay"] = lr, rates.weight_decay
    return positions


def diverged(run: Path, step: int) -> TrainError:
    """Return the error for a loss or a weight that is not finite."""
    kept = f"; {run / STATE} holds the last good state" * (run / STATE).exists()
    return TrainError(
        f"training diverged at step {step}: the loss or a weight is not finite{kept}",
        hint="set `lr` lower, and [optimizer] encoder_lr too",
    )


def _origin(saved: dict[str, Any] | None) -> Origin | None:
    if saved is None:
        return None
    validation = saved["validation"]
    if validation is not None:
        validation = Validation(**validation)
    return Origin(name=saved["name"], fingerprint=saved["fingerprint"], validation=validation)
