"""The codebook in training: averages, usage, dead codes."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import LIGHT, latents, started
from torch import Tensor

from vartok.models.quantizer import MultiScaleQuantizer, ScaleStep
from vartok.train.codebook import EMACodebook, _draw
from vartok.train.settings import QuantizerSettings


def ema_codebook(quantizer: MultiScaleQuantizer, **settings: Any) -> EMACodebook:
    return EMACodebook(quantizer, [1, 4, 16], QuantizerSettings(**settings), batch_size=64)


def steps(maps: list[Tensor], cells: list[Tensor]) -> list[ScaleStep]:
    return [ScaleStep(index, latents(4), rows) for index, rows in zip(maps, cells, strict=True)]


def same(value: Tensor) -> Tensor:
    return value


def codes_of(replaced: Tensor) -> list[int]:
    indices: list[int] = replaced.nonzero().flatten().tolist()
    return indices


@pytest.mark.parametrize("token_weight", [0.0, 0.5, 1.0])
def test_codes_become_the_mean_of_the_residuals_assigned_to_them(token_weight: float) -> None:
    quantizer = started(2)
    before = quantizer.embedding.weight.clone()
    codebook = ema_codebook(
        quantizer, codebook_ema_decay=0.0, token_weight=token_weight
    )  # the average of the last step alone
    scales = list(quantizer.scale_steps(LIGHT.patch_nums, latent=latents()))
    codebook.update(scales, same)
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


def test_a_run_may_resume_with_other_weights_of_scales() -> None:
    quantizers = started(2), started(2)
    scales = list(quantizers[0].scale_steps(LIGHT.patch_nums, latent=latents()))
    first = ema_codebook(quantizers[0], codebook_ema_decay=0.0)
    always = ema_codebook(quantizers[1], codebook_ema_decay=0.0, token_weight=1.0)
    first.update(scales, same)
    always.update(scales, same)
    later = ema_codebook(quantizers[0], codebook_ema_decay=1.0, token_weight=1.0)  # which learns nothing
    later.usage, later.sums = first.usage, first.sums
    assert not torch.allclose(quantizers[0].embedding.weight, quantizers[1].embedding.weight, atol=1e-3)
    later.update(scales, same)
    assert torch.allclose(quantizers[0].embedding.weight, quantizers[1].embedding.weight, atol=1e-5)


def test_perplexity_is_of_each_scale() -> None:
    quantizer = started(2)
    codebook = ema_codebook(quantizer, codebook_ema_decay=0.0)
    maps = [
        torch.zeros(4, 1, 1, dtype=torch.long),
        torch.arange(16).view(4, 2, 2),
        torch.arange(64).view(4, 4, 4),
    ]
    codebook.update(
        [ScaleStep(index, latents(4), torch.randn(4, 8, *index.shape[1:])) for index in maps], same
    )
    assert codebook.perplexity().tolist() == pytest.approx([1, 16, 64])


def test_dead_codes_are_replaced_and_a_code_of_the_coarsest_scale_is_not_dead() -> None:
    quantizer = started(2)
    codebook = ema_codebook(quantizer, codebook_ema_decay=0.0, dead_code_threshold=0.3)
    # Code 0 is the 1x1 scale's alone: 4 of 84 tokens, but a third of the use. Half of the codes are dead.
    maps = [
        torch.zeros(4, 1, 1, dtype=torch.long),
        torch.arange(16).view(4, 2, 2) % 4 + 1,
        torch.arange(64).view(4, 4, 4) % 32,
    ]
    cells = [torch.randn(4, 8, *index.shape[1:]) for index in maps]
    codebook.update(
        [ScaleStep(index, latents(4), rows) for index, rows in zip(maps, cells, strict=True)], same
    )
    before = quantizer.embedding.weight.clone()
    moved = codebook.replace_dead_codes(seed=3, gather=same)
    assert codes_of(moved) == list(range(32, 53))  # a quarter of the 84 residuals is enough for one time
    assert torch.equal(quantizer.embedding.weight[:32], before[:32])
    candidates = torch.cat([rows.permute(0, 2, 3, 1).reshape(-1, 8) for rows in cells])
    chosen = [int((candidates == code).all(1).nonzero()) for code in quantizer.embedding.weight[32:53]]
    assert len(set(chosen)) == 21
    assert sum(index < 20 for index in chosen) >= 14  # of the scales that lack use most; by chance it were 5
    assert codes_of(codebook.replace_dead_codes(seed=4, gather=same)) == list(range(53, 64))
    assert not codes_of(codebook.replace_dead_codes(seed=5, gather=same))  # new codes have time to settle


def test_dead_codes_are_drawn_from_the_residuals_of_all_processes() -> None:
    quantizer = started(2)
    codebook = ema_codebook(quantizer, codebook_ema_decay=0.0, dead_code_threshold=0.3)
    maps = [torch.zeros(4, side, side, dtype=torch.long) for side in (1, 2, 4)]
    cells = [torch.rand(4, 8, *index.shape[1:]) for index in maps]
    codebook.update(
        [ScaleStep(index, latents(4), rows) for index, rows in zip(maps, cells, strict=True)], same
    )
    moved = codebook.replace_dead_codes(seed=3, gather=lambda rows: torch.cat([rows, rows + 10]))
    codes = quantizer.embedding.weight[moved]
    assert len(codes) == 42
    assert 10 <= int((codes > 5).all(1).sum()) <= 32


def test_an_update_asks_the_other_processes_once() -> None:
    asked: list[torch.Size] = []

    def mean(value: Tensor) -> Tensor:
        asked.append(value.shape)
        return value

    quantizer = started(2)
    codebook = ema_codebook(quantizer)
    scales = list(quantizer.scale_steps(LIGHT.patch_nums, latent=latents()))
    codebook.update(scales, mean)
    codebook.update_usage([scale.indices for scale in scales], mean)
    assert asked == [(3, 64, 9), (3, 64, 1)]


@pytest.mark.parametrize("count", [1, 7, 30])
def test_indices_are_drawn_as_torch_draws_them_on_a_cpu(count: int) -> None:
    weights = torch.rand(30) + 0.1
    wanted = torch.multinomial(weights, count, generator=torch.Generator().manual_seed(5))
    assert torch.equal(_draw(weights, count, seed=5), wanted)
    assert torch.equal(_draw(weights, 30, seed=5)[:count], wanted)
