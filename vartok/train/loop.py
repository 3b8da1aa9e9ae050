"""The training run, from pictures to an exported checkpoint. `_train` is the whole run, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vartok.errors import OutputError, TrainError, counted
from vartok.files import write_bytes
from vartok.images import scale_levels, to_levels
from vartok.models.cpu import PaddedLookup
from vartok.models.vqvae import VQVAE
from vartok.optional import require
from vartok.parallel import is_out_of_memory, map_ordered
from vartok.reports.gallery import Gallery
from vartok.runtime import pin_for, to_device
from vartok.train.card import describe
from vartok.train.data import Batch, Pictures, StreamPosition
from vartok.train.distributed import Processes
from vartok.train.event_log import EventLog
from vartok.train.folder import CARD, SAMPLES, SETTINGS, prepare_folder
from vartok.train.frozen import FROZEN_NOTE, FrozenTokens
from vartok.train.history import History, write_report
from vartok.train.kmeans import Deadline
from vartok.train.perceptual import PerceptualNetworks
from vartok.train.progress import Event, Meter, Progress
from vartok.train.psnr_target import follow_target, target_psnr
from vartok.train.settings import RunSettings, TrainSettings
from vartok.train.settings_file import dump_settings
from vartok.train.start import LinearTransform, checkpoint_anchor, start_from_checkpoint, start_from_pictures
from vartok.train.state import (
    Origin,
    create_state,
    read_state,
    restore_state,
    save_state,
)
from vartok.train.step import check_health, replace_dead_codes, training_step, update_ema
from vartok.train.unused import unused_settings
from vartok.train.validation import as_tokenizer, export_weights, validate, write_sample

PACKAGES = ("accelerate", "tensorboard", "torchmetrics")
START_FRACTION = 0.25  # largest share of the time limit that initialisation may take
REPORT_EVERY = 10  # steps; a report waits for the device and for all processes


def train(
    settings: TrainSettings,
    sources: str | Path | Sequence[str | Path],
    run: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 1,
    report: Callable[[Event], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train a tokenizer, and export it as `run`/weights.safetensors.

    Under `accelerate launch` every process calls this function; only the main process writes and reports.

    Args:
        settings: settings of the run, see `read_settings`.
        sources: folders, tar shards, lists (.txt) and picture files; one or several.
        run: folder of the run; created if it does not exist.
        resume: continue the run whose state `run` holds. If False, `run` must not hold a run.
        device: as for `vartok.load`: "auto", "cpu", "cuda", ...
        workers: number of threads per process that read pictures.
        report: called with every event: progress, a validation, or a note.
        should_stop: called after every step. If it returns True in any process, the run ends after its
            state and its checkpoint are saved; several processes end after the next tenth step.

    Returns:
        True if the run is complete, False if `should_stop` ended it earlier.

    Raises:
        TrainError: the run cannot start (`run` holds a run already, or none to resume; the batch size does
            not suit the processes), or fails (unreadable pictures, divergence, too little memory or time).
        SourceError: a source does not exist or cannot be searched, or there are no pictures.
        OutputError: a file of the run cannot be written.
        DeviceError: this machine has no such device.
        CheckpointError: the checkpoint to fine-tune is missing, or vartok cannot run it.
        VartokError: a package or LPIPS's weights are missing.
    """
    check_packages()
    run = Path(run)
    existed = run.exists()
    try:
        given = [sources] if isinstance(sources, (str, Path)) else sources
        return _train(settings, given, run, resume, device, workers, report=report, should_stop=should_stop)
    except BaseException as error:
        if not existed:
            with contextlib.suppress(OSError):  # a run that saved something is not empty, and stays
                run.rmdir()
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise TrainError(
                f"batches of {settings.data.batch_size} pictures do not fit into memory",
                hint="set `batch_size` lower",
            ) from None
        raise


def _train(
    settings: TrainSettings,
    sources: Sequence[str | Path],
    run: Path,
    resume: bool,
    device: str,
    workers: int,
    *,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> bool:
    begin = time.monotonic()
    settings = dataclasses.replace(settings, name=settings.name or run.resolve().name)

    # ------------------------------------------------------------------------------------------------
    # Pictures, processes, folder

    pictures = Pictures(
        sources,
        settings.data,
        settings.model.image_size,
        settings.run.seed,
        channels=settings.model.in_channels,
        exclude=run / SAMPLES,
    )
    networks = PerceptualNetworks.load(settings.loss)
    processes = Processes(device, settings.run.precision)
    networks.to(processes.device)
    if not processes.is_main:
        report = lambda _: None  # noqa: E731
    if processes.device.type == "cuda" and processes.precision == "float32":
        report(f"networks in {processes.describe_precision()}")
    _check_batch_size(settings.data.batch_size, processes.world_size)
    prepare_folder(run, resume)
    validation_pictures = pictures.held_out(workers) if processes.is_main else []
    if not validation_pictures:
        report(
            "no validation: no readable picture is held out; add pictures, or raise [data] val_fraction in a "
            "settings file, given by `preset`"
        )
    for note in unused_settings(settings):
        report(note)

    # ------------------------------------------------------------------------------------------------
    # Initial weights: from a saved state, a checkpoint, or computed from the pictures

    torch.manual_seed(settings.run.seed)
    model = VQVAE(settings.model).to(processes.device)
    if processes.device.type == "cpu":
        model.quantize.lookup_class = PaddedLookup  # on a CPU torch's own argmin takes ten times as long
    anchor: nn.Module
    origin = None
    saved = read_state(run) if resume else None
    if saved is not None:
        fine_tuned = bool(settings.start.weights)
        anchor = checkpoint_anchor(model, settings) if fine_tuned else LinearTransform.empty(settings.model)
        anchor.to(processes.device)
    elif settings.start.weights:
        checkpoint = start_from_checkpoint(model, settings)
        for note in checkpoint.notes:
            report(f"{settings.start.weights}: {note}")
        report(f"fine-tuning {checkpoint.name}")
        if settings.start.keep_tokens:
            report(FROZEN_NOTE)
        anchor = checkpoint_anchor(model, settings)
        tokenizer = as_tokenizer(model, settings, processes.device)
        before = None
        if validation_pictures:
            before, _ = validate(tokenizer, validation_pictures, step=0, features=networks.features)
            report(before)
        origin = Origin(name=checkpoint.name, fingerprint=tokenizer.fingerprint, validation=before)
        # settings.toml and the card give the checkpoint's name, not its path on this machine.
        start = dataclasses.replace(settings.start, weights=checkpoint.name)
        settings = dataclasses.replace(settings, start=start)
    else:
        minutes = settings.run.minutes
        limit = Deadline(math.inf if minutes is None else begin + START_FRACTION * 60 * minutes)
        anchor, summary = start_from_pictures(
            model, pictures, settings, processes.device, workers=workers, deadline=limit, report=report
        )
        report(summary)

    feature_channels = [] if networks.features is None else networks.features.channels
    state = create_state(model, anchor, settings, processes, feature_channels)
    state.origin = origin
    if saved is not None:
        positions = restore_state(run, state, saved, settings)
        streams = pictures.streams(processes.world_size)
        if len(positions) == streams:
            state.position = positions[processes.rank % streams]
        else:
            state.position = StreamPosition(max(position.epoch for position in positions) + 1)
            report("other processes share the shards than before: a new epoch of the pictures begins")
        if saved["pictures"] != pictures.fingerprint:
            report("the pictures differ from those that the run began with: their order changes too")
    if settings.start.keep_tokens:
        state.model.frozen = FrozenTokens(model, settings.model.patch_nums)
    if processes.is_main:
        target = target_psnr(state, settings, validation_pictures)
        if target is not None:
            report(f"[loss] log_mse follows {target:.2f} dB on validation pictures")

    # ------------------------------------------------------------------------------------------------
    # Length of the run

    def seconds() -> float:
        return state.seconds + time.monotonic() - begin

    def fraction_done() -> float:
        return processes.from_main(_fraction_done(settings.run, state.step, seconds()))

    fraction = fraction_done()
    if fraction >= 1 and not state.step:
        raise TrainError(
            f"nothing was trained: the run's {settings.run.minutes} minutes ended before its first step",
            hint="set `minutes` higher",
        )
    if fraction >= 1:
        done = f"{counted(state.step, 'step')} and {seconds() / 60:.1f} minutes, validations included"
        report(f"nothing to train: the run has {done}; to go on, raise [run] steps or minutes above these")
    if processes.is_main:
        write_bytes(run / SETTINGS, dump_settings(settings).encode(), overwrite=True)
    log = EventLog(run) if processes.is_main else None
    history = (
        History.read(run, state.step, len(settings.model.patch_nums)) if saved is not None else History()
    )

    shown: Gallery | None = None  # the pictures of the report

    def save_and_validate(*, running: bool) -> None:
        nonlocal shown
        position = torch.tensor([dataclasses.astuple(state.position)], device=processes.device)
        positions = processes.gather(position)[: pictures.streams(processes.world_size)].tolist()
        if processes.is_main:
            save_state(run, state, positions=positions, seconds=seconds(), pictures=pictures.fingerprint)
            validation, gallery = None, Gallery()
            if validation_pictures:
                tokenizer = as_tokenizer(state.ema_model, settings, processes.device)
                validation, sample = validate(
                    tokenizer, validation_pictures, state.step, gallery, networks.features
                )
                write_sample(run, sample, state.step)
                report(validation)
                history.add(validation)
                if log is not None:
                    log.add(state.step, **{"validation/psnr": validation.psnr})
                    used = {f"validation/used_{k:02}": float(n) for k, n in enumerate(validation.used)}
                    log.add(state.step, **{"validation/used": float(validation.total_used)}, **used)
            export_weights(run, state.ema_model, settings)
            card = describe(
                settings,
                step=state.step,
                seconds=seconds(),
                processes=processes.world_size,
                device=processes.device,
                precision=processes.describe_precision(),
                validation=validation,
                origin=state.origin,
            )
            write_bytes(run / CARD, card.encode(), overwrite=True)
            write_report(run, history, gallery, settings, step=state.step, seconds=seconds(), running=running)
            shown = gallery
        processes.wait()

    # ------------------------------------------------------------------------------------------------
    # Steps

    batches = pictures.batches(
        settings.data.batch_size // processes.world_size,
        state.position,
        rank=processes.rank,
        world_size=processes.world_size,
        workers=workers,
    )
    meter, saved_at, stopping = Meter(), state.step, False
    unreadable: set[str] = set()  # lines that this process knows; the main process reported them
    news: list[str] = []  # those of this process since the last report

    def name_unreadable(lines: Sequence[str]) -> list[str]:
        fresh = [line for line in dict.fromkeys(lines) if line not in unreadable]
        for line in fresh:
            report(line)
        unreadable.update(fresh)
        return fresh

    to_device = _BatchMover(processes.device)
    try:
        for batch, images in map_ordered(to_device, batches, workers=1, limit=2):
            if fraction >= 1:
                break
            values = training_step(state, settings, processes, images, networks, fraction)
            state.step += 1
            state.position = batch.after
            update_ema(state, settings.optimizer.ema_decay)
            replace_dead_codes(state, settings, processes, fraction)
            follow_target(state, settings, processes, validation_pictures)
            news += name_unreadable(batch.unreadable)
            meter.add(values, len(images) * processes.world_size)
            # Between reports several processes do not wait for each other, nor for their devices.
            polled = processes.world_size == 1 or state.step % REPORT_EVERY == 0
            fraction = fraction_done() if polled else max(fraction, state.step / settings.run.steps)
            if state.step % REPORT_EVERY == 0 or fraction >= 1:
                means = meter.means(processes.mean)
                if processes.any(bool(news)):
                    for lines in processes.gather_objects(news):
                        name_unreadable(lines)
                news.clear()
                check_health(run, state, settings, means["loss"])
                progress = Progress(
                    step=state.step,
                    fraction=fraction,
                    seconds=seconds(),
                    loss=means["loss"],
                    psnr=means["psnr"],
                    perplexity=tuple(state.codebook.perplexity().tolist()),
                    replaced_codes=int(state.replaced_codes),
                    images_per_second=meter.images_per_second(),
                    unreadable=len(unreadable),
                )
                report(progress)
                history.add(progress)
                if log is not None:
                    log.add_progress(progress, means, state)
                meter = Meter()
            stopping = should_stop() or stopping
            if polled and processes.any(stopping):
                break
            if fraction < 1 and state.step - saved_at >= settings.run.val_every:
                save_and_validate(running=True)
                meter, saved_at = Meter(), state.step
        save_and_validate(running=False)
    except BaseException:
        if shown is not None:  # else browsers load the page of a running run again every minute, for good
            with contextlib.suppress(OutputError):
                write_report(run, history, shown, settings, step=state.step, seconds=seconds(), running=False)
        raise
    finally:
        if log is not None:
            log.close()
    batches.close()  # ends the threads that add findings
    for findings in processes.gather_objects(pictures.findings):
        pictures.findings.update(findings)
    if processes.is_main:
        pictures.findings.warn()
    return fraction >= 1


def check_packages() -> None:
    """Check that the optional packages for training are installed.

    Raises:
        VartokError: a package is missing.
    """
    require(*PACKAGES, extra="train", purpose="training")


def _check_batch_size(batch_size: int, world_size: int) -> None:
    if batch_size % world_size:
        raise TrainError(
            f"a batch of {batch_size} pictures cannot be divided evenly among {world_size} processes",
            hint=f"set `batch_size` to a multiple of {world_size}",
        )


def _fraction_done(run: RunSettings, step: int, seconds: float) -> float:
    """Return the larger of two fractions, in [0, 1]: of the steps done, and of the minutes passed."""
    fraction = step / run.steps
    if run.minutes is not None:
        fraction = max(fraction, seconds / (60 * run.minutes))
    return min(1.0, fraction)


class _BatchMover:
    """Maps a batch to the batch and its images on the device, [B, C, H, W] float32 in [-1, 1].

    A thread calls it for the next batch while the device computes a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, batch: Batch) -> tuple[Batch, Tensor]:
        levels = to_device(pin_for(self._device, to_levels(batch.pixels)), self._device)
        return batch, scale_levels(levels).contiguous(memory_format=torch.channels_last)
