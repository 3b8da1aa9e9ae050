"""Speed of the trainer, compared with a bare training loop.

    python benchmarks/trainer.py DATA... [--preset light] [--batch-size N] [--steps 20] [--rounds 3]

The bare loop does the forward and backward pass and the optimizer step, in the trainer's precision, on one
batch in memory. The trainer also reads pictures, updates the codebook and the averaged weights, clips
gradients and reports. Both take turns; the last line has the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vartok.models.vqvae import VQVAE
from vartok.runtime import choose_device
from vartok.train import Progress, TrainSettings, read_settings, train
from vartok.train.distributed import takes_bf16
from vartok.train.kmeans import init_like_var
from vartok.train.objective import (
    TrainingModel,
    latent_loss,
    parameter_groups,
    reconstruction_loss,
    visible_cells,
)
from vartok.train.start import LinearTransform


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--batch-size", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run = {"steps": given.steps + WARMUP, "val_every": 1 << 30}
    changes = {"start": {"init_pictures": 64, "kmeans_rounds": 1}, "run": run}
    if given.batch_size:
        changes["data"] = {"batch_size": given.batch_size}
    settings = read_settings(given.preset, changes)

    bare, whole = [], []
    for _ in range(given.rounds):
        bare.append(bare_speed(settings, given.steps))
        whole.append(trainer_speed(settings, given.data))
        print(f"bare loop {bare[-1]:.1f} images/s, trainer {whole[-1]:.1f} images/s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(bare, whole, strict=True))
    precision = "bf16" if takes_bf16(settings.run.precision, choose_device()) else "float32"
    size = settings.data.batch_size
    print(
        f"{given.preset}, batches of {size}, {precision}, {torch.get_num_threads()} threads: "
        f"bare {statistics.median(bare):.1f}, trainer {statistics.median(whole):.1f} images/s: {ratio:.1%}"
    )


WARMUP = 10  # steps of the trainer before its speed counts


def bare_speed(settings: TrainSettings, steps: int) -> float:
    device = choose_device()
    config, rates = settings.model, settings.optimizer
    torch.manual_seed(0)
    model = VQVAE(config).to(device)
    init_like_var(model.quantize, seed=0)
    model_with_losses = TrainingModel(model, LinearTransform.empty(config).to(device), config.patch_nums)
    model_with_losses.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(model, rates.lr, rates.encoder_lr, train_codebook=False)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    images = torch.rand(settings.data.batch_size, 3, *config.image_size, device=device) * 2 - 1
    images = images.to(memory_format=torch.channels_last)
    bf16 = takes_bf16(settings.run.precision, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = model_with_losses(images, False)
        loss, _ = reconstruction_loss(out.reconstruction, images, settings.loss, visible_cells(config))
        (loss + latent_loss(out, settings.loss)).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return steps * settings.data.batch_size / (time.perf_counter() - begin)


def trainer_speed(settings: TrainSettings, data: list[str]) -> float:
    speeds: list[float] = []

    def report(event: object) -> None:
        if isinstance(event, Progress) and event.step > WARMUP:
            speeds.append(event.images_per_second)

    with tempfile.TemporaryDirectory() as folder:
        train(settings, data, Path(folder) / "run", report=report)
    return statistics.harmonic_mean(speeds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
