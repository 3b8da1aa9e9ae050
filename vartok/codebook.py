"""What can be said about a codebook, about how images use it, and how to lay it out as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vartok.errors import CheckpointError, TokensError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NEAR = 0.01  # of the typical distance to the nearest code; taking one such code for another changes nothing
EXPLAINED = 0.95  # share of the variance that the effective dimensions hold
TOP = 10  # most used codes that a report names
BLOCK = 1 << 20  # distances held at a time: 8 MiB, which a processor's cache nearly holds

# Of the atlas: 4096 codes take half a second; three times the work brings neighbours 1 % closer.
ATLAS_COMPONENTS = 16
ATLAS_PASSES = 60
ATLAS_SWAPS = 8  # rounds of swaps a pass


@dataclass(frozen=True)
class Spread:
    """The smallest, middle and largest of some values."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class CodebookReport:
    """A codebook by itself.

    Attributes:
        vocab_size: V, codes.
        channels: C, values a code.
        size_bytes: bytes as float32.
        norm: of the codes' Euclidean norms.
        nearest: of the Euclidean distances from every code to the nearest other one, 0 for an exact
            duplicate; None where there is one code only.
        exact_duplicates: codes beyond the first of each group of equal ones; an encoder never picks them.
        near_duplicates: different codes with another closer than 1 % of the median distance between
            different codes and their nearest; a lone pair counts as two.
        effective_dimensions: principal components that explain 95 % of the variance; 0 where there is none.
        explained: share of the variance that each of the min(V, C) components explains, largest first.
    """

    vocab_size: int
    channels: int
    size_bytes: int
    norm: Spread
    nearest: Spread | None
    exact_duplicates: int
    near_duplicates: int
    effective_dimensions: int
    explained: tuple[float, ...]


def describe_codebook(codes: NDArray[np.floating[Any]]) -> CodebookReport:
    """Measure a codebook: sizes, distances, duplicates, dimensions.

    Time grows with V squared (about 10 s for 65,536 codes on two idle cores), memory does not.

    Args:
        codes: [V, C] float32.

    Raises:
        CheckpointError: not a matrix of finite numbers.
    """
    if codes.ndim != 2 or not codes.size or not np.isfinite(codes).all():
        raise CheckpointError("the codebook is not a matrix of finite numbers")
    exact = codes.astype(np.float64)
    different, counts = np.unique(exact, axis=0, return_counts=True)
    nearest = distances = np.zeros(len(different))
    if len(different) > 1:
        nearest = _nearest_distances(different)
        distances = np.repeat(np.where(counts > 1, 0.0, nearest), counts)
    explained = np.zeros(min(codes.shape))
    if len(different) > 1:  # else there is rounding alone
        variance = np.linalg.svd(exact - exact.mean(0), compute_uv=False) ** 2
        explained = variance / variance.sum()
    enough = np.cumsum(explained) >= EXPLAINED - 1e-9
    return CodebookReport(
        vocab_size=codes.shape[0],
        channels=codes.shape[1],
        size_bytes=codes.size * 4,
        norm=_spread(np.linalg.norm(exact, axis=1)),
        nearest=_spread(distances) if len(codes) > 1 else None,
        exact_duplicates=len(codes) - len(different),
        near_duplicates=int((nearest < NEAR * np.median(nearest)).sum()),
        effective_dimensions=int(enough.argmax()) + 1 if enough.any() else 0,
        explained=tuple(explained.tolist()),
    )


def _nearest_distances(codes: Floats) -> Floats:
    """Euclidean distance from every row of [V, C], V > 1, to the nearest other one: [V]."""
    # The smallest |a - b|^2 is the largest a.b - |b|^2 / 2: a product of [a, 1] and [b, -|b|^2 / 2].
    # It cancels where codes nearly meet: float64 still finds the winner, whose distance is taken anew.
    left = np.column_stack([codes, np.ones(len(codes))])
    right = np.column_stack([codes, -np.square(codes).sum(1) / 2]).T
    winner = np.empty(len(codes), np.int64)
    step = max(1, BLOCK // len(codes))
    for start in range(0, len(codes), step):
        closeness = left[start : start + step] @ right
        rows = np.arange(len(closeness))
        closeness[rows, start + rows] = -np.inf  # itself
        winner[start : start + step] = closeness.argmax(1)
    distances: Floats = np.linalg.norm(codes - codes[winner], axis=1)
    return distances


def _spread(values: Floats) -> Spread:
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))


def count_codes(
    scales_of_images: Iterable[Sequence[NDArray[np.integer[Any]]]], vocab_size: int, scales: int
) -> Integers:
    """Count how often every scale uses every code, one image at a time.

    Args:
        scales_of_images: of each image K integer arrays of any shape, coarse to fine.
        vocab_size: V.
        scales: K.

    Returns:
        [K, V] int64; counts of two sets of images add up to those of both.

    Raises:
        TokensError: an image of another number of scales, or an index outside the vocabulary.
    """
    counts = np.zeros((scales, vocab_size), np.int64)
    for number, maps in enumerate(scales_of_images, 1):
        if len(maps) != scales:
            raise TokensError(f"image {number} has {len(maps)} scales, not {scales} as the others")
        for k, tokens in enumerate(maps):
            if tokens.dtype.kind not in "iu":
                raise TokensError(f"image {number}, scale {k}: indices are integers, not {tokens.dtype}")
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
                raise TokensError(f"image {number}, scale {k}: index outside the vocabulary of {vocab_size}")
            np.add.at(counts[k], tokens.ravel(), 1)  # unlike bincount, no work for codes that are absent
    return counts


@dataclass(frozen=True)
class CodeCount:
    """One code, how often it was used, and the share of all tokens that this is."""

    code: int
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How some tokens use the codebook; all zeros but `dead` where there are no tokens.

    Attributes:
        tokens: tokens seen.
        used: codes seen at least once.
        coverage: used / min(V, tokens), the share of what so many tokens could at most show.
        dead: V - used; of few tokens it says little, see `coverage`.
        entropy: of the codes' distribution, in bits; few tokens understate it.
        perplexity: 2 ** entropy: as many codes, used evenly, would have this entropy.
        top: the most used codes, at most ten, the lower index first among equals.
    """

    tokens: int
    used: int
    coverage: float
    dead: int
    entropy: float
    perplexity: float
    top: tuple[CodeCount, ...]


@dataclass(frozen=True, kw_only=True)
class UsageReport:
    """How images use a codebook.

    Attributes:
        vocab_size: V, codes.
        overall: all scales together; the finest have most of the tokens.
        scales: of each scale, coarse to fine.
        divergence: of each scale, the Jensen-Shannon divergence, in bits, between its distribution
            over codes and the mean of the other scales' distributions, each weighing the same: 0 where
            they agree or one is empty, 1 where they share no code. Few tokens overstate it, since n of
            them show at most n codes: read it beside `chance`.
        chance: the divergence that scales of as many tokens show when all draw from one distribution,
            that of all tokens together; one seeded draw. Of a few images only, it is too low.

    Source of the divergence: Lin 1991, Divergence measures based on the Shannon entropy.
    """

    vocab_size: int
    overall: Usage
    scales: tuple[Usage, ...]
    divergence: tuple[float, ...]
    chance: tuple[float, ...]


def describe_usage(counts: Integers) -> UsageReport:
    """Describe what `count_codes` counted, [K, V]."""
    together = counts.sum(0)
    drawn = np.random.default_rng(0).multinomial(counts.sum(1), together / max(together.sum(), 1))
    return UsageReport(
        vocab_size=counts.shape[1],
        overall=_usage(together),
        scales=tuple(_usage(row) for row in counts),
        divergence=_divergences(_shares(counts)),
        chance=_divergences(_shares(drawn)),
    )


def _usage(counts: Integers) -> Usage:
    tokens = int(counts.sum())
    seen = counts[counts > 0]
    entropy = _entropy(seen / max(tokens, 1))
    top = np.argsort(-counts, kind="stable")[: min(TOP, len(seen))]
    return Usage(
        tokens=tokens,
        used=len(seen),
        coverage=len(seen) / min(len(counts), tokens) if tokens else 0.0,
        dead=len(counts) - len(seen),
        entropy=entropy,
        perplexity=min(2.0**entropy, float(len(seen))),  # rounding may pass the bound; no tokens: 0
        top=tuple(CodeCount(int(code), int(counts[code]), int(counts[code]) / tokens) for code in top),
    )


def _entropy(shares: Floats) -> float:
    """Bits of a distribution."""
    seen = shares[shares > 0]
    return float(np.sum(seen * np.log2(1 / seen)))


def _shares(counts: Integers) -> Floats:
    """Every scale's distribution over codes, [K, V]; zeros where it has no tokens."""
    shares: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def _divergences(shares: Floats) -> tuple[float, ...]:
    seen = shares.sum(1) > 0
    divergences = []
    for k, share in enumerate(shares):
        others = seen & (np.arange(len(shares)) != k)
        bits = 0.0
        if seen[k] and others.any():
            rest = shares[others].mean(0)
            bits = _entropy((share + rest) / 2) - (_entropy(share) + _entropy(rest)) / 2
        divergences.append(min(max(bits, 0.0), 1.0))  # rounding may pass the bounds
    return tuple(divergences)


def atlas_order(features: NDArray[np.floating[Any]], columns: int | None = None) -> Integers:
    """Lay codes out on a grid, so that neighbours look alike.

    Starts with the first principal component down the rows and the second along them. Then, over and
    over, the grid is blurred, less each time, and random pairs of codes in blocks as wide as the blur
    change places where that brings the two nearer to the blurred grid. On the shipped codebook the
    mean distance of neighbours is 0.61 of a random order's at the start, and 0.42 at the end.

    Args:
        features: [V, D], one row a code: what its picture looks like, such as coarse pixels.
        columns: of the grid; near-square if None.

    Returns:
        [rows, columns] int64: every code once, row by row, then -1 in the cells that are left.
        The same features give the same grid.

    Source: swaps as in Strong and Gong 2014, Self-Sorting Map; a blur that shrinks as in the linear
    assignment sorting of Barthel et al. 2023, Improved Evaluation and Generation of Grid Layouts.
    """
    count = len(features)
    if columns is None:
        columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    looks = _components(features.astype(np.float64))[:, :ATLAS_COMPONENTS]
    row, column = np.divmod(np.arange(count), columns)
    order = np.argsort(looks[:, 0], kind="stable")
    order = order[np.lexsort((looks[order, 1 % looks.shape[1]], row))]
    random = np.random.default_rng(0)
    for radius in np.geomspace(max(rows, columns, 4) / 4, 1, ATLAS_PASSES).round().astype(int):
        # The column of ones counts a window's codes: the borders and the empty cells have none.
        cells = np.zeros((rows * columns, looks.shape[1] + 1))
        cells[:count] = np.column_stack([looks[order], np.ones(count)])
        sums = _box_sums(cells.reshape(rows, columns, -1), radius).reshape(rows * columns, -1)[:count]
        target = sums[:, :-1] / sums[:, -1:]
        side = 2 * radius + 1
        for _ in range(ATLAS_SWAPS):
            down, right = random.integers(0, side, 2)  # blocks lie elsewhere each time
            block = (row + down) // side * (columns + side) + (column + right) // side
            shuffled = np.lexsort((random.random(count), block))
            a, b = shuffled[:-1:2], shuffled[1::2]
            # The sum of squared distances to the targets falls where (x_a - x_b).(t_a - t_b) < 0.
            change = (looks[order[a]] - looks[order[b]]) * (target[a] - target[b])
            better = change.sum(1) < 0
            a, b = a[better], b[better]
            order[a], order[b] = order[b], order[a]
    grid = np.full(rows * columns, -1, np.int64)
    grid[:count] = order
    return grid.reshape(rows, columns)


def _components(features: Floats) -> Floats:
    """Principal components of [V, D], largest first; signs are those of the largest loadings."""
    left, scale, axes = np.linalg.svd(features - features.mean(0), full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    components: Floats = left * scale * signs
    return components


def _box_sums(grid: Floats, radius: int) -> Floats:
    """Sums of [rows, columns, D] over windows of 2 radius + 1 cells a side, clipped at the borders."""
    for _ in range(2):  # down the rows; then, transposed, along the columns, and back
        sums = np.concatenate([np.zeros_like(grid[:1]), np.cumsum(grid, axis=0)])
        at = np.arange(len(grid))
        window = sums[np.minimum(at + radius + 1, len(grid))] - sums[np.maximum(at - radius, 0)]
        grid = window.swapaxes(0, 1)
    return grid
