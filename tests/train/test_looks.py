"""Training for looks: perceptual loss and projected discriminator."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import go

import vartok
from vartok import Tokenizer
from vartok.checkpoints import read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.images import to_pixels, to_tensor
from vartok.images.tensors import Pixels
from vartok.schedule import square
from vartok.st_lpips import load_st_lpips
from vartok.train import Progress, Validation, read_settings
from vartok.train.data import Pictures

PHOTOS = Path(__file__).parent.parent.parent / "examples" / "photos"


@pytest.mark.slow
def test_held_out_photos_come_nearer_by_a_distance_that_training_does_not_use(tmp_path: Path) -> None:
    start = tmp_path / "dull.safetensors"
    _write_dull_checkpoint(start)
    settings = read_settings(
        "light-looks",
        {
            "data": {"batch_size": 4, "val_fraction": 0.5},
            "loss": {"adversarial_ramp": 0},  # so that losses compare
            "optimizer": {"warmup_steps": 5, "ema_decay": 0.8},
            "run": {"steps": 30, "precision": "float32"},
        },
        weights=start,
    )
    held_out = Pictures([PHOTOS], settings.data, settings.model.image_size, settings.run.seed).held_out(1)
    events = go(settings, PHOTOS, tmp_path / "run")
    losses = [event.loss for event in events if isinstance(event, Progress)]
    assert losses[-1] < losses[0]
    before, after = (vartok.load(path, device="cpu") for path in (start, tmp_path / "run"))
    assert _st_lpips(after, held_out) < 0.9 * _st_lpips(before, held_out)
    first, last = (event.psnr for event in events if isinstance(event, Validation))
    assert last < first  # so they did not come nearer by their pixels
    assert before.fingerprint == after.fingerprint


def _write_dull_checkpoint(path: Path) -> None:
    """Write the shipped checkpoint for 128 pixels, with half of its decoder's residual: few details."""
    shipped = read_checkpoint(shipped_checkpoint())
    tensors = dict(shipped.tensors)
    for name in ("decoder.net.out.weight", "decoder.net.out.bias"):
        tensors[name] = tensors[name] / 2
    config = dataclasses.replace(shipped.config, patch_nums=square(1, 2, 3, 4, 5, 6, 8))
    write_checkpoint(path, dataclasses.replace(shipped, config=config, tensors=tensors))


def _st_lpips(tokenizer: Tokenizer, pictures: list[Pixels]) -> float:
    """Return the mean ST-LPIPS distance of pictures from their reconstructions."""
    network, found = load_st_lpips("alex"), []
    with torch.no_grad():
        for pixels in pictures:
            images = to_tensor(pixels[None])
            decoded = to_pixels(tokenizer.decode(tokenizer.encode(images)), pixels.dtype)
            found.append(float(network(images, to_tensor(decoded))))
    return float(np.mean(found))
