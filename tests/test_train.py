"""Training: settings, data, start, codebook, and runs that are small but whole."""

import dataclasses
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import COFFEE, DATA, shapes
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from vartok.train.trainer import SAMPLES, STATE, WEIGHTS, Progress, train
from vartok.train.upkeep import EMACodebook

import vartok
from vartok.config import TokenizerConfig
from vartok.errors import ConfigError, TrainError
from vartok.images import to_tensor
from vartok.metrics import blockiness, count_steps
from vartok.models.quantizer import MultiScaleQuantizer, ScaleStep
from vartok.models.vqvae import VQVAE
from vartok.schedule import square
from vartok.train.adversary import Adversary, PatchDiscriminator
from vartok.train.card import Validation
from vartok.train.data import Batch, Pictures, Place
from vartok.train.objective import TrainingModel, latent_loss, reconstruction_loss
from vartok.train.settings import (
    PRESETS,
    DataSettings,
    LossSettings,
    QuantizerSettings,
    TrainSettings,
    read_settings,
)
from vartok.train.start import (
    principal_components,
    start_as_var,
    start_light,
    start_quantizer,
)

TINY = """
name = "tiny"

[model]
autoencoder = "light"
vocab_size = 64
z_channels = 8
widths = [8, 8, 8]
depths = [1, 1, 1]
patch_nums = [1, 2, 4]

[data]
batch_size = 4
hold_out = 5

[start]
pictures = 16
rounds = 2

[loss]
log_mse = 1.0
commitment = 0.1
anchor = 0.02

[optimizer]
rate = 3e-3
warmup = 3
taught = 5

[run]
steps = 8
precision = "float32"
"""
"""A run of a second: crops of 64 pixels."""


def tiny(**tables: dict[str, Any]) -> TrainSettings:
    return TrainSettings.from_toml(TINY, tables)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of 128 pixels, cut out of one."""
    folder = tmp_path_factory.mktemp("tiles")
    with Image.open(COFFEE) as photo:
        for row, column in itertools.product(range(4), range(4)):
            box = (128 * column, 128 * row, 128 * column + 128, 128 * row + 128)
            photo.crop(box).save(folder / f"tile{row}{column}.png")
    return folder


def pictures(*sources: Path, seed: int = 0, **settings: Any) -> Pictures:
    return Pictures(sources, DataSettings(**settings), (64, 64), seed)


def take(
    source: Pictures, count: int, place: Place | None = None, size: int = 4, **options: int
) -> list[Batch]:
    return list(itertools.islice(source.batches(size, place or Place(), **options), count))


# Settings.


def test_settings_survive_toml() -> None:
    strange = dataclasses.replace(tiny(), name='"\U0001f600\n', license="\u00a9 \\")
    for settings in (tiny(), strange, *map(read_settings, PRESETS)):
        assert TrainSettings.from_toml(settings.to_toml()) == settings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "is not TOML"),
        ("[modle]\n", "unknown key, 'modle'"),
        ("model = 3\n", r"\[model\] is a table"),
        ("[model]\nch = 33\n", "multiple of 32"),
        ("[model]\nchan = 32\n", "unknown key, 'chan'"),
        ("[loss]\nmse = 1.0\nl3 = 1.0\n", r"\[loss\] has an unknown key, 'l3'"),
        ("[loss]\nmse = 'much'\n", "is not a number"),
        ("[loss]\nmse = nan\n", "is not a number"),
        ("[data]\nbatch_size = 1.5\n[loss]\nmse = 1.0\n", "is not a whole number"),
        ("[data]\nbatch_size = 0\n[loss]\nmse = 1.0\n", "batch_size is from 1"),
        ("[loss]\n", "no reconstruction loss"),
        ("[quantizer]\ncodebook = 'ema'\n[loss]\nmse = 1.0\n", '"average" or "gradient"'),
        ("[run]\nprecision = 'int8'\n[loss]\nmse = 1.0\n", "precision"),
        ("name = 3\n[loss]\nmse = 1.0\n", "name is a text"),
        ("[loss]\nmse = inf\n", "mse is from 0"),
        ("[run]\nseed = -1\n[loss]\nmse = 1.0\n", "seed is from 0"),
        ("[run]\nminutes = 0\n[loss]\nmse = 1.0\n", "minutes is from"),
        ("[optimizer]\nclip = 0\n[loss]\nmse = 1.0\n", "clip is from"),
        ("[optimizer]\ntaught = 5\n[loss]\nmse = 1.0\n", "without .* anchor"),
    ],
)
def test_settings_that_no_run_can_have_are_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        TrainSettings.from_toml(text)
    assert "\n" not in str(error.value)


def test_a_wrong_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="'lihgt' is no preset"):
        read_settings("lihgt")


# Data.


def test_every_process_takes_its_share_of_the_same_batches(tiles: Path) -> None:
    alone = take(pictures(tiles), 6)
    shares = [take(pictures(tiles), 6, size=2, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert np.array_equal(batch.pixels[0::2], parts[0].pixels)
        assert np.array_equal(batch.pixels[1::2], parts[1].pixels)
        assert {batch.after} == {part.after for part in parts}


@pytest.mark.parametrize("done", [1, 3, 4, 9])
def test_the_stream_goes_on_where_it_was(tiles: Path, done: int) -> None:
    batches = take(pictures(tiles), done + 2)
    (again,) = take(pictures(tiles), 1, batches[done - 1].after)
    assert np.array_equal(again.pixels, batches[done].pixels)


def test_an_offset_beyond_the_epoch_counts_into_the_next(tiles: Path) -> None:
    source = pictures(tiles, hold_out=1 << 30)
    assert np.array_equal(take(source, 1, Place(0, 18))[0].pixels, take(source, 1, Place(1, 2))[0].pixels)


def test_an_epoch_shows_every_picture_once_but_those_held_out(tiles: Path) -> None:
    source = pictures(tiles, hold_out=5, zoom=1.0, grey=0.0, jitter=0.0)
    held = source.held_out(1)
    (epoch,) = take(source, 1, size=16 - len(held))
    assert epoch.after == Place(0, 16 - len(held))
    assert 0 < len(held) < 8

    def looks(crops: Any) -> set[tuple[int, ...]]:  # mirrored or not, a crop of the whole has these levels
        return {tuple(np.sort(crop.astype(int).sum((0, 1))).tolist()) for crop in crops}

    assert len(looks(epoch.pixels)) == len(epoch.pixels)
    assert not looks(epoch.pixels) & looks(held)


def test_tars_lists_and_folders_hold_the_same_pictures(tiles: Path, tmp_path: Path) -> None:
    names = sorted(tiles.glob("*.png"))
    for number, part in enumerate((names[:7], names[7:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in part:
                shard.add(path, path.name)
                label = tmp_path / f"{path.stem}.cls"
                label.write_text("3")
                shard.add(label, label.name)
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))

    def seen(*sources: Path) -> set[bytes]:
        source = pictures(*sources, hold_out=1 << 30, zoom=1.0, grey=0.0, jitter=0.0)
        (batch,) = take(source, 1, size=16)
        return {min(crop.tobytes(), crop[:, ::-1].tobytes()) for crop in batch.pixels}

    assert len(seen(tiles)) == 16
    assert seen(tiles) == seen(tmp_path / "list.txt") == seen(tmp_path / "0.tar", tmp_path / "1.tar")


def test_crops_cover_no_more_than_the_picture(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    batches = take(pictures(tmp_path, grey=0.0, jitter=0.0, zoom=1.25), 8)
    widths = [int(crop.max()) - int(crop.min()) for batch in batches for crop in batch.pixels]
    # 64 of 100 pixels a side are 100 levels of the ramp, or 80 at the largest zoom.
    assert all(76 <= width <= 100 for width in widths)
    assert len(set(widths)) > 5


def test_unreadable_pictures_are_told_and_stood_in_for(tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles, tmp_path, dirs_exist_ok=True)
    for name in ("broken1.png", "broken2.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    batches = take(pictures(tmp_path, hold_out=1 << 30), 9, size=6)
    assert all(batch.pixels.shape == (6, 64, 64, 3) for batch in batches)
    told = [text for batch in batches for text in batch.unreadable]
    assert len(told) == 6  # two in each of three epochs
    assert all(text.startswith(f"{tmp_path}/broken") for text in told)


def test_what_holds_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no pictures"):
        pictures(tmp_path)
    with pytest.raises(TrainError, match="no such file"):
        pictures(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(TrainError, match=r"no picture can be read; one of them: .*a\.png: "):
        take(pictures(tmp_path), 1)
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(TrainError, match=r"b\.tar: is not a whole tar file"):
        take(pictures(tmp_path / "b.tar"), 1)


def test_a_broken_shard_is_told_and_the_others_are_used(tiles: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as shard:
        for path in sorted(tiles.glob("*.png")):
            shard.add(path, path.name)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:100_000])
    batches = take(pictures(tmp_path, hold_out=1 << 30), 12)
    told = [text for batch in batches for text in batch.unreadable]
    assert told
    assert all("cut.tar: is not a whole tar file" in text for text in told)


def test_names_of_shards_and_pictures_are_never_taken_for_commands(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path.name}-made;.tar")
    with pytest.raises(TrainError, match="No such file"):
        take(pictures(tmp_path / "list.txt"), 1)
    assert not list(Path().glob("*-made*"))


def test_one_readable_picture_is_enough(tiles: Path, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"broken{number}.png").write_bytes(b"no picture")
    shutil.copy(tiles / "tile11.png", tmp_path)
    batches = take(pictures(tmp_path, hold_out=1 << 30), 30, size=1)
    assert all(batch.pixels.shape == (1, 64, 64, 3) for batch in batches)
    (again,) = take(pictures(tmp_path, hold_out=1 << 30), 1, batches[10].after, size=1)
    assert np.array_equal(again.pixels, batches[11].pixels)  # the same one stands in


# The start.

LIGHT = TokenizerConfig(autoencoder="light", vocab_size=64, z_channels=8, patch_nums=square(1, 2, 4))


def crops(tiles: Path, count: int = 16) -> NDArray[np.uint8]:
    return take(pictures(tiles), 1, size=count)[0].pixels


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
    start_light(model, linear)
    images = to_tensor(pixels)
    latent = model.encode(images)
    assert (latent - linear(images)).abs().max() < 1e-4
    assert (model.decode(latent) - images).abs().max() < 1e-3  # all the components: nothing is lost


def latents(count: int = 64) -> Tensor:
    """Smooth over cells, of falling variance over channels, as those of pictures are."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 8, 2, 2, generator=random)
    fine = torch.randn(count, 8, 4, 4, generator=random)
    scale = torch.linspace(1, 0.1, 8)[:, None, None]
    return scale * (2 * nn.functional.interpolate(coarse, (4, 4), mode="bicubic") + fine)


def started(rounds: int) -> MultiScaleQuantizer:
    quantizer = MultiScaleQuantizer(LIGHT)
    if rounds:
        start_quantizer(quantizer, latents(), LIGHT.patch_nums, rounds, seed=0)
    else:
        start_as_var(quantizer, seed=0)
    return quantizer.requires_grad_(False)


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


# The codebook's upkeep.


def upkeep(quantizer: MultiScaleQuantizer, **settings: Any) -> EMACodebook:
    return EMACodebook(quantizer, [1, 4, 16], QuantizerSettings(**settings), batch_size=64)


def same(value: Tensor) -> Tensor:
    return value


@pytest.mark.parametrize("token_weight", [0.0, 0.5, 1.0])
def test_codes_become_the_mean_of_what_they_are_picked_for(token_weight: float) -> None:
    quantizer = started(2)
    before = quantizer.embedding.weight.clone()
    keeper = upkeep(quantizer, decay=0.0, token_weight=token_weight)  # the average of the last step alone
    scales = list(quantizer.scale_steps(LIGHT.patch_nums, latent=latents()))
    keeper.observe(scales, same)
    sums, shares = np.zeros((64, 8)), np.zeros(64)
    for scale in scales:
        assert scale.cells is not None
        indices = scale.indices.flatten().numpy()
        for index, row in zip(indices, scale.cells.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), strict=True):
            weight = len(indices) ** (token_weight - 1)  # 0: scales weigh the same; 1: tokens
            sums[index] += weight * row
            shares[index] += weight
    seen = shares > 0
    wanted = np.where(seen[:, None], sums / np.maximum(shares, 1e-9)[:, None], before.numpy())
    assert np.allclose(quantizer.embedding.weight.numpy(), wanted, atol=1e-5)


def test_a_run_may_go_on_with_other_weights_of_scales() -> None:
    quantizers = started(2), started(2)
    scales = list(quantizers[0].scale_steps(LIGHT.patch_nums, latent=latents()))
    first = upkeep(quantizers[0], decay=0.0)
    always = upkeep(quantizers[1], decay=0.0, token_weight=1.0)
    first.observe(scales, same)
    always.observe(scales, same)
    later = upkeep(quantizers[0], decay=1.0, token_weight=1.0)  # which takes nothing in
    later.use, later.sums = first.use, first.sums
    assert not torch.allclose(quantizers[0].embedding.weight, quantizers[1].embedding.weight, atol=1e-3)
    later.observe(scales, same)
    assert torch.allclose(quantizers[0].embedding.weight, quantizers[1].embedding.weight, atol=1e-5)


def test_perplexity_is_of_each_scale() -> None:
    quantizer = started(2)
    keeper = upkeep(quantizer, decay=0.0)
    maps = [
        torch.zeros(4, 1, 1, dtype=torch.long),
        torch.arange(16).view(4, 2, 2),
        torch.arange(64).view(4, 4, 4),
    ]
    keeper.observe(
        [ScaleStep(index, latents(4), torch.randn(4, 8, *index.shape[1:])) for index in maps], same
    )
    assert keeper.perplexity().tolist() == pytest.approx([1, 16, 64])


def test_dead_codes_start_anew_and_a_code_of_the_coarsest_scale_is_not_dead() -> None:
    quantizer = started(2)
    keeper = upkeep(quantizer, decay=0.0, restart=0.3)
    # Code 0 is the 1x1 scale's alone: 4 of 84 tokens, but a third of the use. Half of the codes are dead.
    maps = [
        torch.zeros(4, 1, 1, dtype=torch.long),
        torch.arange(16).view(4, 2, 2) % 4 + 1,
        torch.arange(64).view(4, 4, 4) % 32,
    ]
    cells = [torch.randn(4, 8, *index.shape[1:]) for index in maps]
    keeper.observe(
        [ScaleStep(index, latents(4), rows) for index, rows in zip(maps, cells, strict=True)], same
    )
    before = quantizer.embedding.weight.clone()
    moved = keeper.restart(seed=3, gather=same)
    assert moved.tolist() == list(range(32, 53))  # a quarter of the 84 residuals is enough for one time
    assert torch.equal(quantizer.embedding.weight[:32], before[:32])
    candidates = torch.cat([rows.permute(0, 2, 3, 1).reshape(-1, 8) for rows in cells])
    chosen = [int((candidates == code).all(1).nonzero()) for code in quantizer.embedding.weight[32:53]]
    assert len(set(chosen)) == 21
    assert sum(index < 20 for index in chosen) >= 14  # of the scales that lack use most; by chance it were 5
    assert keeper.restart(seed=4, gather=same).tolist() == list(range(53, 64))
    assert not len(keeper.restart(seed=5, gather=same))  # they are given time


def test_restarts_draw_from_the_residuals_of_all_processes() -> None:
    quantizer = started(2)
    keeper = upkeep(quantizer, decay=0.0, restart=0.3)
    maps = [torch.zeros(4, side, side, dtype=torch.long) for side in (1, 2, 4)]
    cells = [torch.rand(4, 8, *index.shape[1:]) for index in maps]
    keeper.observe(
        [ScaleStep(index, latents(4), rows) for index, rows in zip(maps, cells, strict=True)], same
    )
    moved = keeper.restart(seed=3, gather=lambda rows: torch.cat([rows, rows + 10]))
    codes = quantizer.embedding.weight[moved]
    assert len(codes) == 42
    assert 10 <= int((codes > 5).all(1).sum()) <= 32


# The objective.


def trainee(tiles: Path) -> tuple[TrainingModel, Tensor]:
    settings = tiny()
    pixels = crops(tiles)
    model = VQVAE(settings.model)
    linear = principal_components(pixels, settings.model, torch.device("cpu"))
    start_light(model, linear)
    images = to_tensor(pixels)
    start_quantizer(model.quantize, linear(images), settings.model.patch_nums, 2, seed=0)
    return TrainingModel(model, linear, settings.model.patch_nums), images


@pytest.mark.parametrize("taught", [True, False])
def test_the_training_forward_is_the_models_own(tiles: Path, taught: bool) -> None:
    subject, images = trainee(tiles)
    out = subject(images, taught)
    *_, last = subject.model.quantize.scale_steps(subject.schedule, latent=subject.model.encode(images))
    assert torch.allclose(out.picture.clamp(-1, 1), subject.model.decode(last.f_hat), atol=1e-5)
    assert torch.equal(out.scales[-1].indices, last.indices)
    assert float(out.anchor.detach()) < 1e-8


def test_gradients_pass_the_quantizer_as_if_it_were_not_there(tiles: Path) -> None:
    subject, images = trainee(tiles)
    bias = subject.model.quant_conv.bias
    assert bias is not None
    out = subject(images, False)
    (found,) = torch.autograd.grad(out.picture.sum(), bias, retain_graph=True)
    latent = subject.model.encode(images)
    f = out.scales[-1].f_hat.detach() + latent - latent.detach()
    (wanted,) = torch.autograd.grad(subject.model.decoder(subject.model.post_quant_conv(f)).sum(), bias)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)
    codebook = subject.model.quantize.embedding.weight
    for loss, moved, still in (
        (out.codebook, codebook, bias),
        (out.commitment, bias, codebook),
        (out.last_commitment, bias, codebook),
    ):
        assert torch.autograd.grad(loss, moved, retain_graph=True)[0].any()
        assert torch.autograd.grad(loss, still, retain_graph=True, allow_unused=True)[0] is None


def test_latents_are_asked_for_what_the_settings_say(tiles: Path) -> None:
    subject, images = trainee(tiles)
    with torch.no_grad():
        assert subject.model.quant_conv.bias is not None
        subject.model.quant_conv.bias += 0.5  # away from what it is held to
        out = subject(images, False)
        latent = subject.model.encode(images)
    assert float(out.anchor) == pytest.approx(0.25, abs=1e-4)
    errors = [float((latent - scale.f_hat).square().mean()) for scale in out.scales]
    for settings, wanted in (
        (LossSettings(commitment=0.0), 0.0),
        (LossSettings(commitment=2.0), 2 * sum(errors) / len(errors)),
        (LossSettings(commitment=0.0, last_commitment=2.0), 2 * errors[-1]),
        (LossSettings(commitment=0.0, anchor=2.0), 2 * float(out.anchor)),
    ):
        found = float(latent_loss(out, settings)) - float(out.codebook)
        assert found == pytest.approx(wanted, abs=1e-4)
    assert errors[-1] < errors[0]


def test_losses_are_what_they_say() -> None:
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


def test_the_border_loss_sees_what_blockiness_is_measured_by() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    blocky = np.repeat(np.repeat(smooth[:, ::16, ::16], 16, 1), 16, 2) // 2 + smooth // 2
    measured = [
        blockiness(np.sum([count_steps(picture, 16) for picture in pictures], axis=0)) or 0.0
        for pictures in (blocky, smooth)
    ]
    loss, _ = reconstruction_loss(to_tensor(blocky), to_tensor(smooth), LossSettings(border=2.0), cell=16)
    assert float(loss) == pytest.approx(2 * (measured[0] - measured[1]) ** 2, rel=1e-4)
    assert measured[0] > measured[1] + 0.2
    for size in (16, 32):  # without borders, and without any step
        flat = torch.zeros(1, 3, size, size, requires_grad=True)
        weights = LossSettings(border=2.0, mse=1.0)
        loss, _ = reconstruction_loss(flat, torch.zeros_like(flat), weights, cell=16)
        loss.backward()
        assert loss.item() == 0
        assert flat.grad is not None
        assert flat.grad.isfinite().all()


def test_the_adversarys_opinion_weighs_as_much_as_the_loss_and_it_learns() -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    adversary = Adversary(Accelerator(cpu=True), rate=1e-3)
    real = torch.rand(4, 3, 32, 32)
    drawn = (real * 0.2).requires_grad_()
    loss = (drawn - real).square().mean()
    opinion = adversary.opinion(real, drawn, loss)
    (ours,) = torch.autograd.grad(opinion, drawn, retain_graph=True)
    (theirs,) = torch.autograd.grad(loss, drawn)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-3)
    for _ in range(20):
        adversary.learn(real, drawn)
    network = PatchDiscriminator()
    network.load_state_dict(adversary.state_dict()["network"])
    assert network(real).mean() > network(drawn).mean() + 0.5


# Whole runs.


def go(settings: TrainSettings, sources: Path | Sequence[Path], run: Path, **options: Any) -> list[Any]:
    """Train on the CPU; what was reported."""
    told: list[Any] = []
    done = train(
        settings,
        [sources] if isinstance(sources, Path) else sources,
        run,
        cpu=True,
        report=told.append,
        **options,
    )
    assert done != ("should_stop" in options)
    return told


def test_a_run_learns_a_few_pictures_and_exports_a_checkpoint(tiles: Path, tmp_path: Path) -> None:
    few = [tiles / name for name in ("tile00.png", "tile11.png", "tile22.png", "tile33.png")]
    settings = tiny(
        data={"hold_out": 1 << 30, "zoom": 1.0, "grey": 0.0, "jitter": 0.0},
        run={"steps": 150},
        optimizer={"taught": 20},
    )
    told = go(settings, few, tmp_path / "run")
    steps = [event for event in told if isinstance(event, Progress)]
    assert steps[-1].psnr > steps[0].psnr + 3
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].step == 150
    assert steps[-1].share == 1

    loaded = vartok.load(tmp_path / "run" / WEIGHTS, device="cpu")
    assert loaded.config == settings.model
    assert loaded.name == "tiny"
    images = to_tensor(np.stack([np.asarray(Image.open(path).resize((64, 64))) for path in few]))
    error = (loaded.decode(loaded.encode(images)) - images).square().mean()
    assert 10 * math.log10(4 / error) > steps[0].psnr + 1.5  # smoother pictures than crops, by other weights
    card = (tmp_path / "run" / "weights.md").read_text()
    assert "150 steps of 4 crops of 64x64 pixels" in card
    assert settings == read_settings(str(tmp_path / "run" / "settings.toml"))


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_a_resumed_run_is_as_one_that_never_stopped(tiles: Path, tmp_path: Path, codebook: str) -> None:
    settings = tiny(
        quantizer={"codebook": codebook, "restart": 0.9, "decay": 0.8},
        loss={"adversarial": 0.1, "adversarial_start": 3},
        optimizer={"cooldown": 0.0},
    )
    go(settings, tiles, tmp_path / "whole")
    asked = itertools.count(1)
    go(settings, tiles, tmp_path / "parts", should_stop=lambda: next(asked) == 5)
    half = torch.load(tmp_path / "parts" / STATE, weights_only=True)
    assert half["step"] == 5
    go(settings, tiles, tmp_path / "parts", resume=True)
    whole, parts = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 8
    assert whole["place"] == parts["place"]
    assert whole["restarted"] == parts["restarted"] > 0
    for part in ("trainee", "averaged"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, parts[part][name]), name
    for part in ("use", "sums"):
        assert torch.equal(whole[part], parts[part])
    for keys in (["optimizer"], ["adversary", "optimizer"]):
        one, two = whole, parts
        for key in keys:
            one, two = one[key], two[key]
        for number, moments in one["state"].items():
            assert all(torch.equal(value, two["state"][number][key]) for key, value in moments.items())


def going_on(tiles: Path, folder: Path) -> tuple[Path, TrainSettings]:
    """Weights of a run, and the settings of one that begins with them; its preset has another [model]."""
    go(tiny(), tiles, folder / "first")
    weights = folder / "first" / WEIGHTS
    (folder / "other.toml").write_text(TINY.replace("[1, 2, 4]", "[1, 4]"))
    return weights, read_settings(str(folder / "other.toml"), weights=weights)


def test_training_goes_on_from_a_checkpoint(tiles: Path, tmp_path: Path) -> None:
    weights, settings = going_on(tiles, tmp_path)
    assert settings.model == tiny().model
    assert settings.optimizer.taught == 0
    assert settings == TrainSettings.from_toml(settings.to_toml())
    still = dataclasses.replace(
        settings,
        optimizer=dataclasses.replace(settings.optimizer, rate=0.0, encoder_rate=0.0),
        quantizer=QuantizerSettings(codebook="gradient", restart=0.0),
    )
    told = go(still, tiles, tmp_path / "second")
    assert "going on from tiny" in told
    before, after = load_file(weights), load_file(tmp_path / "second" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_latents_are_held_to_the_checkpoints_and_in_a_resumed_run_too(tiles: Path, tmp_path: Path) -> None:
    weights, settings = going_on(tiles, tmp_path)
    go(settings, tiles, tmp_path / "whole")
    asked = itertools.count(1)
    go(settings, tiles, tmp_path / "parts", should_stop=lambda: next(asked) == 5)
    first = load_file(weights)
    weights.unlink()  # a run that has begun does not need it
    go(settings, tiles, tmp_path / "parts", resume=True)
    whole, parts = (
        torch.load(tmp_path / name / STATE, weights_only=True)["trainee"] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    held = {name: tensor for name, tensor in whole.items() if name.startswith("target.")}
    moved = [name for name, tensor in held.items() if not torch.equal(tensor, whole[_of_model(name)])]
    assert moved
    for name, tensor in held.items():
        assert torch.equal(tensor, first[_of_model(name).removeprefix("model.")]), name


def _of_model(name: str) -> str:
    """What the model calls a tensor of the frozen encoder."""
    return name.replace("target.0.", "model.encoder.").replace("target.1.", "model.quant_conv.")


def test_weights_of_another_configuration_are_refused(tiles: Path, tmp_path: Path) -> None:
    _, settings = going_on(tiles, tmp_path)
    other = dataclasses.replace(settings, model=dataclasses.replace(settings.model, vocab_size=32))
    with pytest.raises(TrainError, match=r"first.weights\.safetensors: its configuration is not the run's"):
        go(other, tiles, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_measures_what_is_held_out(tiles: Path, tmp_path: Path) -> None:
    told = go(tiny(), tiles, tmp_path / "run")
    (validation,) = (event for event in told if isinstance(event, Validation))
    assert validation.pictures == len(pictures(tiles, hold_out=5).held_out(1))
    loaded = vartok.load(tmp_path / "run" / WEIGHTS, device="cpu")
    errors = []
    for pixels in pictures(tiles, hold_out=5).held_out(1):
        drawn = loaded.decode(loaded.encode(to_tensor(pixels[None])))
        levels = ((drawn[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
        errors.append(10 * math.log10(255**2 / np.square(levels - pixels).mean()))
    assert validation.psnr == pytest.approx(np.mean(errors), abs=1e-3)
    with Image.open(tmp_path / "run" / SAMPLES / "0000008.png") as sheet:
        assert sheet.size == (64 * min(8, validation.pictures), 128)
    assert list((tmp_path / "run" / "log").glob("events*"))


def test_minutes_end_a_run(tiles: Path, tmp_path: Path) -> None:
    told = go(tiny(run={"steps": 1 << 30, "minutes": 0.04}), tiles, tmp_path / "run")
    last = [event for event in told if isinstance(event, Progress)][-1]
    assert last.share == 1
    assert 2.4 <= last.seconds < 20


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_state(tiles: Path, tmp_path: Path) -> None:
    go(tiny(), tiles, tmp_path / "run")
    state = (tmp_path / "run" / STATE).read_bytes()
    broken = tiny(run={"steps": 40}, optimizer={"rate": 1e9, "encoder_rate": 1e9, "clip": 1e9, "warmup": 0})
    with pytest.raises(TrainError, match=rf"not a number at step .* smaller rates; .*{STATE} holds the last"):
        go(broken, tiles, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).read_bytes() == state
    asked = itertools.count(1)
    with pytest.raises(TrainError, match="not a number at step"):  # stopped before anything is reported
        go(broken, tiles, tmp_path / "run", resume=True, should_stop=lambda: next(asked) == 4)
    assert (tmp_path / "run" / STATE).read_bytes() == state


def test_a_run_that_cannot_be_written_ends_in_one_line(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / WEIGHTS).mkdir(parents=True)
    with pytest.raises(TrainError, match=r"weights\.safetensors cannot be written"):
        go(tiny(), tiles, tmp_path / "run")


def test_a_run_inside_its_data_does_not_train_on_its_samples(tiles: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiles, data)
    go(tiny(), data, data / "run")
    assert list((data / "run" / SAMPLES).glob("*.png"))
    assert not any("pictures are not" in str(event) for event in go(tiny(), data, data / "run", resume=True))
    (data / "tile00.png").unlink()
    assert any("pictures are not" in str(event) for event in go(tiny(), data, data / "run", resume=True))


def test_a_collapsing_codebook_ends_the_run(tiles: Path, tmp_path: Path) -> None:
    settings = tiny(quantizer={"restart": 0.0, "decay": 0.5}, data={"jitter": 0.0}, run={"steps": 20})
    go(settings, tiles, tmp_path / "run")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "flat.png")
    longer = dataclasses.replace(settings, run=dataclasses.replace(settings.run, steps=100))
    with pytest.raises(TrainError, match="codebook has collapsed at step"):
        go(longer, tmp_path / "flat.png", tmp_path / "run", resume=True)


def test_folders_that_hold_a_run_are_not_begun_anew(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no state of a run"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE).write_bytes(b"junk")
    with pytest.raises(TrainError, match="holds a run already"):
        go(tiny(), tiles, tmp_path / "run")
    with pytest.raises(TrainError, match="is not a run's state"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    torch.save({"step": 3}, tmp_path / "run" / STATE)
    with pytest.raises(TrainError, match="is not this run's state"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    (tmp_path / "run" / STATE).rename(tmp_path / "run" / WEIGHTS)  # weights are not overwritten either
    with pytest.raises(TrainError, match="holds a run already"):
        go(tiny(), tiles, tmp_path / "run")


def test_a_resumed_run_has_the_settings_it_is_given(tiles: Path, tmp_path: Path) -> None:
    judged = {"adversarial": 0.1}
    told = go(tiny(loss=judged, run={"steps": 4, "validate_every": 2}), tiles, tmp_path / "run")
    assert [event.step for event in told if isinstance(event, Validation)] == [2, 4]  # the end once
    changed = tiny(
        loss=judged, run={"steps": 5}, optimizer={"weight_decay": 0.5, "rate": 2e-3, "cooldown": 0.0}
    )
    go(changed, tiles, tmp_path / "run", resume=True)
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert state["step"] == 5
    assert all(group["weight_decay"] == 0.5 for group in state["optimizer"]["param_groups"])
    assert state["adversary"]["optimizer"]["param_groups"][0]["lr"] == 2e-3
    assert any(
        "nothing to train" in str(event) for event in go(changed, tiles, tmp_path / "run", resume=True)
    )


# The command.


def command(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vartok", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


def test_the_command_trains_and_says_so(tiles: Path, tmp_path: Path, preset: Path) -> None:
    process = command(tiles, "-o", tmp_path / "run", "-p", preset, "--cpu", "--steps", "10")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "")
    assert "step 10 (100%)" in err
    assert "pictures held out" in err
    assert f"vartok encode -w {tmp_path / 'run' / WEIGHTS}" in err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{tiles}", "-o", "run", "-p", "lihgt"], 2, "no preset"),
        (["{tiles}", "-o", "run", "--resume"], 1, "holds no run"),
        (["{tiles}", "-o", "run", "--resume", "-p", "light"], 2, "leave --preset out"),
        (["{tiles}", "-o", "run", "--resume", "--from", "shipped"], 2, "leave --from out"),
        (["{tiles}", "-o", "run", "--from", "none.pth"], 1, "none.pth: No such file or directory"),
        (["{tiles}", "-o", "run", "--from", "{tiles}/tile00.png"], 1, "neither a safetensors nor a PyTorch"),
        (["nowhere", "-o", "run"], 1, "nowhere: no such file or folder"),
        (["empty", "-o", "run"], 1, "no pictures"),
        (["{tiles}", "-o", "run", "--batch-size", "0"], 2, "batch-size"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    vartok: Any,
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = vartok("train", *(text.format(tiles=tiles) for text in arguments), code=code)
    assert reason in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1


def interrupted(process: subprocess.Popen[str], text: str) -> str:
    """Press Ctrl-C once a line of stderr has the text; what it says from there on."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    return err


@pytest.mark.slow
def test_a_command_interrupted_before_its_first_step_leaves_nothing(tiles: Path, tmp_path: Path) -> None:
    err = interrupted(command(tiles, "-o", tmp_path / "run", "--cpu"), "looking at")
    assert err == "vartok: stopped at once; the run had saved nothing yet\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupted_command_saves_and_tells_how_to_go_on(
    tiles: Path, tmp_path: Path, preset: Path
) -> None:
    run = tmp_path / "run"
    err = interrupted(command(tiles, "-o", run, "-p", preset, "--cpu", "--steps", "1000000"), "step 10 ")
    assert f"Go on with: vartok train {tiles} -o {run} --cpu --resume" in err
    step = torch.load(run / STATE, weights_only=True)["step"]
    process = command(tiles, "-o", run, "--cpu", "--resume", "--steps", str(step + 3))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert torch.load(run / STATE, weights_only=True)["step"] == step + 3


def launched(count: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`vartok train` in `count` processes of this machine."""
    # What runs processes is named after GPUs; our own --cpu makes them speak gloo.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    many = ["--multi_gpu"] * (count != "1") + ["--num_processes", count]
    return subprocess.run(
        [*launcher, *many, "-m", "vartok", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiles: Path, tmp_path: Path, preset: Path) -> None:
    for count in ("1", "2"):
        done = launched(count, tiles, "-p", preset, "--cpu", "--steps", "12", "-o", tmp_path / count)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("vartok: trained") == 1
        assert f"on {count} process" in (tmp_path / count / "weights.md").read_text()
    one, two = (torch.load(tmp_path / count / STATE, weights_only=True) for count in ("1", "2"))
    assert one["step"] == two["step"] == 12
    assert one["place"] == two["place"]
    for name, tensor in one["trainee"].items():
        assert torch.allclose(tensor, two["trainee"][name], rtol=1e-2, atol=1e-3), name
    assert torch.allclose(one["use"], two["use"], atol=0.05)


@pytest.mark.slow
def test_two_processes_restart_codes_and_ask_an_adversary(tiles: Path, tmp_path: Path) -> None:
    extra = "[quantizer]\nrestart = 0.9\ndecay = 0.8\n"
    judged = TINY.replace("[loss]\n", "[loss]\nadversarial = 0.1\nadversarial_start = 3\n")
    (tmp_path / "lively.toml").write_text(judged + extra)
    run = tmp_path / "run"
    done = launched("2", tiles, "-p", tmp_path / "lively.toml", "--cpu", "--minutes", "1", "-o", run)
    assert done.returncode == 0, done.stderr
    state = torch.load(run / STATE, weights_only=True)
    assert state["step"] == 8
    assert state["restarted"] > 0
    done = launched("2", tiles, "-p", tmp_path / "lively.toml", "-o", tmp_path / "lone")
    assert done.returncode
    assert "2 processes were started that do not know each other: without a GPU add --cpu" in done.stderr


# VAR's architecture.


def wanted_of_var() -> dict[str, tuple[int, ...]]:
    """The names and shapes that VAR's own class gives at ch = 32."""
    lines = (DATA / "var-small.txt").read_text().splitlines()
    return {
        name: tuple(map(int, shape.split("x"))) for name, _, shape in (line.partition(" ") for line in lines)
    }


def test_the_small_preset_has_vars_tensors() -> None:
    assert shapes(read_settings("var-small").model) == wanted_of_var()


@pytest.mark.slow
def test_the_small_preset_trains_and_exports_what_vars_class_loads(tiles: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 4},
        "start": {"pictures": 64, "rounds": 1},
        "optimizer": {"taught": 20, "warmup": 5},
        "run": {"steps": 40, "precision": "float32"},
        "model": {"patch_nums": [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]},  # as many scales as VAR's, in 64 pixels
    }
    told = go(read_settings("var-small", changes), tiles, tmp_path / "run")
    steps = [event for event in told if isinstance(event, Progress)]
    assert steps[1].loss < steps[0].loss  # while it is taught
    assert steps[-1].loss < steps[2].loss  # and after
    assert steps[-1].psnr > steps[0].psnr
    assert min(steps[-1].perplexity) > 0.3 * max(steps[-1].perplexity)
    with safe_open(tmp_path / "run" / WEIGHTS, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == wanted_of_var()
