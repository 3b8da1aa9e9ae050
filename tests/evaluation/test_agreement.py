"""Agreement of tokens between dtypes and devices."""

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import save
from noise import SMALL, bare, draw
from noise import save as save_checkpoint

import vartok
from vartok.codebook import Spread
from vartok.errors import ArgumentError, DeviceError, VartokWarning
from vartok.evaluation import AgreementMeter, evaluate_files
from vartok.evaluation.agreement import Differences, MarginHistogram
from vartok.evaluation.equality import describe_equal
from vartok.images import Fit, read_picture, to_tensor
from vartok.runtime import DTYPES
from vartok.schedule import VAR_256


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four pictures of two sizes."""
    return [save(tmp_path / f"{seed}.png", seed, *((12, 12), (16, 24))[seed % 2]) for seed in range(4)]


@pytest.mark.parametrize("znorm", [False, True])
def test_differences_and_margins(
    weights: Path, files: list[Path], tmp_path: Path, znorm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vartok.runner.computed_dtype", lambda dtype, device: DTYPES[dtype])
    if znorm:
        config = dataclasses.replace(SMALL, using_znorm=True)
        weights = save_checkpoint(tmp_path / "znorm.safetensors", config)
    report = evaluate_files(
        files, weights=weights, device="cpu", fit="native", scales=False, agree="bfloat16", batch_size=2
    )
    reference, other = (vartok.load(weights, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    codes = reference.codebook.double()
    equal, margins, first = 0, [], []
    for file in files:
        images = to_tensor(read_picture(file, Fit(mode="native", multiple=2)).pixels[None])
        latent = reference.latent(images)
        tokens, others = reference.encode(images), other.encode(images)
        steps = reference._model.quantize.scale_steps(tokens.schedule, latent=latent)
        found: list[list[float]] = []
        for step, own, changed in zip(steps, tokens.maps, others.maps, strict=True):
            assert step.cells is not None
            equal += int((own == changed).sum())
            cells = step.cells.permute(0, 2, 3, 1)[own != changed].double()
            if znorm:
                cells, codes = F.normalize(cells, dim=1), F.normalize(codes, dim=1)
            nearest = (cells[:, None] - codes).norm(dim=2).sort(dim=1).values
            found.append((1 - nearest[:, 0] / nearest[:, 1]).tolist())
        margins += [margin for scale in found for margin in scale]
        first += next((scale for scale in found if scale), [])
    [result] = report.agreements
    assert (result.name, result.device, result.dtype) == ("bfloat16", "cpu", "bfloat16")
    assert sum(result.equal.equal) == equal
    assert sum(result.equal.tokens) == equal + len(margins)
    assert (result.differences, result.first_differences) == (len(margins), len(first))
    assert result.first_share == len(first) / len(margins)
    assert 0 < len(first) < len(margins)
    for spread, values in ((result.margin, margins), (result.first_margin, first)):
        assert spread is not None
        wanted = (min(values), np.median(values), max(values))
        assert dataclasses.astuple(spread) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert "distances" in report.methods()["agreements"]


def test_batches_change_nothing_and_the_reference_agrees_with_itself(
    weights: Path, files: list[Path]
) -> None:
    options: dict[str, Any] = {"weights": weights, "device": "cpu", "size": 16, "scales": False}
    one, many = (
        evaluate_files(files, agree=["bfloat16", "cpu"], batch_size=size, **options) for size in (1, 4)
    )
    assert one.agreements == many.agreements
    low, same = one.agreements
    assert low.differences > 0
    assert (same.name, same.dtype, same.equal.share, same.differences) == ("cpu", "float32", 1.0, 0)
    assert same.margin is same.first_margin is None
    assert same.first_share is None
    assert evaluate_files(files, agree="float32", dtype="bfloat16", **options).agreements[0].differences == 0


def test_notes_on_a_checkpoint_are_said_once(files: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, patch_nums=VAR_256)
    weights = bare(tmp_path / "bare.safetensors", draw(config))
    with pytest.warns(VartokWarning) as alone:
        vartok.load(weights, device="cpu", dtype="bfloat16")
    with pytest.warns(VartokWarning) as said:
        evaluate_files(
            files[:1], weights=weights, device="cpu", dtype="bfloat16", size=16, scales=False, agree="float16"
        )
    *notes, last = [str(one.message) for one in said]
    assert notes == [str(one.message) for one in alone]
    assert last.startswith("this processor does not compute in float16")


def test_names_that_cannot_be_loaded(weights: Path, files: list[Path]) -> None:
    with pytest.raises(DeviceError, match="'bf16'") as caught:
        evaluate_files(files, weights=weights, device="cpu", agree="bf16")
    assert caught.value.hint == (
        "did you mean bfloat16? name a device, or one of float32, tf32, bfloat16, float16, in `agree`"
    )
    with pytest.raises(ArgumentError, match="`agree` loads vartok-light-v2, but small is measured"):
        evaluate_files(files, tokenizer=vartok.load(weights, device="cpu"), agree="bfloat16", device="cpu")


def test_a_picture_that_overflows_in_a_dtype_fails_alone(files: list[Path], tmp_path: Path) -> None:
    tensors = draw(SMALL)
    tensors["quant_conv.weight"] *= 1e7  # beyond float16
    weights = save_checkpoint(tmp_path / "large.safetensors", SMALL, tensors)
    with pytest.raises(vartok.ImageError, match="NaN or infinite values in float16"):
        evaluate_files(files, weights=weights, device="cpu", size=16, scales=False, agree="float16")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_the_histogram_gives_the_spread_of_margins(count: int) -> None:
    margins = (10.0 ** np.random.default_rng(count).uniform(-6, 0, count)).astype(np.float32)
    margins[0], margins[-1] = 0, 1
    histogram = MarginHistogram()
    assert histogram.spread() is None
    for part in np.array_split(margins, 3):
        histogram.add(part)
    spread = histogram.spread()
    assert spread is not None
    assert (histogram.count, spread.minimum, spread.maximum) == (count, margins.min(), margins.max())
    assert spread.median == pytest.approx(np.median(margins), rel=1e-4)


def test_a_meter_keeps_no_margins_of_pictures(tokenizer: vartok.Tokenizer) -> None:
    meter = AgreementMeter(tokenizer, {"same": tokenizer})
    margins = np.full(3, 0.5, np.float32)
    kept = weakref.ref(margins)
    for equal in ([1, 0], [0, 1]):
        meter.add((Differences(describe_equal([1, 4], equal), margins, 1),))
    del margins
    assert kept() is None
    [result] = meter.results()
    assert (result.equal.equal, result.equal.tokens) == ((1, 1), (2, 8))
    assert (result.differences, result.first_differences, result.margin) == (6, 2, Spread(0.5, 0.5, 0.5))
