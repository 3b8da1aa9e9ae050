"""How much of a bare training loop's speed the trainer keeps.

    python benchmarks/trainer.py DATA... [--preset light] [--batch-size N] [--steps 20] [--rounds 3]

The bare loop does forward, backward and optimizer step, in the trainer's precision, on one batch in
memory. The trainer reads pictures, keeps codebook and averages, clips and reports besides. They take
turns; what is printed last are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vartok.models.vqvae import VQVAE
from vartok.train.objective import TrainingModel, latent_loss, parameter_groups, reconstruction_loss
from vartok.train.settings import TrainSettings, read_settings
from vartok.train.start import LinearTransform, start_as_var
from vartok.train.trainer import Progress, takes_bf16, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--batch-size", type=int, help="instead of the preset's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run = {"steps": given.steps + WARMUP, "validate_every": 1 << 30}
    changes = {"start": {"pictures": 64, "rounds": 1}, "run": run}
    if given.batch_size:
        changes["data"] = {"batch_size": given.batch_size}
    settings = read_settings(given.preset, changes)

    bare, whole = [], []
    for _ in range(given.rounds):
        bare.append(bare_rate(settings, given.steps))
        whole.append(trainer_rate(settings, given.data))
        print(f"bare loop {bare[-1]:.1f} images/s, trainer {whole[-1]:.1f} images/s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(bare, whole, strict=True))
    precision = "bf16" if takes_bf16(settings.run.precision, cpu=False) else "float32"
    size = settings.data.batch_size
    print(
        f"{given.preset}, batches of {size}, {precision}, {torch.get_num_threads()} threads: "
        f"bare {statistics.median(bare):.1f}, trainer {statistics.median(whole):.1f} images/s: {ratio:.1%}"
    )


WARMUP = 10  # steps: the trainer's first report, which is left out


def bare_rate(settings: TrainSettings, steps: int) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, rates = settings.model, settings.optimizer
    torch.manual_seed(0)
    model = VQVAE(config).to(device)
    start_as_var(model.quantize, seed=0)
    trainee = TrainingModel(model, LinearTransform.empty(config).to(device), config.patch_nums)
    trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(model, rates.rate, rates.encoder_rate, train_codebook=False)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    images = torch.rand(settings.data.batch_size, 3, *config.image_size, device=device) * 2 - 1
    images = images.to(memory_format=torch.channels_last)
    bf16 = takes_bf16(settings.run.precision, cpu=device.type == "cpu")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = trainee(images, False)
        loss, _ = reconstruction_loss(out.picture, images, settings.loss, config.downsample)
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


def trainer_rate(settings: TrainSettings, data: list[str]) -> float:
    rates: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, Progress) and event.step > WARMUP:
            rates.append(event.images_per_second)

    with tempfile.TemporaryDirectory() as folder:
        train(settings, data, Path(folder) / "run", report=note)
    return statistics.harmonic_mean(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
