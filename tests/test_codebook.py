"""Codebooks against brute force, usage against values worked out by hand."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vartok import codebook
from vartok.codebook import (
    CodeCount,
    Spread,
    UsageReport,
    count_codes,
    describe_codebook,
    describe_usage,
)
from vartok.errors import CheckpointError, TokensError

Floats = NDArray[np.floating[Any]]

SEEDS = st.integers(0, 2**32 - 1)


def normal(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def brute_nearest(codes: Floats) -> NDArray[np.float64]:
    exact = codes.astype(np.float64)
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances.min(1))


def spread(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return values.min(), float(np.median(values)), values.max()


def described(*rows: list[int]) -> UsageReport:
    return describe_usage(np.array(rows, np.int64))


def as_json(report: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))


# the codebook by itself


@pytest.mark.parametrize("block", [1, 1 << 12, codebook.BLOCK])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_distances_are_those_of_brute_force(
    block: int, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebook, "BLOCK", block)
    codes = normal(301, 8) + np.float32(offset)
    report = describe_codebook(codes)
    assert report.nearest is not None
    assert dataclasses.astuple(report.nearest) == pytest.approx(spread(brute_nearest(codes)), rel=1e-12)
    norms = np.linalg.norm(codes.astype(np.float64), axis=1)
    assert dataclasses.astuple(report.norm) == pytest.approx(spread(norms), rel=1e-12)
    assert (report.vocab_size, report.channels, report.size_bytes) == (301, 8, 301 * 8 * 4)
    assert (report.exact_duplicates, report.near_duplicates) == (0, 0)


def test_distances_of_near_duplicates_do_not_cancel() -> None:
    codes = np.concatenate([normal(100, 16) * 10, normal(1, 16) + 1000])
    twin = codes[100:].copy()
    twin[0, 3] = np.nextafter(twin[0, 3], np.float32(np.inf))
    report = describe_codebook(np.concatenate([codes, twin]))
    assert report.nearest is not None
    assert report.nearest.minimum == float(twin[0, 3]) - float(codes[100, 3])
    assert (report.exact_duplicates, report.near_duplicates) == (0, 2)


def test_duplicates() -> None:
    codes = normal(60, 8)
    codes[7] = codes[11] = codes[3]  # a group of three
    codes[20] = codes[21]  # and one of two
    codes[30] = codes[31] + np.float32(1e-5)
    report = describe_codebook(codes)
    assert report.nearest is not None
    assert report.exact_duplicates == 3
    assert report.near_duplicates == 2
    assert dataclasses.astuple(report.nearest) == pytest.approx(spread(brute_nearest(codes)), rel=1e-12)
    assert report.nearest.minimum == 0


def test_near_duplicates_among_many_exact_ones() -> None:
    codes = np.repeat(normal(20, 4), 10, axis=0)
    report = describe_codebook(np.concatenate([codes, codes[:1] + np.float32(1e-5)]))
    assert report.nearest is not None
    assert (report.exact_duplicates, report.near_duplicates, report.nearest.median) == (180, 2, 0)


def test_near_is_one_percent_of_the_median() -> None:
    # On a line, eight codes 1 apart and a pair: the median distance to the nearest is 1.
    line = [0, 1, 2, 3, 4, 5, 6, 7, 50]
    for gap, near in ((0.0099, 2), (0.0101, 0)):
        codes = np.array([*line, 50 + gap])[:, None]
        assert describe_codebook(codes).near_duplicates == near


def test_negative_zero_is_zero() -> None:
    assert describe_codebook(np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)).exact_duplicates == 1


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_dimensions_are_the_rank(rank: int) -> None:
    axes = np.linalg.qr(normal(16, 16))[0][:rank]
    report = describe_codebook(normal(2000, rank, seed=1) @ axes + 5)
    assert report.effective_dimensions == rank
    assert len(report.explained) == 16
    assert sum(report.explained[:rank]) == pytest.approx(1)
    assert list(report.explained) == sorted(report.explained, reverse=True)


def test_effective_dimensions_count_to_95_percent() -> None:
    # Variances of 90, 5 and 5 on three axes, around a centre far away: two make 95 %.
    sides = np.sqrt(np.diag([90.0, 5.0, 5.0]))
    report = describe_codebook(np.concatenate([sides, -sides]) + 1000)
    assert report.explained == pytest.approx((0.9, 0.05, 0.05))
    assert report.effective_dimensions == 2


@pytest.mark.parametrize(("count", "nearest"), [(1, None), (5, Spread(0.0, 0.0, 0.0))])
def test_one_code(count: int, nearest: Spread | None) -> None:
    report = describe_codebook(np.full((count, 2), [[0.3, 0.4]], np.float32))
    assert report.nearest == nearest
    assert report.norm.median == pytest.approx(0.5)
    assert report.exact_duplicates == count - 1
    assert report.near_duplicates == report.effective_dimensions == 0
    assert set(report.explained) == {0.0}
    assert as_json(report)["vocab_size"] == count


@pytest.mark.parametrize("codes", [np.zeros(4), np.zeros((0, 4)), np.array([[0.0, np.nan]]), [[np.inf, 1.0]]])
def test_a_codebook_is_a_matrix_of_finite_numbers(codes: Any) -> None:
    with pytest.raises(CheckpointError, match="finite"):
        describe_codebook(np.asarray(codes, np.float32))


# counting


def test_count_codes() -> None:
    images = [
        [np.array([[2]], np.uint16), np.array([[0, 2], [2, 3]], np.uint16)],
        [np.array([2]), np.array([[3, 3, 0]])],
    ]
    counts = count_codes(iter(images), 4, 2)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[0, 0, 2, 0], [2, 0, 2, 3]]
    assert count_codes([], 4, 2).tolist() == [[0] * 4] * 2
    assert count_codes([[np.zeros((0, 3), int)] * 2], 4, 2).sum() == 0


@given(seed=SEEDS, first=st.integers(0, 4), second=st.integers(0, 4))
def test_counts_add_up(seed: int, first: int, second: int) -> None:
    random = np.random.default_rng(seed)
    images = [[random.integers(0, 9, (side, side)) for side in (1, 2, 3)] for _ in range(first + second)]
    parts = count_codes(images[:first], 9, 3) + count_codes(images[first:], 9, 3)
    np.testing.assert_array_equal(count_codes(images, 9, 3), parts)
    assert parts.sum(1).tolist() == [(first + second) * cells for cells in (1, 4, 9)]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([[0]], "image 2 has 1 scales, not 2"),
        ([[0], [0], [0]], "image 2 has 3 scales, not 2"),
        ([[0], [0, 4]], "image 2, scale 2: an index is outside the vocabulary of 4"),
        ([[-1], [0]], "image 2, scale 1: an index is outside the vocabulary of 4"),
        ([[0.5], [0]], "image 2, scale 1: indices must be integers, not float64"),
    ],
)
def test_images_that_cannot_be_counted(scales: list[list[float]], message: str) -> None:
    good = [np.array([0]), np.array([3])]
    with pytest.raises(TokensError, match=message):
        count_codes([good, [np.array(tokens) for tokens in scales]], 4, 2)


# usage


@pytest.mark.parametrize("codes", [1, 2, 5, 8])
def test_uniform_usage(codes: int) -> None:
    usage = described([7] * codes + [0] * (8 - codes)).scales[0]
    assert (usage.tokens, usage.used, usage.dead) == (7 * codes, codes, 8 - codes)
    assert usage.entropy == pytest.approx(np.log2(codes), abs=1e-12)
    assert usage.perplexity == pytest.approx(codes)
    assert usage.coverage == codes / min(8, 7 * codes)


def test_a_single_code_has_no_entropy() -> None:
    usage = described([0, 5, 0]).overall
    assert (usage.entropy, usage.perplexity) == (0.0, 1.0)
    assert usage.top == (CodeCount(code=1, count=5, share=1.0),)


def test_usage_by_hand() -> None:
    report = described([2, 1, 1, 0], [0, 0, 0, 4])
    first = report.scales[0]
    assert first.entropy == pytest.approx(1.5)
    assert first.perplexity == pytest.approx(2**1.5)
    assert first.top == (CodeCount(0, 2, 0.5), CodeCount(1, 1, 0.25), CodeCount(2, 1, 0.25))
    assert report.overall.tokens == 8
    assert report.overall.entropy == pytest.approx(1.75)
    assert (report.vocab_size, report.overall.used, report.overall.coverage) == (4, 4, 1.0)


def test_coverage_is_relative_to_the_number_of_tokens() -> None:
    assert described([1, 1, 2] + [0] * 97).overall.coverage == 0.75


def test_top_is_ten_lowest_index_first_among_equals() -> None:
    counts = [3] * 30
    counts[25] = counts[17] = 9
    top = described(counts).overall.top
    assert [entry.code for entry in top] == [17, 25, 0, 1, 2, 3, 4, 5, 6, 7]
    assert [entry.count for entry in top] == [9, 9] + [3] * 8
    assert top[0].share == pytest.approx(9 / 102)


def test_divergence_by_hand() -> None:
    assert described([4, 4, 0, 0], [0, 0, 1, 9]).divergence == pytest.approx((1, 1))
    assert described([1, 2, 0], [10, 20, 0], [100, 200, 0]).divergence == pytest.approx((0, 0, 0), abs=1e-12)
    # (1, 0) and (1/2, 1/2): H(3/4, 1/4) - H(1/2, 1/2) / 2
    half = 2 - 0.75 * np.log2(3) - 0.5
    assert described([3, 0], [5, 5]).divergence == pytest.approx((half, half))
    assert described([1, 2, 3]).divergence == (0.0,)


def test_divergence_weighs_the_other_scales_the_same() -> None:
    # The first scale against the mean of (1, 0) and (0, 1), though one has a thousand times the tokens.
    assert described([5, 5], [1, 0], [0, 1000]).divergence[0] == pytest.approx(0)


def test_chance_is_the_divergence_of_scales_that_sample_alike() -> None:
    random = np.random.default_rng(1)
    tokens = np.array([100, 1000, 10_000, 100_000])
    alike = random.multinomial(tokens, random.dirichlet(np.ones(512)))
    report = describe_usage(alike)
    assert report.divergence[0] > 0.4
    assert report.divergence == pytest.approx(report.chance, rel=0.15)
    apart = alike.copy()
    apart[2] = np.roll(alike[2], 100)
    report = describe_usage(apart)
    assert report.divergence[2] > 3 * report.chance[2]


@pytest.mark.filterwarnings("error")
def test_empty_scales() -> None:
    report = described([0, 0, 0], [3, 1, 0], [0, 0, 0])
    empty = report.scales[0]
    assert as_json(empty) == {
        "tokens": 0,
        "used": 0,
        "coverage": 0.0,
        "dead": 3,
        "entropy": 0.0,
        "perplexity": 0.0,
        "top": [],
    }
    assert report.divergence == report.chance == (0.0, 0.0, 0.0)
    assert described([0, 0], [0, 0]).overall.perplexity == 0
    assert described([2, 2], [0, 0], [3, 3]).divergence == (0.0, 0.0, 0.0)


@given(seed=SEEDS, scales=st.integers(1, 5), vocab=st.integers(1, 40), high=st.integers(1, 50))
def test_usage_properties(seed: int, scales: int, vocab: int, high: int) -> None:
    counts = np.random.default_rng(seed).integers(0, high, (scales, vocab))
    report = describe_usage(counts)
    assert len(report.scales) == len(report.divergence) == len(report.chance) == scales
    for usage in (report.overall, *report.scales):
        assert usage.used + usage.dead == vocab
        assert usage.perplexity <= usage.used <= usage.tokens
        assert 0 <= usage.coverage <= 1
        assert len(usage.top) == min(10, usage.used)
    assert report.overall.tokens == sum(usage.tokens for usage in report.scales) == counts.sum()
    assert report.overall.used >= max(usage.used for usage in report.scales)
    assert all(0 <= value <= 1 for value in (*report.divergence, *report.chance))
    assert describe_usage(counts) == report
    assert as_json(report)["overall"]["tokens"] == report.overall.tokens


def test_no_torch() -> None:
    code = "import sys, vartok.codebook; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
