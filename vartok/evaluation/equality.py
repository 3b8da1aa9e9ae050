"""Equal tokens: how many tokens of a second encoding are those of the first, by scale."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EqualTokens:
    """Counts of the tokens that are equal in two encodings of the same pictures.

    Attributes:
        share: equal tokens / tokens, of all scales together.
        by_scale: the same of each scale.
        tokens: number of tokens of each scale.
        equal: number of equal tokens of each scale.
    """

    share: float
    by_scale: tuple[float, ...]
    tokens: tuple[int, ...]
    equal: tuple[int, ...]


def describe_equal(tokens: Sequence[int], equal: Sequence[int]) -> EqualTokens:
    """Return the shares of equal tokens.

    Args:
        tokens: number of tokens of each scale, 1 or more.
        equal: number of equal tokens of each scale.
    """
    return EqualTokens(
        share=sum(equal) / sum(tokens),
        by_scale=tuple(part / whole for part, whole in zip(equal, tokens, strict=True)),
        tokens=tuple(tokens),
        equal=tuple(equal),
    )


def count_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[EqualTokens]:
    """Count the equal tokens of each of B pictures.

    Args:
        first: K token maps; map k is [B, h_k, w_k] int64, on the CPU.
        second: maps of the same shapes.
    """
    same = [(one == other).flatten(1) for one, other in zip(first, second, strict=True)]
    tokens = [part.shape[1] for part in same]
    return [
        describe_equal(tokens, equal) for equal in zip(*(part.sum(1).tolist() for part in same), strict=True)
    ]


def sum_equal(counts: Iterable[EqualTokens]) -> EqualTokens:
    """Return the counts of all pictures together; pictures may have several numbers of scales."""
    found = list(counts)
    tokens, equal = (
        [sum(scale) for scale in itertools.zip_longest(*rows, fillvalue=0)]
        for rows in ([one.tokens for one in found], [one.equal for one in found])
    )
    return describe_equal(tokens, equal)
