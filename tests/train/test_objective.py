"""The forward pass of training and its losses."""

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import crops, tiny
from torch import Tensor

from vartok.features import feature_distance
from vartok.images import to_tensor
from vartok.metrics import blockiness, count_steps
from vartok.models.vqvae import VQVAE
from vartok.train.adversary import Adversary, PatchDiscriminator, ProjectedDiscriminator, adaptive_weight
from vartok.train.kmeans import init_quantizer
from vartok.train.objective import (
    TrainingModel,
    _blockiness,
    latent_loss,
    reconstruction_loss,
    visible_cells,
)
from vartok.train.perceptual import PerceptualNetworks, View, perceptual_distance, random_window
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
        loss, squared = reconstruction_loss(picture, images, settings, cells=[16])
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert squared.tolist() == pytest.approx([0.01, 0.08])


def test_the_perceptual_distance_leaves_out_the_features_of_stride_two() -> None:
    rng = np.random.default_rng(0)
    first = [torch.tensor(rng.normal(size=(2, 3, side, side))) for side in (32, 16, 8, 4, 2)]
    other = [torch.tensor(rng.normal(size=depth.shape)) for depth in first]
    assert float(perceptual_distance(first, [other[0], *first[1:]])) == 0
    for depth in range(1, 5):
        changed = [*first[:depth], other[depth], *first[depth + 1 :]]
        wanted = feature_distance([first[depth]], [other[depth]])
        assert float(perceptual_distance(first, changed)) == pytest.approx(float(wanted))
        assert float(wanted) > 0.5


def test_the_periodicity_loss_removes_a_texture_that_repeats_in_every_cell() -> None:
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.normal(size=(2, 3, 128, 128)).cumsum(3).cumsum(2) / 500, dtype=torch.float32)
    cell = torch.tensor(rng.normal(size=(4, 4)) / 40, dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([cell], lr=2e-3)
    losses = []
    for _ in range(60):
        reconstruction = images + cell.repeat(32, 32)
        loss, _ = reconstruction_loss(reconstruction, images, LossSettings(periodicity=1.0), cells=[16, 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
    assert float(cell.detach().std()) < 0.25 / 40
    wave = 0.1 * torch.cos(torch.arange(128) * math.tau / 16)  # no period of 4
    loss, _ = reconstruction_loss(images + wave, images, LossSettings(periodicity=1.0), cells=[16, 4])
    assert float(loss) > 0.1


def test_the_local_contrast_loss_compares_the_strength_of_texture_not_its_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    texture, other = (torch.randn(1, 1, 128, 128, generator=generator) for _ in range(2))

    def local_contrast(reconstruction: Tensor, images: Tensor) -> float:
        loss, _ = reconstruction_loss(reconstruction, images, LossSettings(local_contrast=1.0), cells=[16])
        return float(loss)

    assert local_contrast(texture, texture) == 0
    # Twice the amplitude is four times the variance, at both resolutions.
    assert local_contrast(2 * texture, texture) == pytest.approx(math.log(4) ** 2, rel=0.02)
    assert local_contrast(texture, 2 * texture) == pytest.approx(math.log(4) ** 2, rel=0.02)
    assert local_contrast(other, texture) < 0.1
    mirrored = local_contrast(other.flip(3), texture.flip(3))
    assert mirrored == pytest.approx(local_contrast(other, texture), abs=1e-4)
    blurred = F.avg_pool2d(texture, 3, 1, padding=1)
    assert local_contrast(blurred, texture) > 1
    # A slope has none, up to the borders of the picture; nor has texture fainter than a level.
    slope = torch.linspace(-1, 1, 128).expand(1, 1, 128, 128)
    assert local_contrast(slope, torch.zeros_like(slope)) < 1e-2
    assert local_contrast(texture / 255, torch.zeros_like(texture)) < 1e-2
    # A texture in half of the picture is missed in half of the windows, and in those across its border.
    half = texture.clone()
    half[..., 64:] = 0
    assert local_contrast(half, texture) > 0.4 * local_contrast(torch.zeros_like(half), texture)


def test_the_local_contrast_loss_takes_crops_of_one_window() -> None:
    images = torch.randn(1, 1, 16, 23, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = reconstruction_loss(images, images.detach() / 2, LossSettings(local_contrast=1.0), cells=[16])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(4) ** 2, rel=0.05)
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert float(images.grad.abs().sum()) > 0


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
    loss, _ = reconstruction_loss(
        to_tensor(blocky), to_tensor(smooth), LossSettings(blockiness=2.0), cells=[16]
    )
    assert float(loss) == pytest.approx(2 * (measured[0] - measured[1]) ** 2, rel=1e-4)
    assert measured[0] > measured[1] + 0.2
    for size in (16, 32):  # without borders, and without any step
        flat = torch.zeros(1, 3, size, size, requires_grad=True)
        weights = LossSettings(blockiness=2.0, mse=1.0)
        loss, _ = reconstruction_loss(flat, torch.zeros_like(flat), weights, cells=[16])
        loss.backward()
        assert loss.item() == 0
        assert flat.grad is not None
        assert flat.grad.isfinite().all()


@pytest.mark.parametrize("network", [PatchDiscriminator, ProjectedDiscriminator])
def test_a_discriminator_learns_and_its_state_goes_on(network: type) -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    channels = [4, 8, 8, 8, 4] if network is ProjectedDiscriminator else []
    pixels = torch.rand(2, 3, 32, 32)
    features = [torch.rand(2, width, 32 >> k, 32 >> k) for k, width in enumerate(channels, 1)]
    drawn = (pixels * 0.2).requires_grad_()
    real, fake = View(pixels, features), View(drawn, [depth * 0.2 for depth in features])
    adversary = Adversary(Accelerator(cpu=True), 1e-3, feature_channels=channels)
    frozen = {name: value.clone() for name, value in adversary.state_dict()["network"].items()}
    losses = [float(adversary.discriminator_step(real, fake)) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.2
    changed = adversary.state_dict()["network"]
    assert all(torch.equal(frozen[name], changed[name]) for name in frozen if "projections" in name)

    other = Adversary(Accelerator(cpu=True), 1e-3, feature_channels=channels)
    other.load_state_dict(deepcopy(adversary.state_dict()))
    assert [float(one.discriminator_step(real, fake)) for one in (other, other)] == [
        float(one.discriminator_step(real, fake)) for one in (adversary, adversary)
    ]
    generator = adversary.generator_loss(real, fake)
    generator.backward()
    assert drawn.grad is not None
    assert drawn.grad.any()
    assert all(parameter.requires_grad for parameter in adversary._trained)


def test_the_adaptive_weight_makes_the_gradients_equally_large() -> None:
    drawn = torch.rand(2, 3, 8, 8).requires_grad_()
    loss, generator = drawn.square().mean(), 100 * drawn[:, :, :4].abs().mean()
    weighted = adaptive_weight(loss, generator, drawn) * generator
    (ours,) = torch.autograd.grad(weighted, drawn, retain_graph=True)
    (theirs,) = torch.autograd.grad(loss, drawn)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-3)


def test_windows_lie_inside_and_at_every_offset_of_the_cells() -> None:
    windows = [random_window((256, 320), seed=0, step=step) for step in range(200)]
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {
        (224, 280)
    }
    assert all(rows.start >= 0 and rows.stop <= 256 and columns.stop <= 320 for rows, columns in windows)
    for slices in zip(*windows, strict=True):
        assert {one.start % 4 for one in slices} == {0, 1, 2, 3}
    assert windows[7] == random_window((256, 320), seed=0, step=7)


def test_views_are_one_window_and_gradients_reach_reconstructions_alone() -> None:
    networks = PerceptualNetworks.load(LossSettings(perceptual=1.0))
    images = torch.rand(1, 1, 64, 64)  # a grey level three times
    drawn = images.clone().requires_grad_()
    real, fake = networks.views(images, drawn, (slice(3, 59), slice(8, 64)))
    assert torch.equal(real.pixels, images[:, :, 3:59, 8:64])
    assert all(torch.equal(a, b) for a, b in zip(real.features, fake.features, strict=True))
    assert not any(depth.requires_grad for depth in real.features)
    torch.stack([depth.sum() for depth in fake.features]).sum().backward()
    assert drawn.grad is not None
    assert drawn.grad[:, :, 3:59, 8:64].any()
    assert not drawn.grad[:, :, :3].any()


def test_a_light_decoder_may_draw_cells_of_its_last_layer_too() -> None:
    config = tiny().model
    assert visible_cells(config) == (16, 4)
    rng = torch.rand(1, 3, 32, 32)
    grid = rng.clone()
    grid[:, :, ::4] += 0.5
    weights = LossSettings(mse=1e-9, blockiness=1.0)
    sixteen, both = (
        float(reconstruction_loss(grid, rng, weights, cells)[0]) for cells in ([16], visible_cells(config))
    )
    assert both > 1.5 * sixteen
