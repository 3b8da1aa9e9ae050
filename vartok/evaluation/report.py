"""Sums of figures over pictures, and the scores that are computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vartok.codebook import count_codes, describe_usage
from vartok.evaluation.figures import FINE_CELL
from vartok.evaluation.round_trips import RoundTrip, mean_round_trips
from vartok.evaluation.scores import BaselineScores, ModelScores, PictureScores, Scores
from vartok.images.tensors import Pixels, to_bytes
from vartok.metrics import FrechetDistance, blockiness, count_steps
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import TokenMaps


class Reconstruction(NamedTuple):
    """A tokenizer's reconstruction of one picture, with the figures that need a network.

    Attributes:
        pixels: [H, W, C] uint8 or uint16.
        tokens: token maps of a batch of one, on the CPU.
        unquantized_psnr: PSNR without quantization, in dB.
        scale_psnr: PSNR after 1, 2, ... K scales, in dB; None if it was not measured.
        lpips: LPIPS distance; None if it was not measured, or the picture is too small.
        features: [D] Inception features; None without rFID.
        round_trips: figures after 1, 2, ... round trips.
        prefixes: pixels after 1, 2, ... K - 1 scales, for ST-LPIPS by scale; or empty.
        shown: pixels for a gallery, after 1, 2, ... K scales or after all alone; empty without a gallery.
    """

    pixels: Pixels
    tokens: TokenMaps
    unquantized_psnr: float
    scale_psnr: tuple[float, ...] | None
    lpips: float | None
    features: Tensor | None
    round_trips: tuple[RoundTrip, ...]
    prefixes: tuple[Pixels, ...] = ()
    shown: tuple[Pixels, ...] = ()


class Totals:
    """Sums of a tokenizer's figures over pictures; no picture is kept in memory.

    Args:
        tokenizer: the tokenizer that is measured.

    Attributes:
        counts: [K, V] int64, how often each scale used each code.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._schedules: set[Schedule] = set()
        self._pixels = 0
        self._bits = 0.0
        self.counts = np.zeros((0, tokenizer.config.vocab_size), np.int64)
        self._cells = (tokenizer.config.downsample, FINE_CELL)
        self._steps = np.zeros((2, 4), np.int64)  # of each of these
        self._reference_steps = np.zeros((2, 4), np.int64)
        self._peaks = torch.zeros(tokenizer.config.downsample // 2)
        self._peak_pictures = 0
        self._distance = FrechetDistance()

    def add(
        self, reference: Pixels, features: Tensor | None, copy: Reconstruction, peaks: Tensor | None
    ) -> None:
        """Add a picture.

        Args:
            reference: [H, W, C] uint8 or uint16, the pixels that were encoded.
            features: [D] Inception features of the reference; None without rFID.
            copy: the tokenizer's reconstruction.
            peaks: its spectral peaks beyond the reference's, [patch // 2]; None for a small picture.
        """
        self._schedules.add(copy.tokens.schedule)
        self._pixels += reference.shape[0] * reference.shape[1]
        self._bits += count_bits(copy.tokens, self._tokenizer)
        maps = [tokens.numpy() for tokens in copy.tokens.maps]
        more = max(0, len(maps) - len(self.counts))  # pictures of several sizes may differ
        self.counts = np.pad(self.counts, ((0, more), (0, 0)))
        self.counts[: len(maps)] += count_codes([maps], self.counts.shape[1], len(maps))
        for sums, pixels in ((self._steps, copy.pixels), (self._reference_steps, reference)):
            sums += [count_steps(to_bytes(pixels), cell) for cell in self._cells]
        if peaks is not None:
            self._peaks += peaks
            self._peak_pictures += 1
        if features is not None and copy.features is not None:
            self._distance.add(features, copy.features)

    def scores(self, scores: Sequence[Scores], frechet_lite2: float | None) -> ModelScores:
        """Return the figures over all added pictures.

        Args:
            scores: this tokenizer's scores of every added picture; at least one.
            frechet_lite2: Fréchet distance of Lite2's features, or None.
        """
        usage, peaked = describe_usage(self.counts), self._peak_pictures
        return ModelScores(
            psnr=_mean([one.psnr for one in scores]),
            ssim=_mean([one.ssim for one in scores]),
            ms_ssim=_mean_of_known(one.ms_ssim for one in scores),
            lpips=_mean_of_known(one.lpips for one in scores),
            st_lpips_alex=_mean_of_known(one.st_lpips_alex for one in scores),
            st_lpips_vgg=_mean_of_known(one.st_lpips_vgg for one in scores),
            scale_st_lpips=_mean_by_scale([one.scale_st_lpips for one in scores]),
            unquantized_psnr=_mean_of_known(one.unquantized_psnr for one in scores),
            scale_psnr=_mean_by_scale([one.scale_psnr for one in scores]),
            round_trips=mean_round_trips([one.round_trips for one in scores]),
            bits_per_pixel=self._bits / self._pixels,
            size_bytes=_mean([one.size_bytes for one in scores]),
            model=self._tokenizer.info,
            schedule=next(iter(self._schedules)) if len(self._schedules) == 1 else None,
            rfid=self._distance.compute(),
            frechet_lite2=frechet_lite2,
            blockiness=blockiness(self._steps[0]),
            reference_blockiness=blockiness(self._reference_steps[0]),
            fine_blockiness=blockiness(self._steps[1]),
            reference_fine_blockiness=blockiness(self._reference_steps[1]),
            spectral_peak=10 * math.log10(math.e) * float((self._peaks / peaked).max()) if peaked else None,
            spectral_peak_pictures=peaked,
            codes_used=usage.overall.used,
            usage=usage,
        )


def count_bits(tokens: TokenMaps, tokenizer: Tokenizer) -> float:
    """Return the size in bits of one picture's tokens: log2(V) each, without entropy coding."""
    return sum(part.numel() for part in tokens.maps) * math.log2(tokenizer.config.vocab_size)


def baseline_scores(
    format: str, pictures: Sequence[PictureScores], index: int, frechet_lite2: float | None
) -> BaselineScores:
    """Return the figures of a baseline format over pictures.

    Args:
        format: a key of `BASELINES`.
        pictures: scores of at least one picture.
        index: index of the format in each picture's `baselines`.
        frechet_lite2: Fréchet distance of Lite2's features, or None.
    """
    scores = [picture.baselines[index] for picture in pictures]
    pixels = sum(picture.height * picture.width for picture in pictures)
    within = [
        picture for picture in pictures if picture.baselines[index].size_bytes <= picture.models[0].size_bytes
    ]
    return BaselineScores(
        psnr=_mean([one.psnr for one in scores]),
        ssim=_mean([one.ssim for one in scores]),
        ms_ssim=_mean_of_known(one.ms_ssim for one in scores),
        st_lpips_alex=_mean_of_known(one.st_lpips_alex for one in scores),
        st_lpips_vgg=_mean_of_known(one.st_lpips_vgg for one in scores),
        frechet_lite2=frechet_lite2,
        bits_per_pixel=8 * sum(one.size_bytes for one in scores) / pixels,
        size_bytes=_mean([one.size_bytes for one in scores]),
        format=format,
        over_budget=len(scores) - len(within),
        within_budget_psnr=_mean_of_known(picture.baselines[index].psnr for picture in within),
        tokens_within_budget_psnr=_mean_of_known(picture.models[0].psnr for picture in within),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean_by_scale(values: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """Return the mean of every scale; None without values, or for several numbers of scales."""
    known = [value for value in values if value is not None]
    if len({len(value) for value in known}) != 1:
        return None
    return tuple(_mean(scale) for scale in zip(*known, strict=True))
