"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vartok.checkpoints import Checkpoint, write_checkpoint
from vartok.codebook import count_codes, describe_usage
from vartok.errors import TrainError, one_line
from vartok.files import atomic_write
from vartok.images import encode_picture, to_pixels, to_tensor
from vartok.metrics import load_lpips, psnr
from vartok.models.vqvae import VQVAE
from vartok.parallel import is_out_of_memory, map_ordered
from vartok.schedule import token_count
from vartok.tokenizer import Tokenizer
from vartok.train.adversary import Adversary
from vartok.train.card import Validation, describe
from vartok.train.data import Batch, Pictures, Place
from vartok.train.objective import TrainingModel, latent_loss, parameter_groups, reconstruction_loss
from vartok.train.settings import TrainSettings, read_start
from vartok.train.start import (
    LinearTransform,
    principal_components,
    start_as_var,
    start_light,
    start_quantizer,
)
from vartok.train.upkeep import EMACodebook

STATE, SETTINGS, SAMPLES, LOGS = "state.pt", "settings.toml", "samples", "log"
WEIGHTS, CARD = "weights.safetensors", "weights.md"
"""What a run's folder holds."""

PACKAGES = ("accelerate", "tensorboard", "torchmetrics", "webdataset")
REPORT_EVERY = 10  # steps: what is reported is read off the device, which waits for it
RESTART_UNTIL = 0.95  # of the run; use falls again where it ends sooner, and new codes need time to settle
SHOWN = 8  # pictures in a sample
COLLAPSED = 0.1  # of the largest perplexity so far: below it, training has gone wrong


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is; means over the steps since the last report.

    Attributes:
        step: steps done.
        share: of the run that is done, in [0, 1].
        seconds: that the run has taken so far, over all sessions.
        loss: what is minimised.
        psnr: of the crops trained on, in dB.
        perplexity: of every scale's use of the codebook, a moving average.
        restarted: codes that were dead and started anew.
        images_per_second: over all processes.
        unreadable: pictures that could not be read, since training was begun or resumed.
    """

    step: int
    share: float
    seconds: float
    loss: float
    psnr: float
    perplexity: tuple[float, ...]
    restarted: int
    images_per_second: float
    unreadable: int


def check_packages() -> None:
    """Check that what training needs besides vartok is installed.

    Raises:
        TrainError: it is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainError(f"training needs {', '.join(missing)}: pip install 'vartok[train]'")


def train(
    settings: TrainSettings,
    sources: Sequence[str | Path],
    run: Path,
    *,
    resume: bool = False,
    cpu: bool = False,
    workers: int = 1,
    report: Callable[[Progress | Validation | str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train a tokenizer, and export it as `run`/weights.safetensors.

    Started by `accelerate launch`, every process calls this; the first one writes and reports.

    Args:
        settings: of the run.
        sources: folders, tar shards and files of pictures.
        run: the folder that the run is kept in; made if it does not exist.
        resume: go on from the state that `run` holds.
        cpu: on the CPU, whatever else is there.
        workers: threads that read pictures, in each process.
        report: is told how it goes; texts are notes.
        should_stop: asked after every step; the run's state is saved before it ends.

    Returns:
        Whether the run is done; False if it was stopped.

    Raises:
        TrainError: no pictures, a folder that holds another run, training that went wrong, too little memory,
            or a run that cannot be written.
        VartokError: weights to begin with, or of LPIPS, that are wanted and not there.
    """
    check_packages()
    ours = not run.exists()
    try:
        return _Run(settings, sources, run, resume, cpu, workers, report, should_stop).go()
    except BaseException as error:
        if ours:
            with contextlib.suppress(OSError):  # something was saved
                run.rmdir()
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise TrainError(
                f"batches of {settings.data.batch_size} pictures do not fit into memory: use smaller ones"
            ) from None
        raise


class _Run:
    def __init__(
        self,
        settings: TrainSettings,
        sources: Sequence[str | Path],
        run: Path,
        resume: bool,
        cpu: bool,
        workers: int,
        report: Callable[[Progress | Validation | str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        self.begin = time.monotonic()
        self.settings, self.run, self.workers = settings, run, workers
        self.should_stop = should_stop
        self.pictures = Pictures(
            sources, settings.data, settings.model.image_size, settings.run.seed, without=run / SAMPLES
        )
        self.precision = "bf16" if takes_bf16(settings.run.precision, cpu) else "float32"
        self.lpips = load_lpips() if settings.loss.lpips else None
        # A schedule of few scales leaves phis without use.
        parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            self.accelerator = Accelerator(
                cpu=cpu,
                mixed_precision=self.precision.replace("float32", "no"),
                kwargs_handlers=[parallel],
            )
        except ValueError as error:  # bf16 on a GPU that has none
            raise TrainError(f"cannot train in {self.precision} here: {one_line(error)}") from None
        self.report = report if self.accelerator.is_main_process else lambda _: None
        self.device: torch.device = self.accelerator.device
        self.world: int = self.accelerator.num_processes
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.world:  # accelerate lets them be, each on its own
            raise TrainError(
                f"{started} processes were started that do not know each other: without a GPU add --cpu"
            )
        if settings.data.batch_size % self.world:
            raise TrainError(
                f"a batch of {settings.data.batch_size} pictures cannot be shared by {self.world} processes: "
                f"give --batch-size a multiple of {self.world}"
            )
        if not resume and ((run / STATE).is_file() or (run / WEIGHTS).is_file()):
            raise TrainError(f"{run} holds a run already: go on with it (--resume), or name another folder")
        if resume and not (run / STATE).is_file():
            raise TrainError(f"{run} holds no state of a run to resume")
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritten(run, error) from None

        self.validation = self.pictures.held_out(workers) if self.accelerator.is_main_process else []
        torch.manual_seed(settings.run.seed)
        self.step, self.place, self.spent = 0, Place(), 0.0
        self.restarted = 0
        self.unreadable: set[str] = set()
        self.healthy = 0.0  # the codebook's largest perplexity, once it has been measured
        self._build(self._read_state() if resume else None)
        if not self.validation:
            few = f"too few for one in {settings.data.hold_out} ([data] hold_out)"
            self.report(f"no picture is held out for validation: there are {few}")

    def _build(self, state: dict[str, Any] | None) -> None:
        settings = self.settings
        config = settings.model
        model = VQVAE(config).to(self.device)
        if state is None:
            target = self._start(model)
        elif settings.start.weights:
            target = _frozen_encoder(model)
        else:
            target = LinearTransform.empty(config).to(self.device)
        self.trainee = TrainingModel(model, target, config.patch_nums)
        self.trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        rates = settings.optimizer
        groups = parameter_groups(
            model, rates.rate, rates.encoder_rate, settings.quantizer.codebook == "gradient"
        )
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=rates.weight_decay)
        self.lpips = self.lpips and self.lpips.to(self.device).requires_grad_(False)
        self.adversary = Adversary(self.accelerator, rates.rate) if settings.loss.adversarial else None
        self.parallel, self.prepared = self.accelerator.prepare(self.trainee, self.optimizer)
        # From here on all processes have the same weights.
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        tokens = [token_count([grid]) for grid in config.patch_nums]
        self.upkeep = EMACodebook(model.quantize, tokens, settings.quantizer, settings.data.batch_size)
        if state is not None:
            self._restore(state)

    def _start(self, model: VQVAE) -> nn.Module:
        """Set the model up from a checkpoint, or a first look at the pictures; what latents are held to."""
        settings = self.settings
        config, start = settings.model, settings.start
        if start.weights:
            checkpoint = read_start(start.weights)
            if checkpoint.config != config:
                raise TrainError(f"{start.weights}: its configuration is not the run's [model]")
            model.load_state_dict(checkpoint.tensors)
            for note in checkpoint.notes:
                self.report(f"{start.weights}: {note}")
            self.report(f"going on from {checkpoint.name}")
            return _frozen_encoder(model)
        self.report(f"looking at {start.pictures:,} crops")
        stream = self.pictures.batches(min(64, start.pictures), Place(), workers=self.workers)
        crops = np.concatenate([next(stream).pixels for _ in range(-(-start.pictures // 64))])
        linear = principal_components(crops, config, self.device)
        if config.autoencoder == "light":
            start_light(model, linear)
        if start.rounds:
            parts = np.array_split(crops, -(-len(crops) // 64))
            latents = torch.cat([linear(to_tensor(part).to(self.device)) for part in parts])
            start_quantizer(
                model.quantize, latents, config.patch_nums, start.rounds, settings.run.seed, self.report
            )
        else:
            start_as_var(model.quantize, settings.run.seed)
        return linear

    def go(self) -> bool:
        """Train until the run is done or is stopped; whether it is done."""
        if self.accelerator.is_main_process:
            with self._written(SETTINGS) as file:
                file.write(self.settings.to_toml().encode())
        batches = self.pictures.batches(
            self.settings.data.batch_size // self.world,
            self.place,
            rank=self.accelerator.process_index,
            world=self.world,
            workers=self.workers,
        )
        saved = self.step
        meter = _Meter()
        share = self._share()
        if share >= 1:
            self.report(f"nothing to train: the run is as long as its settings say, {self.step:,} steps")
        for batch, images in map_ordered(self._to_device, batches, workers=1, limit=2):
            if share >= 1:
                break
            meter.add(self._train_step(batch, images, share), len(images) * self.world)
            share = self._share()
            if self.step % REPORT_EVERY == 0 or share >= 1:
                self._tell(meter, share)
                meter = _Meter()
            if self._agree(self.should_stop()):
                break
            if share < 1 and self.step - saved >= self.settings.run.validate_every:
                self.save()
                self.validate()
                saved = self.step
                meter = _Meter()
        self.save()
        self.validate()
        return share >= 1

    def _to_device(self, batch: Batch) -> tuple[Batch, Tensor]:
        images = to_tensor(batch.pixels)
        if self.device.type == "cuda":
            images = images.pin_memory()
            return batch, images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return batch, images.to(self.device, memory_format=torch.channels_last)

    def _train_step(self, batch: Batch, images: Tensor, share: float) -> dict[str, Tensor]:
        settings = self.settings
        self._set_rates(share)
        taught = self.step < settings.optimizer.taught
        out = self.parallel(images, taught)
        weights = settings.loss
        cell = settings.model.downsample
        loss, squared = reconstruction_loss(out.picture, images, weights, cell, self.lpips)
        total = loss + latent_loss(out, weights)
        judged = self.step >= weights.adversarial_start
        if self.adversary is not None and judged:
            total = total + weights.adversarial * self.adversary.opinion(images, out.picture, loss)
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), settings.optimizer.clip)
        self.prepared.step()
        self.prepared.zero_grad()
        if self.adversary is not None and judged:
            self.adversary.learn(images, out.picture)
        self.upkeep.observe(out.scales, self._mean)
        self.step += 1
        self.place = batch.after
        for text in batch.unreadable:
            if text not in self.unreadable:
                self.report(text)
            self.unreadable.add(text)
        self._average()
        due = settings.quantizer.restart and self.step % self.upkeep.restart_every == 0
        if due and share < RESTART_UNTIL:
            moved = self.upkeep.restart(settings.run.seed * 1_000_003 + self.step, self._gather)
            averaged = self.averaged.quantize.embedding.weight
            averaged[moved] = self.model.quantize.embedding.weight.detach()[moved]
            self.restarted += len(moved)
        return {
            "loss": total.detach(),
            "psnr": (10 * torch.log10(4 / squared.clamp(min=1e-10))).mean(),
            "commitment": out.commitment.detach(),
            "anchor": out.anchor.detach(),
        }

    def _set_rates(self, share: float) -> None:
        settings = self.settings.optimizer
        factor = min(1.0, (self.step + 1) / max(1, settings.warmup))
        if settings.cooldown:
            factor *= min(1.0, max(0.0, (1 - share) / settings.cooldown))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights; sooner at first, when the start is no good estimate."""
        decay = min(self.settings.optimizer.average, (1 + self.step) / (10 + self.step))
        pairs = list(zip(self.averaged.parameters(), self.model.parameters(), strict=True))
        torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - decay)

    def _share(self) -> float:
        """How much of the run is done; by the first process's clock."""
        run = self.settings.run
        share = self.step / run.steps
        if run.minutes is not None:
            share = max(share, self._seconds() / (60 * run.minutes))
            if self.world > 1:
                share = float(self._broadcast(torch.tensor([share], device=self.device)))
        return min(1.0, share)

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.begin

    def _tell(self, meter: _Meter, share: float) -> None:
        means = {name: float(self._mean(value)) for name, value in meter.means().items()}
        if not math.isfinite(means["loss"]):
            raise self._diverged()
        total = self.upkeep.total_perplexity()
        if (
            self.step * (1 - self.settings.quantizer.decay) > 3
        ):  # the even use that it began with is forgotten
            self.healthy = max(self.healthy, total)
        if total < COLLAPSED * self.healthy:
            raise TrainError(
                f"the codebook has collapsed at step {self.step}: its perplexity fell from "
                f"{self.healthy:.0f} to {total:.0f}; use a smaller encoder_rate or a larger anchor"
            )
        perplexity = tuple(self.upkeep.perplexity().tolist())
        bad = torch.tensor(float(len(self.unreadable)), device=self.device)
        progress = Progress(
            step=self.step,
            share=share,
            seconds=self._seconds(),
            loss=means["loss"],
            psnr=means["psnr"],
            perplexity=perplexity,
            restarted=self.restarted,
            images_per_second=meter.rate(),
            unreadable=round(float(self._mean(bad)) * self.world),
        )
        self.report(progress)
        self._log(
            {
                **{f"train/{name}": value for name, value in means.items()},
                **{f"perplexity/scale_{k:02}": value for k, value in enumerate(perplexity)},
                "perplexity/all": total,
                "train/restarted": self.restarted,
                "train/images_per_second": progress.images_per_second,
                "train/rate": self.optimizer.param_groups[0]["lr"],
            }
        )

    def validate(self) -> None:
        """Export the averaged weights, and measure them on the pictures held out."""
        if self.accelerator.is_main_process:
            self._export(self._measure() if self.validation else None)
        self.accelerator.wait_for_everyone()

    def _measure(self) -> Validation:
        config = self.settings.model
        tokenizer = Tokenizer(
            copy.deepcopy(self.averaged),  # which it rearranges
            config,
            name=self.settings.name,
            device=self.device,
            dtype="float32",
        )
        found: list[float] = []
        maps: list[list[NDArray[np.int64]]] = []
        decoded: list[NDArray[np.uint8]] = []
        for pixels in self.validation:
            tokens = tokenizer.encode(to_tensor(pixels[None]))
            drawn = to_pixels(tokenizer.decode(tokens))[0]
            found.append(psnr(pixels, drawn))
            maps.append([tokens_map.cpu().numpy() for tokens_map in tokens.maps])
            if len(decoded) < SHOWN:
                decoded.append(drawn)
        usage = describe_usage(count_codes(maps, config.vocab_size, len(config.patch_nums)))
        sheet = np.concatenate(
            [np.concatenate(self.validation[:SHOWN], axis=1), np.concatenate(decoded, axis=1)]
        )
        with self._written(f"{SAMPLES}/{self.step:07}.png") as file:
            file.write(encode_picture(sheet, "png"))
        result = Validation(
            step=self.step,
            pictures=len(self.validation),
            psnr=float(np.mean(found)),
            used=tuple(scale.used for scale in usage.scales),
            perplexity=tuple(scale.perplexity for scale in usage.scales),
            total=usage.overall.used,
        )
        self.report(result)
        self._log(
            {
                "validation/psnr": result.psnr,
                "validation/used": result.total,
                **{f"validation/used_{k:02}": float(used) for k, used in enumerate(result.used)},
            }
        )
        return result

    def _export(self, validation: Validation | None) -> None:
        tensors = {name: tensor.detach().cpu() for name, tensor in self.averaged.state_dict().items()}
        settings = self.settings
        checkpoint = Checkpoint(settings.name, settings.license, settings.model, tensors)
        try:
            write_checkpoint(self.run / WEIGHTS, checkpoint, overwrite=True)
        except OSError as error:
            raise _unwritten(self.run / WEIGHTS, error) from None
        card = describe(
            settings,
            step=self.step,
            seconds=self._seconds(),
            processes=self.world,
            device=self.device,
            precision=self.precision,
            validation=validation,
        )
        with self._written(CARD) as file:
            file.write(card.encode())

    def save(self) -> None:
        """Write what the run needs to go on as if it had never stopped."""
        if not self.accelerator.is_main_process:
            return
        adversary = None if self.adversary is None else self.adversary.state_dict()
        networks = [self.trainee.state_dict(), self.averaged.state_dict(), {"sums": self.upkeep.sums}]
        if adversary is not None:
            networks.append(adversary["network"])
        if not all(bool(tensor.isfinite().all()) for network in networks for tensor in network.values()):
            raise self._diverged()
        state = {
            "pictures": self.pictures.fingerprint,
            "step": self.step,
            "place": dataclasses.astuple(self.place),
            "seconds": self._seconds(),
            "restarted": self.restarted,
            "healthy": self.healthy,
            "trainee": self.trainee.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "use": self.upkeep.use,
            "sums": self.upkeep.sums,
            "adversary": adversary,
        }
        with self._written(STATE) as file:
            torch.save(state, file)

    def _diverged(self) -> TrainError:
        kept = f"; {self.run / STATE} holds the last good state" * (self.run / STATE).exists()
        return TrainError(f"the loss is not a number at step {self.step}: use smaller rates{kept}")

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[BinaryIO]:
        """A file of the run, which appears whole or not at all."""
        path = self.run / name
        try:
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, overwrite=True) as file:
                yield file
        except (OSError, RuntimeError) as error:  # torch.save makes the one of the other
            raise _unwritten(path, error) from None

    def _read_state(self) -> dict[str, Any]:
        try:
            # Tensors and plain containers only: weights_only refuses whatever would run code.
            state: dict[str, Any] = torch.load(self.run / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises nearly every type on a damaged file
            raise TrainError(f"{self.run / STATE} is not a run's state ({one_line(error)})") from None
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.trainee.load_state_dict(state["trainee"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.upkeep.use.copy_(state["use"])
            self.upkeep.sums.copy_(state["sums"])
            if self.adversary is not None:
                self.adversary.load_state_dict(state["adversary"])
            self.step, self.place, self.spent = state["step"], Place(*state["place"]), state["seconds"]
            if state["pictures"] != self.pictures.fingerprint:
                self.report("the pictures are not those that the run began with: they come in another order")
            self.restarted, self.healthy = state["restarted"], state["healthy"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainError(f"{self.run / STATE} is not this run's state ({one_line(error)})") from None
        rates = self.settings.optimizer
        for group, base in zip(self.optimizer.param_groups, (rates.rate, rates.encoder_rate), strict=True):
            group["base"], group["weight_decay"] = base, rates.weight_decay

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run / LOGS))

    def _log(self, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            for name, value in values.items():
                self._writer.add_scalar(name, value, self.step)

    def _mean(self, value: Tensor) -> Tensor:
        if self.world == 1:
            return value
        found: Tensor = self.accelerator.reduce(value, "mean")
        return found

    def _gather(self, rows: Tensor) -> Tensor:
        """[n, ...] of every process -> [processes * n, ...], the same in all."""
        return rows if self.world == 1 else self.accelerator.gather(rows)

    def _broadcast(self, value: Tensor) -> Tensor:
        if self.world == 1:
            return value
        from accelerate.utils import broadcast

        found: Tensor = broadcast(value)
        return found

    def _agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        if self.world == 1:
            return stop
        return float(self._mean(torch.tensor([float(stop)], device=self.device))) > 0


def _frozen_encoder(model: VQVAE) -> nn.Module:
    """[B, 3, H, W] -> [B, z, h, w], as the model has it now."""
    return nn.Sequential(copy.deepcopy(model.encoder), copy.deepcopy(model.quant_conv))


def _unwritten(path: Path, error: Exception) -> TrainError:
    reason = getattr(error, "strerror", None) or one_line(error)
    return TrainError(f"{path} cannot be written: {reason}; what it held before is kept")


class _Meter:
    """Sums of what steps gave, kept on the device, and the time since it was made."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._begin = time.monotonic()

    def add(self, values: dict[str, Tensor], images: int) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._steps += 1
        self._images += images

    def means(self) -> dict[str, Tensor]:
        return {name: value / self._steps for name, value in self._sums.items()}

    def rate(self) -> float:
        return self._images / max(time.monotonic() - self._begin, 1e-9)


def takes_bf16(precision: str, cpu: bool) -> bool:
    """Whether to compute in bfloat16: where it is asked for, or where the processor is built for it."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available() and not cpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = (
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile")
    )
    return not torch.backends.mps.is_available() and any(found)
