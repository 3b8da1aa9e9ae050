"""Round trips: decode, encode again, and count the tokens that stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save
from noise import SMALL, tokenizer

import vartok
from vartok.errors import ArgumentError
from vartok.evaluation import evaluate_files
from vartok.evaluation.equality import count_equal, describe_equal, sum_equal
from vartok.images import Fit, read_picture, to_pixels, to_tensor
from vartok.metrics import psnr


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> vartok.Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)


def test_equal_tokens_are_counted_by_scale() -> None:
    first = [torch.tensor([[[3]], [[4]]]), torch.tensor([[[1, 2]], [[1, 2]]])]
    second = [torch.tensor([[[3]], [[5]]]), torch.tensor([[[1, 9]], [[1, 2]]])]
    one, two = count_equal(first, second)
    assert one == describe_equal([1, 2], [1, 1])
    assert (two.share, two.by_scale) == (2 / 3, (0.0, 1.0))
    coarse = describe_equal([1], [0])
    assert sum_equal([one, two, coarse]) == describe_equal([3, 4], [1, 3])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_trips_decode_and_encode_8_bit_pixels(
    small: vartok.Tokenizer, tmp_path: Path, batch_size: int
) -> None:
    files = [save(tmp_path / f"{seed}.png", seed, 40, 36) for seed in range(3)]
    report = evaluate_files(files, tokenizer=small, size=16, scales=False, again=3, batch_size=batch_size)
    for scores, file in zip(report.by_picture, files, strict=True):
        pixels = read_picture(file, Fit(size=(16, 16))).pixels
        own = small.encode(to_tensor(pixels[None]))
        copy = to_pixels(small.decode(own))
        [model] = scores.models
        assert len(model.round_trips) == 3
        for trip in model.round_trips:
            np.save(tmp_path / "copy.npy", copy)  # nothing but bytes goes on
            tokens = small.encode(to_tensor(np.load(tmp_path / "copy.npy")))
            again = to_pixels(small.decode(tokens))
            assert trip.equal.by_scale == tuple(
                float((a == b).float().mean()) for a, b in zip(own.maps, tokens.maps, strict=True)
            )
            assert trip.psnr == psnr(pixels, again[0])
            assert trip.previous_psnr == psnr(copy[0], again[0])
            copy = again
        assert model.round_trips[-1].equal.share < 1
    [model] = report.models
    for n, trip in enumerate(model.round_trips):
        parts = [scores.models[0].round_trips[n] for scores in report.by_picture]
        assert trip.psnr == pytest.approx(np.mean([part.psnr for part in parts]))
        assert trip.equal == sum_equal(part.equal for part in parts)
    assert "8-bit" in report.methods()["round_trips"]


def test_trips_are_not_made_unless_asked_for(small: vartok.Tokenizer, tmp_path: Path) -> None:
    report = evaluate_files(save(tmp_path / "a.png", 0, 16, 16), tokenizer=small, size=16, scales=False)
    assert not report.models[0].round_trips
    assert not report.agreements
    assert not {"round_trips", "agreements"} & report.methods().keys()
    with pytest.raises(ArgumentError, match="`again` must be 0 or more"):
        evaluate_files(tmp_path / "a.png", tokenizer=small, again=-1)
