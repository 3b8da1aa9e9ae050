"""The forward pass of training and its losses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import crops, tiny
from torch import Tensor

from vartok.images import to_tensor
from vartok.metrics import blockiness, count_steps
from vartok.models.vqvae import VQVAE
from vartok.train.adversary import Adversary, PatchDiscriminator
from vartok.train.kmeans import init_quantizer
from vartok.train.objective import TrainingModel, _blockiness, latent_loss, reconstruction_loss
from vartok.train.settings import LossSettings
from vartok.train.start import init_light, principal_components


def training_model(tiles: Path) -> tuple[TrainingModel, Tensor]:
    settings = tiny()
    pixels = crops(tiles)
    model = VQVAE(settings.model)
    linear = principal_components(pixels, settings.model, torch.device("cpu"))
    init_light(model, linear)
    images = to_tensor(pixels)
    init_quantizer(model.quantize, linear(images), settings.model.patch_nums, 2, seed=0)
    return TrainingModel(model, linear, settings.model.patch_nums), images


@pytest.mark.parametrize("encoder_warmup", [True, False])
def test_the_training_forward_equals_the_models_own(tiles: Path, encoder_warmup: bool) -> None:
    subject, images = training_model(tiles)
    out = subject(images, encoder_warmup)
    *_, last = subject.model.quantize.scale_steps(subject.schedule, latent=subject.model.encode(images))
    assert torch.allclose(out.reconstruction.clamp(-1, 1), subject.model.decode(last.f_hat), atol=1e-5)
    assert torch.equal(out.scales[-1].indices, last.indices)
    assert float(out.latent_anchor.detach()) < 1e-8


def test_the_quantizer_has_a_straight_through_gradient(tiles: Path) -> None:
    subject, images = training_model(tiles)
    bias = subject.model.quant_conv.bias
    assert bias is not None
    out = subject(images, False)
    (found,) = torch.autograd.grad(out.reconstruction.sum(), bias, retain_graph=True)
    latent = subject.model.encode(images)
    f = out.scales[-1].f_hat.detach() + latent - latent.detach()
    (wanted,) = torch.autograd.grad(subject.model.decoder(subject.model.post_quant_conv(f)).sum(), bias)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)
    codebook = subject.model.quantize.embedding.weight
    for loss, moved, still in (
        (out.codebook, codebook, bias),
        (out.commitment, bias, codebook),
        (out.final_commitment, bias, codebook),
    ):
        assert torch.autograd.grad(loss, moved, retain_graph=True)[0].any()
        assert torch.autograd.grad(loss, still, retain_graph=True, allow_unused=True)[0] is None


def test_latent_losses_are_weighted_by_the_settings(tiles: Path) -> None:
    subject, images = training_model(tiles)
    with torch.no_grad():
        assert subject.model.quant_conv.bias is not None
        subject.model.quant_conv.bias += 0.5  # away from the anchor
        out = subject(images, False)
        latent = subject.model.encode(images)
    assert float(out.latent_anchor) == pytest.approx(0.25, abs=1e-4)
    errors = [float((latent - scale.f_hat).square().mean()) for scale in out.scales]
    for settings, wanted in (
        (LossSettings(commitment=0.0), 0.0),
        (LossSettings(commitment=2.0), 2 * sum(errors) / len(errors)),
        (LossSettings(commitment=0.0, final_commitment=2.0), 2 * errors[-1]),
        (LossSettings(commitment=0.0, latent_anchor=2.0), 2 * float(out.latent_anchor)),
    ):
        found = float(latent_loss(out, settings)) - float(out.codebook)
        assert found == pytest.approx(wanted, abs=1e-4)
    assert errors[-1] < errors[0]


def test_pixel_losses_have_their_definitions_values() -> None:
    images = torch.zeros(2, 3, 4, 4)
    picture = torch.zeros(2, 3, 4, 4)
    picture[0] += 0.1
    picture[1, :, :, 2:] += 0.4
    for settings, wanted in (
        (LossSettings(mse=2.0), 2 * (0.01 + 0.08) / 2),
        (LossSettings(l1=1.0), (0.1 + 0.2) / 2),
        (LossSettings(log_mse=1.0), (math.log(0.01 + 1e-5) + math.log(0.08 + 1e-5)) / 2),
        (LossSettings(gradient=1.0), 0.4 / 3 / 2),
    ):
        loss, squared = reconstruction_loss(picture, images, settings, cell=16)
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert squared.tolist() == pytest.approx([0.01, 0.08])


def test_the_blockiness_of_cells_of_one_pixel_is_one() -> None:
    assert _blockiness(torch.rand(2, 3, 8, 8), 1) == 1


def test_the_blockiness_loss_agrees_with_the_metric() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    blocky = np.repeat(np.repeat(smooth[:, ::16, ::16], 16, 1), 16, 2) // 2 + smooth // 2
    measured = [
        blockiness(np.sum([count_steps(picture, 16) for picture in pictures], axis=0)) or 0.0
        for pictures in (blocky, smooth)
    ]
    loss, _ = reconstruction_loss(to_tensor(blocky), to_tensor(smooth), LossSettings(blockiness=2.0), cell=16)
    assert float(loss) == pytest.approx(2 * (measured[0] - measured[1]) ** 2, rel=1e-4)
    assert measured[0] > measured[1] + 0.2
    for size in (16, 32):  # without borders, and without any step
        flat = torch.zeros(1, 3, size, size, requires_grad=True)
        weights = LossSettings(blockiness=2.0, mse=1.0)
        loss, _ = reconstruction_loss(flat, torch.zeros_like(flat), weights, cell=16)
        loss.backward()
        assert loss.item() == 0
        assert flat.grad is not None
        assert flat.grad.isfinite().all()


def test_the_generator_loss_has_vqgans_adaptive_weight_and_the_discriminator_learns() -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    adversary = Adversary(Accelerator(cpu=True), lr=1e-3)
    real = torch.rand(4, 3, 32, 32)
    drawn = (real * 0.2).requires_grad_()
    loss = (drawn - real).square().mean()
    generator = adversary.generator_loss(real, drawn, loss)
    (ours,) = torch.autograd.grad(generator, drawn, retain_graph=True)
    (theirs,) = torch.autograd.grad(loss, drawn)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-3)
    for _ in range(20):
        adversary.discriminator_step(real, drawn)
    network = PatchDiscriminator()
    network.load_state_dict(adversary.state_dict()["network"])
    assert network(real).mean() > network(drawn).mean() + 0.5
