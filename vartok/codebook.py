"""Statistics of a codebook (norms, distances, duplicates, dimensions), and of its usage by images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vartok.errors import CheckpointError, TokensError

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NEAR_DUPLICATE = 0.01
"""Distance below which two codes are near duplicates, as a share of the median distance between a code and
its nearest other code. Swapping two such codes changes no picture visibly."""

EXPLAINED_VARIANCE = 0.95
"""Share of the variance that the effective dimensions explain."""

USAGE_METHODS = (
    "coverage: codes used / min(number of codes, tokens). entropy: in bits. perplexity: 2 ** entropy. "
    "divergence: Jensen-Shannon divergence from the mean of the other scales, 0 (equal) to 1 (disjoint); "
    "chance: its value for as many tokens drawn at random from the distribution of all scales."
)
"""How the figures of a `UsageReport` are computed, as tables say it."""

TOP_CODES = 10
"""Largest number of codes in a report's list of the most used ones."""

BLOCK = 1 << 20
"""Number of distances computed at a time: 8 MiB of float64, about a processor's cache."""


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of some values."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class CodebookReport:
    """Statistics of a codebook.

    Attributes:
        vocab_size: V, number of codes.
        channels: C, number of values of a code.
        size_bytes: size in bytes, stored as float32.
        norm: Euclidean norms of the codes.
        nearest: Euclidean distances from each code to the nearest other code, 0 for an exact duplicate; None
            if there is only one code.
        exact_duplicates: number of codes that equal a code of lower index; an encoder never picks them.
        near_duplicates: number of distinct codes whose distance to the nearest other distinct code is less
            than 1 % of the median of these distances; a pair counts as two.
        effective_dimensions: number of principal components that explain 95 % of the variance; 0 if there
            is no variance.
        explained: share of the variance that each of the min(V, C) principal components explains, largest
            first.
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


def describe_codebook(codes: NDArray[np.floating[Any]] | Tensor) -> CodebookReport:
    """Compute the statistics of a codebook.

    Time grows with V squared, about 10 s for 65,536 codes on two cores; memory grows with V.

    Args:
        codes: [V, C] floating point: an array, or a tensor on the CPU.

    Raises:
        CheckpointError: `codes` is not a matrix, is empty, or has values that are not finite.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size or not np.isfinite(codes).all():
        raise CheckpointError("the codebook must be a matrix of finite numbers, and not empty")
    exact = codes.astype(np.float64)
    different, counts = np.unique(exact, axis=0, return_counts=True)
    nearest = distances = np.zeros(len(different))
    if len(different) > 1:
        nearest = _nearest_distances(different)
        distances = np.repeat(np.where(counts > 1, 0.0, nearest), counts)
    explained = np.zeros(min(codes.shape))
    if len(different) > 1:  # one distinct code has no variance, only rounding errors
        variance = np.linalg.svd(exact - exact.mean(0), compute_uv=False) ** 2
        explained = variance / variance.sum()
    enough = np.cumsum(explained) >= EXPLAINED_VARIANCE - 1e-9
    return CodebookReport(
        vocab_size=codes.shape[0],
        channels=codes.shape[1],
        size_bytes=codes.size * 4,
        norm=_spread(np.linalg.norm(exact, axis=1)),
        nearest=_spread(distances) if len(codes) > 1 else None,
        exact_duplicates=len(codes) - len(different),
        near_duplicates=int((nearest < NEAR_DUPLICATE * np.median(nearest)).sum()),
        effective_dimensions=int(enough.argmax()) + 1 if enough.any() else 0,
        explained=tuple(explained.tolist()),
    )


@dataclass(frozen=True, kw_only=True)
class CodeReport:
    """A code among the others.

    Attributes:
        code: its index.
        norm: its Euclidean norm.
        neighbours: index and Euclidean distance of the nearest other codes, nearest first.
    """

    code: int
    norm: float
    neighbours: tuple[tuple[int, float], ...]


def describe_code(codes: NDArray[np.floating[Any]] | Tensor, code: int, neighbours: int = 8) -> CodeReport:
    """Find the codes that are nearest to one.

    Args:
        codes: [V, C] floating point: an array, or a tensor on the CPU.
        code: index in [0, V).
        neighbours: largest number of other codes.

    Raises:
        TokensError: the index is outside the vocabulary.
    """
    vectors = np.asarray(codes, np.float64)
    if not 0 <= code < len(vectors):
        raise TokensError(f"index {code} is outside the vocabulary of {len(vectors)}")
    distances = np.linalg.norm(vectors - vectors[code], axis=1)
    distances[code] = np.inf
    nearest = np.argsort(distances, kind="stable")[: min(neighbours, len(vectors) - 1)]
    return CodeReport(
        code=code,
        norm=float(np.linalg.norm(vectors[code])),
        neighbours=tuple((int(n), float(distances[n])) for n in nearest),
    )


def _nearest_distances(codes: Floats) -> Floats:
    """Return the Euclidean distance between every row of [V, C], V > 1, and its nearest other row: [V]."""
    # The smallest |a - b|^2 is the largest a.b - |b|^2 / 2: a product of [a, 1] and [b, -|b|^2 / 2].
    # For close codes the product loses digits to cancellation. It still finds the nearest code, and the
    # distance to it is computed again below.
    left = np.column_stack([codes, np.ones(len(codes))])
    right = np.column_stack([codes, -np.square(codes).sum(1) / 2]).T
    nearest = np.empty(len(codes), np.int64)
    step = max(1, BLOCK // len(codes))
    for start in range(0, len(codes), step):
        closeness = left[start : start + step] @ right
        rows = np.arange(len(closeness))
        closeness[rows, start + rows] = -np.inf  # not the code itself
        nearest[start : start + step] = closeness.argmax(1)
    distances: Floats = np.linalg.norm(codes - codes[nearest], axis=1)
    return distances


def _spread(values: Floats) -> Spread:
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))


def count_codes(
    scales_of_images: Iterable[Sequence[NDArray[np.integer[Any]]]], vocab_size: int, scales: int
) -> Integers:
    """Count how often every scale uses every code, one image at a time.

    Args:
        scales_of_images: K integer arrays of any shape for each image, coarse to fine.
        vocab_size: V, number of codes.
        scales: K, number of scales.

    Returns:
        [K, V] int64. Counts of several sets of images may be summed.

    Raises:
        TokensError: an image has another number of scales, or an index outside the vocabulary.
    """
    counts = np.zeros((scales, vocab_size), np.int64)
    for number, maps in enumerate(scales_of_images, 1):
        if len(maps) != scales:
            raise TokensError(f"image {number} has {len(maps)} scales, not {scales}")
        for k, tokens in enumerate(maps):
            where = f"image {number}, scale {k + 1}"
            if tokens.dtype.kind not in "iu":
                raise TokensError(f"{where}: indices must be integers, not {tokens.dtype}")
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
                raise TokensError(f"{where}: an index is outside the vocabulary of {vocab_size}")
            np.add.at(counts[k], tokens.ravel(), 1)  # np.bincount takes time for every code
    return counts


@dataclass(frozen=True)
class CodeCount:
    """Usage of one code.

    Attributes:
        code: index of the code.
        count: number of tokens.
        share: share of all tokens, above 0 and up to 1.
    """

    code: int
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Usage of the codebook by a set of tokens; without tokens every number but `dead` is 0.

    Attributes:
        tokens: number of tokens.
        used: number of different codes among them.
        coverage: used / min(V, tokens), where min(V, tokens) is the most codes that so many tokens can use.
        dead: V - used. With few tokens it is large for any codebook; see `coverage`.
        entropy: entropy of the codes' distribution, in bits. With few tokens it is too low.
        perplexity: 2 ** entropy, the number of evenly used codes with the same entropy.
        top: the most used codes, at most ten, in descending order; lower indices first among equal counts.
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
    """Usage of a codebook by images.

    Attributes:
        vocab_size: V, number of codes.
        overall: usage by all scales together; the finest have most of the tokens.
        scales: usage by each scale, coarse to fine.
        divergence: for each scale, the Jensen-Shannon divergence, in bits, between its distribution over
            codes and the unweighted mean distribution of the other scales that have tokens. 0 if the two
            agree, or if the scale or all other scales have no tokens; 1 if they share no code. With few
            tokens it is too high, since n tokens use at most n codes; compare it with `chance`.
        chance: the same for random tokens: each scale's number of tokens, drawn with a fixed seed from the
            distribution of all tokens together. A divergence of this size can be due to sampling alone. With
            few images `chance` is too low, since the tokens of an image are not independent.

    Source: Lin 1991, Divergence measures based on the Shannon entropy.
    """

    vocab_size: int
    overall: Usage
    scales: tuple[Usage, ...]
    divergence: tuple[float, ...]
    chance: tuple[float, ...]


def describe_usage(counts: Integers) -> UsageReport:
    """Compute the usage report from counts.

    Args:
        counts: [K, V] int64, a result of `count_codes` or the sum of several.
    """
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
    top = np.argsort(-counts, kind="stable")[: min(TOP_CODES, len(seen))]
    return Usage(
        tokens=tokens,
        used=len(seen),
        coverage=len(seen) / min(len(counts), tokens) if tokens else 0.0,
        dead=len(counts) - len(seen),
        entropy=entropy,
        perplexity=min(2.0**entropy, float(len(seen))),  # rounding may exceed the bound; 0 without tokens
        top=tuple(CodeCount(int(code), int(counts[code]), int(counts[code]) / tokens) for code in top),
    )


def _entropy(shares: Floats) -> float:
    """Return the entropy of a distribution, in bits."""
    seen = shares[shares > 0]
    return float(np.sum(seen * np.log2(1 / seen)))


def _shares(counts: Integers) -> Floats:
    """Return every scale's distribution over codes, [K, V], from counts [K, V]; zeros without tokens."""
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
        divergences.append(min(max(bits, 0.0), 1.0))  # rounding may exceed the bounds
    return tuple(divergences)
