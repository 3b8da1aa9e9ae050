"""Training for looks, from the shipped checkpoint: perceptual loss and projected discriminator."""

import dataclasses
from pathlib import Path

import pytest
from tiny_run import go

import vartok
from vartok.checkpoints import read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.schedule import square
from vartok.train import Validation, read_settings

PHOTOS = Path(__file__).parent.parent.parent / "examples" / "photos"


@pytest.mark.slow
def test_a_few_steps_bring_a_held_out_photo_nearer_to_its_original(tmp_path: Path) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    small = dataclasses.replace(shipped.config, patch_nums=square(1, 2, 3, 4, 5, 6))  # 96 pixels: cheap
    write_checkpoint(tmp_path / "small.safetensors", dataclasses.replace(shipped, config=small))
    settings = read_settings(
        "light-looks",
        {
            "data": {"batch_size": 4, "val_fraction": 0.25, "zoom": 3.0},  # of eight photos, one
            "loss": {"adversarial_ramp": 20, "log_mse": 0.02},  # so low as its PSNR is low already
            "optimizer": {"warmup_steps": 5, "ema_decay": 0.8},
            "run": {"steps": 24, "precision": "float32"},
        },
        weights=tmp_path / "small.safetensors",
    )
    events = go(settings, PHOTOS, tmp_path / "run")
    before, after = (event for event in events if isinstance(event, Validation))
    assert before.perceptual is not None
    assert after.perceptual is not None
    assert after.perceptual < 0.99 * before.perceptual
    made = [vartok.load(path, device="cpu") for path in (tmp_path / "small.safetensors", tmp_path / "run")]
    assert made[0].fingerprint == made[1].fingerprint
