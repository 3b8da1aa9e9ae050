"""Initial weights: principal components, k-means, identity phis."""

import dataclasses
from pathlib import Path

import torch
from tiny_run import LIGHT, crops, latents, started

from vartok.images import to_tensor
from vartok.models.vqvae import VQVAE
from vartok.train.start import init_light, principal_components


def test_principal_components_are_those_of_the_patches(tiles: Path) -> None:
    pixels = crops(tiles)
    linear = principal_components(pixels, LIGHT, torch.device("cpu"))
    images = to_tensor(pixels)
    patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(-1, 768).double()
    centred = patches - patches.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    wanted = (centred @ directions[:8].T).abs()
    found = linear(images).permute(0, 2, 3, 1).reshape(-1, 8).abs().double()
    assert (found - wanted).abs().max() < 1e-3 * wanted.max()


def test_light_starts_as_the_linear_transform_and_its_inverse(tiles: Path) -> None:
    pixels = crops(tiles)
    full = dataclasses.replace(LIGHT, z_channels=768)
    model = VQVAE(full)
    linear = principal_components(pixels, full, torch.device("cpu"))
    init_light(model, linear)
    images = to_tensor(pixels)
    latent = model.latent(images)
    assert (latent - linear(images)).abs().max() < 1e-4
    assert (model.picture(latent) - images).abs().max() < 1e-3  # all the components: nothing is lost


def test_phis_start_as_the_identity() -> None:
    quantizer = started(1)
    h = torch.randn(2, 8, 4, 4)
    assert all(torch.allclose(quantizer.refine(h, k, 3), h, atol=1e-6) for k in range(3))


def test_k_means_serves_every_scale_better_than_a_random_start() -> None:
    f = latents()
    naive, found = ([*started(rounds).scale_steps(LIGHT.patch_nums, latent=f)] for rounds in (0, 3))
    for k in range(3):
        assert (found[k].f_hat - f).square().mean() < (naive[k].f_hat - f).square().mean()
        assert len(found[k].indices.unique()) > len(naive[k].indices.unique())
    assert (found[-1].f_hat - f).square().mean() < 0.3 * f.square().mean()
