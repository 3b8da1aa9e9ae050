"""Evaluation: every figure, computed in a second, plainer way."""

import io
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photo
from noise import SMALL, tokenizer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
)

import vartok
from vartok.codebook import Usage
from vartok.config import TokenizerConfig, VarConfig
from vartok.errors import ImageError, VartokWarning
from vartok.evaluation import (
    BASELINES,
    FIGURES,
    SCALE_FIGURES,
    BaselineScores,
    Evaluation,
    EvaluationReport,
    Failure,
    ModelScores,
    PictureScores,
    round_trips,
)
from vartok.evaluation.baselines import compress
from vartok.evaluation.figures import figures
from vartok.evaluation.perceptual import PerceptualMeter, PerceptualNetworks, load_perceptual
from vartok.evaluation.tables import figure_rows, worse_scales
from vartok.images import Fit, read_picture, to_pixels, to_tensor
from vartok.models.vqvae import VQVAE
from vartok.schedule import square
from vartok.sources import Sample

PICTURES = 2


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(photo(seed, 300, 260)) for seed in range(PICTURES)]
NATIVE = [png(photo(seed, *size)) for seed, size in enumerate([(64, 48), (192, 176), (64, 48), (32, 80)])]


@pytest.fixture(scope="module")
def light() -> vartok.Tokenizer:
    return vartok.load(device="cpu")


def named(files: Iterable[bytes]) -> list[Sample]:
    return [Sample(f"{i}.png", file) for i, file in enumerate(files)]


def measured(
    evaluation: Evaluation, files: Iterable[bytes] = FILES, **options: int
) -> tuple[tuple[PictureScores, ...], EvaluationReport]:
    found = tuple(evaluation.measure(named(files), **options))
    report = evaluation.report()
    assert report.by_picture == found, report.failures
    assert [scores.name for scores in report.by_picture] == [f"{i}.png" for i in range(len(found))]
    return report.by_picture, report


@pytest.fixture(scope="module")
def scores_and_report(light: vartok.Tokenizer) -> tuple[tuple[PictureScores, ...], EvaluationReport]:
    return measured(Evaluation([light], Fit(), baselines=True))


def drawn(
    light: vartok.Tokenizer, file: bytes, fit: Fit, scales: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture and its reconstruction."""
    pixels = read_picture(file, fit).pixels
    return pixels, to_pixels(light.decode(light.encode(to_tensor(pixels[None])), scales))[0]


def by_hand(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(20 * np.log10(255 / np.sqrt(((a.astype(float) - b.astype(float)) ** 2).mean())))


def mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def test_figures_of_pixels(
    light: vartok.Tokenizer, scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport]
) -> None:
    found, report = scores_and_report
    model = report.models[0]
    for scores, file in zip(found, FILES, strict=True):
        [scores_of_light] = scores.models
        pixels, copy = drawn(light, file, Fit())
        assert (scores.height, scores.width) == (256, 256)
        assert scores_of_light.psnr == pytest.approx(by_hand(pixels, copy))
        images, images_copy = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255 for part in (pixels, copy))
        for metric, value in (
            (PeakSignalNoiseRatio(data_range=1.0), scores_of_light.psnr),
            (StructuralSimilarityIndexMeasure(data_range=1.0), scores_of_light.ssim),
            (MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0), scores_of_light.ms_ssim),
        ):
            assert value == pytest.approx(float(metric(images_copy, images)), abs=1e-4)
        assert scores_of_light.scale_psnr is not None
        assert len(scores_of_light.scale_psnr) == 10
        for k in (1, 5, 10):
            assert scores_of_light.scale_psnr[k - 1] == pytest.approx(by_hand(*drawn(light, file, Fit(), k)))
        unquantized = to_pixels(light.decode_latent(light.latent(to_tensor(pixels[None]))))[0]
        assert scores_of_light.unquantized_psnr == pytest.approx(by_hand(pixels, unquantized))
        assert scores_of_light.psnr == scores_of_light.scale_psnr[-1]
        assert scores_of_light.lpips is None
    assert report.pictures == report.ms_ssim_pictures == PICTURES
    for name in ("psnr", "ssim", "ms_ssim", "unquantized_psnr"):
        wanted = mean(getattr(scores.models[0], name) for scores in found)
        assert getattr(model, name) == pytest.approx(wanted)
    for k in range(10):
        wanted = mean((s.models[0].scale_psnr or ())[k] for s in found)
        assert (model.scale_psnr or ())[k] == pytest.approx(wanted)
    assert model.bits_per_pixel == 680 * 12 / 65536
    assert model.size_bytes == 1020
    assert model.model == light.info
    assert model.schedule == light.config.patch_nums
    assert model.lpips is model.rfid is None


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 3), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_batches_and_threads_change_nothing(
    light: vartok.Tokenizer,
    scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport],
    batch_size: int,
    workers: int,
) -> None:
    evaluation = Evaluation([light], Fit(), baselines=True)
    found = measured(evaluation, batch_size=batch_size, workers=workers)
    assert found == scores_and_report


def test_prefixes_are_what_decode_gives(
    light: vartok.Tokenizer,
) -> None:
    images = torch.cat([to_tensor(read_picture(file, Fit(size=(64, 96))).pixels[None]) for file in FILES])
    tokens = light.encode(images)
    prefixes = light.decode_prefixes(tokens)
    for k in range(1, 11):
        assert torch.equal(next(prefixes), light.decode(tokens, k))
        assert torch.is_grad_enabled()  # between two of them too
    assert next(prefixes, None) is None
    assert len(list(light.decode_prefixes(tokens, 4))) == 4
    with pytest.raises(vartok.TokensError):
        next(light.decode_prefixes(tokens, 11))
    assert torch.equal(light.decode_latent(light.f_hat(tokens)), light.decode(tokens))


# Blockiness.


def test_blockiness_is_computed_over_all_pictures(
    light: vartok.Tokenizer, scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport]
) -> None:
    pairs = [drawn(light, file, Fit()) for file in FILES]
    model = scores_and_report[1].models[0]
    for side, cell, value in (
        (0, 16, model.reference_blockiness),
        (1, 16, model.blockiness),
        (0, 4, model.reference_fine_blockiness),
        (1, 4, model.fine_blockiness),
    ):
        border: list[NDArray[Any]] = []
        inside: list[NDArray[Any]] = []
        for pair in pairs:
            for axis in (0, 1):
                steps = np.moveaxis(np.abs(np.diff(pair[side].astype(float), axis=axis)), axis, 0)
                border += [step.ravel() for i, step in enumerate(steps) if i % cell == cell - 1]
                inside += [step.ravel() for i, step in enumerate(steps) if i % cell != cell - 1]
        assert value == pytest.approx(np.concatenate(border).mean() / np.concatenate(inside).mean())


def test_the_spectral_peak_is_that_of_all_pictures(light: vartok.Tokenizer) -> None:
    fit = Fit(size=(128, 144))
    model = measured(Evaluation([light], fit))[1].models[0]
    excess = np.zeros(8)
    for file in FILES:
        for pixels, sign in zip(drawn(light, file, fit), (-1, 1), strict=True):
            for lines in (pixels.swapaxes(0, 1), pixels):  # [lines, values, C]
                waves = lines - lines.astype(float).mean(1, keepdims=True)
                side = lines.shape[1]
                window = np.sin(np.pi * np.arange(side) / side) ** 2
                power = np.abs(np.fft.fft(waves * window[:, None] / 127.5, axis=1)) ** 2 / (window**2).sum()
                log = 10 * np.log10(power.mean((0, 2)) + 1e-5)
                n = side // 16
                for k in range(1, 9):
                    near = [log[k * n + s * away] for away in range(n // 4, n // 2 + 1) for s in (-1, 1)]
                    excess[k - 1] += sign * (log[k * n] - np.mean(near)) / 2 / len(FILES)
    assert model.spectral_peak == pytest.approx(excess.max(), abs=1e-3)


def test_patches_of_one_pixel_have_no_spectral_peak() -> None:
    config = TokenizerConfig(
        vocab_size=16, z_channels=4, autoencoder=VarConfig(ch=32, ch_mult=(1,), num_res_blocks=1)
    )
    tokenizer = vartok.Tokenizer(
        VQVAE(config), config, name="small", device=torch.device("cpu"), dtype="float32"
    )
    report = measured(Evaluation([tokenizer], Fit(size=(16, 16))), FILES[:1])[1]
    assert report.models[0].spectral_peak is None


def test_pictures_of_few_patches_have_no_spectral_peak(light: vartok.Tokenizer) -> None:
    report = measured(Evaluation([light], Fit(mode="native")), NATIVE[:2])[1]  # 64 and 176 pixels
    assert (report.pictures, report.models[0].spectral_peak_pictures) == (2, 1)
    assert "spectral peak, dB, 1 of 2 pictures" in [title for title, *_ in figure_rows(report)]
    report = measured(Evaluation([light], Fit(mode="native")), NATIVE[:1])[1]
    assert report.models[0].spectral_peak is None
    assert "spectral_peak" not in report.methods()


# Tokens.


def test_codes_are_counted_by_scale(light: vartok.Tokenizer) -> None:
    found, report = measured(Evaluation([light], Fit(mode="native")), NATIVE, batch_size=3)
    assert [(scores.width, scores.height) for scores in found] == [(64, 48), (192, 176), (64, 48), (32, 80)]
    tokens = [light.encode(to_tensor(read_picture(f, Fit(mode="native")).pixels[None])) for f in NATIVE]
    model = report.models[0]
    for k, usage in enumerate(model.usage.scales):
        codes = torch.cat([item.maps[k].flatten() for item in tokens])
        assert (usage.tokens, usage.used) == (len(codes), len(codes.unique()))
    count = sum(item.flatten().shape[1] for item in tokens)
    assert model.usage.overall.tokens == count
    assert model.bits_per_pixel == pytest.approx(count * 12 / (2 * 64 * 48 + 192 * 176 + 32 * 80))
    assert model.size_bytes == mean(math.ceil(item.flatten().shape[1] * 1.5) for item in tokens)
    assert model.schedule is None
    for scores, file in zip(found, NATIVE, strict=True):
        assert scores.models[0].psnr == pytest.approx(by_hand(*drawn(light, file, Fit(mode="native"))))
    assert [scores.models[0].ms_ssim is not None for scores in found] == [False, True, False, False]
    assert report.ms_ssim_pictures == 1
    assert model.ms_ssim == found[1].models[0].ms_ssim
    assert measured(Evaluation([light], Fit(mode="native")), NATIVE[:1])[1].models[0].ms_ssim is None


def test_a_given_schedule(light: vartok.Tokenizer) -> None:
    _, report = measured(Evaluation([light], Fit(size=(64, 64)), schedule=square(1, 4)))
    model = report.models[0]
    assert model.schedule == square(1, 4)
    assert len(model.scale_psnr or ()) == len(model.usage.scales) == 2
    assert model.usage.overall.tokens == 17 * PICTURES
    assert model.size_bytes == 26  # 25.5


# Failures.


def test_a_failure_changes_no_figure(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(64, 64)), baselines=True)
    files = [FILES[0], b"no picture", FILES[1]]
    results = list(evaluation.measure(named(files), batch_size=3))
    assert [result.name for result in results] == ["0.png", "1.png", "2.png"]
    report = evaluation.report()
    assert report.failures == (results[1],)
    assert isinstance(report.failures[0].error, ImageError)
    _, alone = measured(Evaluation([light], Fit(size=(64, 64)), baselines=True), FILES[:2])
    assert (report.models, report.baselines) == (alone.models, alone.baselines)
    evaluation = Evaluation([light], Fit(size=(64, 64)), baselines=True)
    list(evaluation.measure(named([b"no picture"])))
    report = evaluation.report()
    assert (report.models, report.baselines) == ((), ())


def test_a_picture_too_small_for_ssim(tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    [result] = Evaluation([small], Fit(size=(8, 8))).measure(named(FILES[:1]))
    assert isinstance(result, Failure)
    assert "fewer than 11 pixels" in str(result.error)


# Several tokenizers.


def test_several_tokenizers_are_measured_as_each_alone(light: vartok.Tokenizer, tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    fit = Fit(size=(32, 32))
    found, both = measured(Evaluation([light, small], fit, baselines=True))
    assert both.models[0] == measured(Evaluation([light], fit))[1].models[0]
    assert both.models[1] == measured(Evaluation([small], fit))[1].models[0]
    assert [len(model.scale_psnr or ()) for model in both.models] == [10, 3]
    assert both.baselines == measured(Evaluation([light], fit, baselines=True))[1].baselines
    assert all(len(scores.models) == 2 for scores in found)


def test_pictures_may_differ_in_their_number_of_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pictures of 512 and 1024 pixels do in VAR's schedules."""
    monkeypatch.setattr("vartok.schedule.VAR", (SMALL.patch_nums, square(1, 2, 4, 8)))
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    pictures = [png(photo(0, side, side)) for side in (32, 16)]
    found, report = measured(Evaluation([small], Fit(mode="native")), pictures)
    assert [len(scores.models[0].scale_psnr or ()) for scores in found] == [3, 4]
    model = report.models[0]
    assert [scale.tokens for scale in model.usage.scales] == [2, 64 + 4, 256 + 16, 64]
    assert model.scale_psnr is None
    assert model.schedule is None


def test_worst_sorts_by_psnr(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(64, 64)))
    found, report = measured(evaluation)
    worst = report.worst(2)
    values = sorted(scores.models[0].psnr for scores in found)
    assert [scores.models[0].psnr for scores in worst] == values[:2]
    assert report.worst(0) == []
    assert len(report.worst(99)) == PICTURES


# JPEG and WebP.


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compress_finds_the_best_file_within_budget(format: str) -> None:
    pixels = np.asarray(photo(0, 64, 64))
    options = {"optimize": True, "subsampling": "4:2:0"} if format == "jpeg" else {"method": 6}
    sizes = {}
    for quality in range(0, 101, 4):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format, quality=quality, **options)
        sizes[quality] = len(buffer.getvalue())
    for budget in (sizes[20], sizes[60], 10**6):
        data = compress(pixels, format, budget)
        best = max(size for size in sizes.values() if size <= budget)
        assert 0.97 * best <= len(data) <= budget  # of WebP more quality is a few bytes less at times
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == format.upper()
            assert image.size == (64, 64)
    smallest = compress(pixels, format, 1)
    assert len(smallest) <= min(sizes.values())


def test_baselines_stay_within_budget_or_are_counted(
    scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport],
) -> None:
    found, report = scores_and_report
    for i, format in enumerate(("jpeg", "webp")):
        summary, each = report.baselines[i], [scores.baselines[i] for scores in found]
        assert summary.format == format
        assert summary.over_budget == sum(one.size_bytes > 1020 for one in each)
        assert summary.size_bytes == mean(one.size_bytes for one in each)
        assert summary.bits_per_pixel == pytest.approx(summary.size_bytes * 8 / 65536)
        for scores, one, file in zip(found, each, FILES, strict=True):
            pixels = read_picture(file, Fit()).pixels
            with Image.open(io.BytesIO(compress(pixels, format, 1020))) as image:
                assert one.psnr == pytest.approx(by_hand(pixels, np.asarray(image.convert("RGB"))))
            assert scores.models[0].psnr != one.psnr
        for name in ("psnr", "ssim", "ms_ssim"):
            assert getattr(summary, name) == pytest.approx(mean(getattr(one, name) for one in each))


@pytest.mark.slow
def test_figures_within_budget_are_of_the_same_pictures(light: vartok.Tokenizer) -> None:
    """Noise fits no few bytes; a plain picture does."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    files = [png(Image.fromarray(noise)), png(Image.new("RGB", (256, 256), "teal"))]
    found, report = measured(Evaluation([light], Fit(), baselines=True), files)
    for i, summary in enumerate(report.baselines):
        assert [scores.baselines[i].size_bytes > 1020 for scores in found] == [True, False]
        assert summary.over_budget == 1
        assert summary.within_budget_psnr == found[1].baselines[i].psnr
        assert summary.tokens_within_budget_psnr == found[1].models[0].psnr
    _, report = measured(Evaluation([light], Fit(), baselines=True), files[:1])
    assert report.baselines[0].within_budget_psnr is report.baselines[0].tokens_within_budget_psnr is None


# LPIPS and rFID, with small networks in their place.


class Distance(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


class Colours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))


def frechet(a: NDArray[Any], b: NDArray[Any]) -> float:
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum()
    return float(apart + np.trace(left) + np.trace(right) - 2 * roots)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_networks_see_the_reference_and_the_copy(light: vartok.Tokenizer, batch_size: int) -> None:
    fit = Fit(mode="native")
    files = [*NATIVE, png(photo(7, 16, 64))]
    evaluation = Evaluation([light, light], fit, lpips=Distance(), inception=Colours())
    found, report = measured(evaluation, files, batch_size=batch_size)
    pairs = [drawn(light, file, fit) for file in files]
    for scores, (pixels, copy) in zip(found, pairs, strict=True):
        wanted = np.abs(pixels / 127.5 - copy / 127.5).mean()
        if min(pixels.shape[:2]) < 32:
            assert scores.models[0].lpips is None
        else:
            assert scores.models[0].lpips == pytest.approx(wanted, rel=1e-4)
    known = [scores.models[0].lpips for scores in found[:-1]]
    colours = [np.array([part.mean((0, 1)) for part in side]) for side in zip(*pairs, strict=True)]
    for model in report.models:
        assert model.lpips == pytest.approx(mean(known))
        assert model.rfid == pytest.approx(frechet(*colours), rel=1e-3)


def test_perceptual_figures(light: vartok.Tokenizer) -> None:
    """Pictures of 16 x 64 pixels are too small; JPEG and WebP are measured as a checkpoint is."""
    networks = load_perceptual(channels=3)
    assert networks is not None
    fit = Fit(mode="native")
    large = [NATIVE[0], NATIVE[3]]
    files = [*large, png(photo(7, 16, 64))]
    evaluation = Evaluation([light, light], fit, baselines=True, perceptual=networks)
    found, report = measured(evaluation, files, batch_size=3, workers=2)
    assert report.perceptual_pictures == len(large)
    features = []
    for scores, file in zip(found, large, strict=False):
        pixels, copy = drawn(light, file, fit)
        images, copies, first = (
            to_tensor(part[None]) for part in (pixels, copy, drawn(light, file, fit, 1)[1])
        )
        one = scores.models[0]
        assert one.st_lpips_alex == pytest.approx(float(networks.alex(copies, images)), abs=1e-6)
        assert one.st_lpips_vgg == pytest.approx(float(networks.vgg(copies, images)), abs=1e-6)
        assert one.scale_st_lpips is not None
        assert len(one.scale_st_lpips) == 10
        assert one.scale_st_lpips[0] == pytest.approx(float(networks.alex(first, images)), abs=1e-6)
        assert one.scale_st_lpips[-1] == one.st_lpips_alex
        data = compress(pixels, "webp", int(one.size_bytes))
        file_copy = to_tensor(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None])
        webp = scores.baselines[1]
        assert webp.st_lpips_alex == pytest.approx(float(networks.alex(file_copy, images)), abs=1e-6)
        assert webp.scale_st_lpips is None
        depths = [networks.lite2(part)[-1].mean((2, 3))[0].numpy() for part in (images, copies, file_copy)]
        features.append(depths)
    small = found[-1].models[0]
    assert (small.st_lpips_alex, small.st_lpips_vgg, small.scale_st_lpips) == (None, None, None)
    sides = [np.array(side) for side in zip(*features, strict=True)]
    for column, side in ((report.models[0], 1), (report.models[1], 1), (report.baselines[1], 2)):
        assert column.frechet_lite2 == pytest.approx(frechet(sides[0], sides[side]), rel=1e-3)
        known = [scores.models[0] if side == 1 else scores.baselines[1] for scores in found[:-1]]
        assert column.st_lpips_vgg == pytest.approx(mean(one.st_lpips_vgg for one in known))
    assert report.methods().keys() >= {"st_lpips_alex", "st_lpips_vgg", "frechet_lite2", "scale_st_lpips"}
    quick = measured(Evaluation([light], fit, scales=False, perceptual=networks), large[:1])[1].models[0]
    assert quick.scale_st_lpips is None
    assert quick.st_lpips_alex is not None


def test_perceptual_figures_are_computed_in_float32() -> None:
    """CUDA computes convolutions in TF32 by default."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    seen: list[bool] = []

    class Network(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            seen.append(convolutions.fp32_precision != "ieee" or torch.is_grad_enabled())
            return [images]

        features = forward

        def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
            return (features[0] - others[0]).abs().mean((1, 2, 3))

    network: Any = Network()
    meter = PerceptualMeter(PerceptualNetworks(network, network, network), torch.device("cpu"))
    pixels = np.zeros((32, 32, 3), np.uint8)
    assert meter.measure(pixels, [pixels], [[pixels]]).alex == (0.0,)
    assert seen == [False] * 7
    assert convolutions.fp32_precision != "ieee"


def test_a_picture_that_does_not_fit_into_memory_fails_alone(
    light: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(reference: NDArray[np.uint8], copy: NDArray[np.uint8]) -> float:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr("vartok.evaluation.run.ssim", scarce)
    evaluation = Evaluation([light], Fit(size=(32, 32)), scales=False)
    [failure] = evaluation.measure(named(FILES[:1]))
    assert isinstance(failure, Failure)
    assert str(failure.error) == "not enough memory to measure this picture"


def test_networks_that_cannot_measure_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(VartokWarning, match="they need pictures of 1 or 3 channels, not the checkpoint's 5$"):
        assert load_perceptual(channels=5) is None
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    with pytest.warns(
        VartokWarning,
        match=r"\(Lite2\) are left out: not installed: stlpips_pytorch .*; run pip install '\.\[perceptual",
    ):
        assert load_perceptual(channels=3) is None


def test_one_picture_has_no_frechet_distance(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(32, 32)), inception=Colours())
    assert measured(evaluation, FILES[:1])[1].models[0].rfid is None


def test_scales_left_out_change_nothing_else(
    light: vartok.Tokenizer, scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport]
) -> None:
    _, report = measured(Evaluation([light], Fit(), baselines=True, scales=False))
    assert report.models[0] == replace(scores_and_report[1].models[0], scale_psnr=None)
    assert report.baselines == scores_and_report[1].baselines
    assert "scale_psnr" not in report.methods()


@pytest.mark.parametrize(
    ("psnr", "st_lpips", "said"),
    [
        ((1.0, 2.0, 3.0), (0.3, 0.2, 0.1), ""),
        (None, None, ""),
        ((1.0, 0.9, 3.0), None, "Worse: PSNR falls with scale 2."),
        (
            (1.0, 2.0, 1.5),
            (0.1, 0.2, 0.3),
            "Worse: PSNR falls with scale 3; ST-LPIPS rises with scales 2, 3.",
        ),
    ],
)
def test_scales_that_get_worse_are_named(
    scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport],
    psnr: tuple[float, ...] | None,
    st_lpips: tuple[float, ...] | None,
    said: str,
) -> None:
    scores = replace(scores_and_report[1].models[0], scale_psnr=psnr, scale_st_lpips=st_lpips)
    assert worse_scales(scores) == said


def test_every_figure_has_one_name_and_one_title(
    scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport],
) -> None:
    figures = [*FIGURES, *SCALE_FIGURES]
    assert (
        len({figure.name for figure in figures}) == len({figure.title for figure in figures}) == len(figures)
    )
    known = {name for kind in (ModelScores, BaselineScores, Usage) for name in kind.__dataclass_fields__}
    assert {figure.name for figure in figures} <= known
    methods = scores_and_report[1].methods()
    assert methods.keys() == {"reference", *(figure.name for figure in figures), *BASELINES} - {
        *("lpips", "rfid", "st_lpips_alex", "st_lpips_vgg", "frechet_lite2", "scale_st_lpips"),
    }


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_methods_speak_of_colours_only_for_three_channels(
    scores_and_report: tuple[tuple[PictureScores, ...], EvaluationReport], channels: int
) -> None:
    report = replace(scores_and_report[1], fit=Fit(channels=channels))
    texts = [*report.methods().values(), round_trips.method(channels)]
    texts += [figure.method for figure in figures(channels) if figure.optional]
    said = "\n".join(texts)
    assert [word in said for word in ("RGB", "4:2:0")] == [channels == 3] * 2
    assert [word in said for word in ("16 bits", "16-bit", "uint16", "three times")] == [channels != 3] * 4
