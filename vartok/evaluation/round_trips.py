"""Round trips: decode a picture's tokens and encode the result again, several times over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vartok.evaluation.equality import EqualTokens, count_equal, sum_equal
from vartok.images import to_pixels
from vartok.images.tensors import Pixels
from vartok.metrics import psnr
from vartok.tokenizer import Tokenizer
from vartok.tokens import TokenMaps


def method(channels: int) -> str:
    """Return how round trips are measured, for pictures of so many channels."""
    pixels = "8-bit" if channels == 3 else "8-bit or 16-bit"
    return (
        f"a trip decodes tokens to {pixels} pixels, as a PNG stores them, and encodes these again. After "
        "it: tokens that equal the picture's own, and PSNR of what they decode to, to the original and to "
        "the trip before"
    )


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """The figures after one trip, of a picture or over pictures.

    A trip decodes the tokens to 8-bit pixels, as a PNG stores them, and encodes these again; to 16-bit pixels
    if the original ones are.

    Attributes:
        equal: tokens after the trip that equal the picture's own.
        psnr: PSNR of the pixels decoded after the trip to the original ones, in dB, 0 to 100.
        previous_psnr: PSNR of these pixels to those that were encoded in the trip.
    """

    equal: EqualTokens
    psnr: float
    previous_psnr: float


def make_round_trips(
    tokenizer: Tokenizer,
    pixels: Pixels,
    copies: Pixels,
    tokens: TokenMaps,
    count: int,
) -> list[tuple[RoundTrip, ...]]:
    """Make round trips with pictures of one size.

    Args:
        tokenizer: the tokenizer.
        pixels: [B, H, W, C] uint8 or uint16, the original pictures.
        copies: [B, H, W, C] of the same dtype, the pictures decoded from `tokens`.
        tokens: the original pictures' token maps.
        count: number of trips, 0 or more.

    Returns:
        The figures after 1, 2, ... `count` trips of each picture.
    """
    trips: list[list[RoundTrip]] = [[] for _ in pixels]
    own = [part.cpu() for part in tokens.maps]
    for _ in range(count):
        found = tokenizer.encode(copies, tokens.schedule)
        decoded = to_pixels(tokenizer.decode(found), pixels.dtype)
        equal = count_equal(own, [part.cpu() for part in found.maps])
        for b, trip in enumerate(trips):
            trip.append(
                RoundTrip(
                    equal=equal[b],
                    psnr=psnr(pixels[b], decoded[b]),
                    previous_psnr=psnr(copies[b], decoded[b]),
                )
            )
        copies = decoded
    return [tuple(trip) for trip in trips]


def mean_round_trips(pictures: Sequence[tuple[RoundTrip, ...]]) -> tuple[RoundTrip, ...]:
    """Return the figures over pictures after 1, 2, ... trips: means of PSNR, and tokens of all pictures.

    Args:
        pictures: the trips of each picture, as many of each; at least one picture.
    """
    return tuple(
        RoundTrip(
            equal=sum_equal(trip.equal for trip in trips),
            psnr=math.fsum(trip.psnr for trip in trips) / len(trips),
            previous_psnr=math.fsum(trip.previous_psnr for trip in trips) / len(trips),
        )
        for trips in zip(*pictures, strict=True)
    )
