"""Initial weights: principal components, k-means, identity phis."""

import dataclasses
import math
import time
from pathlib import Path

import pytest
import torch
from tiny_run import LIGHT, crops, latents, pictures, started, tiny

from vartok.images import to_tensor
from vartok.models.quantizer import Lookup
from vartok.models.vqvae import VQVAE
from vartok.train import kmeans
from vartok.train.kmeans import Deadline
from vartok.train.progress import StartProgress
from vartok.train.start import init_light, principal_components, start_from_pictures


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
    latent = model.encode(images)
    assert (latent - linear(images)).abs().max() < 1e-4
    assert (model.decode(latent) - images).abs().max() < 1e-3  # all the components: nothing is lost


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


def test_k_means_on_a_cpu_uses_threads_of_one_torch_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(lookup: Lookup, cells: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return original(lookup, cells)

    seen: set[int] = set()
    original = Lookup.nearest
    monkeypatch.setattr(Lookup, "nearest", nearest)
    monkeypatch.setattr(kmeans, "POINTS", 100)
    monkeypatch.setattr(kmeans, "CHUNK", 5)
    threads = torch.get_num_threads()
    codes = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            codes.append(started(2).embedding.weight.detach())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}
    assert torch.equal(*codes)


def test_an_initialisation_whose_time_is_over_takes_the_least_of_everything(tiles: Path) -> None:
    settings = tiny(start={"init_pictures": 200, "kmeans_rounds": 3})
    for deadline, count, rounds in ((Deadline(0.0), "64 of 200", 1), (None, "256", 3)):
        model = VQVAE(settings.model)
        reports: list[StartProgress] = []
        _, summary = start_from_pictures(
            model, pictures(tiles), settings, torch.device("cpu"), deadline=deadline, report=reports.append
        )
        assert summary.startswith(f"initialised from {count} crops: reading ")
        assert summary.endswith(f"({rounds} of 3 rounds)")
        assert len(model.quantize.embedding.weight.unique(dim=0)) > 32
        assert [report.stage for report in reports][:1] == ["reading crops"]
        assert all(0 <= report.done <= report.total for report in reports)


def test_a_deadline_leaves_a_fraction_of_the_time() -> None:
    assert Deadline(0.0).passed()
    assert not Deadline().passed()
    assert Deadline().within(0.5).end == math.inf
    half = Deadline(time.monotonic() + 1000).within(0.5)
    assert half.end == pytest.approx(time.monotonic() + 500, abs=5)
