"""Measure pictures: read them in threads, run the networks in batches, compute the metrics in threads."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vartok.errors import VartokError
from vartok.evaluation.agreement import AgreementMeter, Differences
from vartok.evaluation.baselines import compress, decompress
from vartok.evaluation.figures import BASELINES
from vartok.evaluation.perceptual import PerceptualMeter, PerceptualNetworks
from vartok.evaluation.report import Reconstruction, Totals, baseline_scores, count_bits
from vartok.evaluation.round_trips import make_round_trips
from vartok.evaluation.scores import EvaluationReport, Failure, PictureScores, Scores
from vartok.images import Fit, Picture, to_pixels, to_tensor
from vartok.images.tensors import Pixels, peak, to_bytes, to_rgb_bytes
from vartok.metrics import (
    LPIPS_MIN_SIDE,
    MIN_PERIODS,
    FrechetDistance,
    ms_ssim,
    psnr,
    require_torchmetrics,
    spectral_peaks,
    ssim,
)
from vartok.operations.streams import MAX_NATIVE_TOKENS, check_token_count, picture_weight
from vartok.parallel import is_out_of_memory, map_batches, map_ordered
from vartok.reports.gallery import Gallery, shrink
from vartok.runtime import exact_float32
from vartok.schedule import Schedule
from vartok.sources import Sample
from vartok.tokenizer import Tokenizer
from vartok.tokens import TokenMaps


class _Reconstructed(NamedTuple):
    """A picture, its Inception features [D] or None, every tokenizer's reconstruction, and `Differences`."""

    picture: Picture
    features: Tensor | None
    copies: tuple[Reconstruction, ...]
    differences: tuple[Differences, ...]


class _Measured(NamedTuple):
    """A picture and its scores.

    Attributes:
        found: the picture.
        scores: its scores.
        features: Lite2's features [D] of it, of every tokenizer's copy and of every baseline's; or empty.
        peaks: spectral peaks of every tokenizer's copy beyond its own, [patch // 2]; None if it is too small.
    """

    found: _Reconstructed
    scores: PictureScores
    features: tuple[Tensor, ...]
    peaks: tuple[Tensor | None, ...]


class Evaluation:
    """Measures pictures as they come, and sums their figures for a report.

    Args:
        tokenizers: tokenizers to measure on the same pixels. The tokens of the first set the size of the
            baselines' files.
        fit: how a picture becomes the pixels that are encoded; all tokenizers must take its size.
        schedule: (h, w) of every scale; if None, each checkpoint's own, adapted to a picture's latent.
        max_tokens: limit of tokens of a picture with the fit "native".
        baselines: also measure JPEG and WebP.
        scales: also measure the PSNR after each scale, which decodes every picture once per scale.
        again: number of round trips to measure: tokens are decoded, and the pixels encoded again.
        agreement: also compares the tokens of each picture with those on other devices or in other dtypes.
        gallery: keeps pictures and their reconstructions for an HTML report.
        lpips: network that maps two [B, 3, H, W] batches in [-1, 1] to distances [B, 1, 1, 1], see
            `load_lpips`; None: no LPIPS. It, `inception` and the baselines need 1 or 3 channels.
        inception: network that maps [B, 3, H, W] uint8 to features [B, D], see `load_inception`; None: no
            rFID.
        perceptual: networks of `load_perceptual`; None: no ST-LPIPS, and no Fréchet distance of Lite2's
            features. They need 1 or 3 channels.

    Raises:
        VartokError: torchmetrics is not installed.
    """

    def __init__(
        self,
        tokenizers: Sequence[Tokenizer],
        fit: Fit,
        *,
        schedule: Schedule | None = None,
        max_tokens: int = MAX_NATIVE_TOKENS,
        baselines: bool = False,
        scales: bool = True,
        again: int = 0,
        agreement: AgreementMeter | None = None,
        gallery: Gallery | None = None,
        lpips: nn.Module | None = None,
        inception: nn.Module | None = None,
        perceptual: PerceptualNetworks | None = None,
    ) -> None:
        require_torchmetrics()
        self._tokenizers = tuple(tokenizers)
        self._fit = fit
        self._schedule = schedule
        self._max_tokens = max_tokens
        self._formats = tuple(BASELINES) if baselines else ()
        self._scales = scales
        self._again = again
        self._agreement = agreement
        self._gallery = gallery
        # MPS lacks float64, which the Fréchet distance needs.
        self._device = tokenizers[0].device if tokenizers[0].device.type == "cuda" else torch.device("cpu")
        self._lpips = lpips and lpips.to(self._device)
        self._inception = inception and inception.to(self._device)
        self._perceptual = perceptual and PerceptualMeter(perceptual, self._device)
        self._scores: list[PictureScores] = []
        self._failures: list[Failure] = []
        self._totals = [Totals(one) for one in tokenizers]
        self._frechet = [FrechetDistance() for _ in (*tokenizers, *self._formats)]

    def measure(
        self, samples: Iterable[Sample], *, batch_size: int = 1, workers: int = 1
    ) -> Generator[PictureScores | Failure, None, None]:
        """Measure pictures. A later `report` covers the pictures that have been yielded.

        Args:
            samples: pictures to read; a sample's key is the picture's name in the report.
            batch_size: number of pictures of one size that the networks compute together; one larger than
                the checkpoint's own size counts as several.
            workers: number of threads that read pictures, and of as many that compute metrics.

        Yields:
            For each picture, in order, its scores or its failure.
        """
        limit = workers + batch_size

        def read(sample: Sample) -> tuple[str, Picture | VartokError]:
            try:
                picture = sample.read(self._fit)
                height, width = picture.pixels.shape[:2]
                if self._fit.mode == "native" and self._schedule is None:
                    for tokenizer in self._tokenizers:
                        check_token_count(tokenizer.config, (height, width), self._max_tokens)
                return sample.key, picture
            except VartokError as error:
                return sample.key, error

        def compare(
            item: tuple[str, _Reconstructed | VartokError],
        ) -> _Measured | Failure:
            name, found = item
            if isinstance(found, VartokError):
                return Failure(name, found)
            try:
                return self._compare(name, found)
            except VartokError as error:
                return Failure(name, error)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return Failure(name, VartokError("not enough memory to measure this picture"))

        pictures = map_ordered(read, samples, workers=workers, limit=limit)
        copies = map_batches(
            self._reconstruct,
            pictures,
            size=batch_size,
            key=lambda picture: (picture.pixels.shape, picture.pixels.dtype),
            weight=lambda picture: max(
                picture_weight(one.config, picture.pixels.shape[:2]) for one in self._tokenizers
            ),
        )
        with closing(map_ordered(compare, copies, workers=workers, limit=limit)) as results:
            for result in results:
                if isinstance(result, Failure):
                    self._failures.append(result)
                    yield result
                else:
                    self._add(result)
                    yield result.scores

    def _add(self, measured: _Measured) -> None:
        found, scores, features, peaks = measured
        self._scores.append(scores)
        if self._agreement is not None:
            self._agreement.add(found.differences)
        for totals, copy, peaks_of_copy in zip(self._totals, found.copies, peaks, strict=True):
            totals.add(found.picture.pixels, found.features, copy, peaks_of_copy)
        for distance, copied in zip(self._frechet, features[1:], strict=False):  # or no features
            distance.add(features[0], copied)

    def report(self) -> EvaluationReport:
        """Return the figures of all pictures that `measure` has yielded so far."""
        found = self._scores
        distances = [distance.compute() for distance in self._frechet]
        return EvaluationReport(
            pictures=len(found),
            ms_ssim_pictures=sum(scores.models[0].ms_ssim is not None for scores in found),
            perceptual_pictures=sum(scores.models[0].st_lpips_alex is not None for scores in found),
            models=tuple(
                totals.scores([scores.models[m] for scores in found], distances[m])
                for m, totals in enumerate(self._totals)
                if found
            ),
            baselines=tuple(
                baseline_scores(format, found, i, distances[len(self._totals) + i])
                for i, format in enumerate(self._formats)
                if found
            ),
            by_picture=tuple(found),
            failures=tuple(self._failures),
            fit=self._fit,
            device=self._tokenizers[0].device.type,
            dtype=self._tokenizers[0].dtype,
            agreements=() if self._agreement is None else self._agreement.results(),
            code_counts=tuple(totals.counts for totals in self._totals),
        )

    def _reconstruct(self, batch: list[Picture]) -> list[_Reconstructed]:
        """Reconstruct pictures of one size with every tokenizer; compute the figures that need a network."""
        pixels = np.stack([picture.pixels for picture in batch])
        features = self._features(pixels)
        copies = zip(*(self._reconstruct_with(one, pixels) for one in self._tokenizers), strict=True)
        differences = [()] * len(batch) if self._agreement is None else self._agreement.compare(pixels)
        return [
            _Reconstructed(picture, None if features is None else features[b], found, differences[b])
            for b, (picture, found) in enumerate(zip(batch, copies, strict=True))
        ]

    def _reconstruct_with(self, tokenizer: Tokenizer, pixels: Pixels) -> list[Reconstruction]:
        """Reconstruct [B, H, W, C] pixels with one tokenizer, and compute the figures that need a network."""
        latent = tokenizer.latent(pixels)
        tokens = tokenizer.quantize(latent, self._schedule)
        dtype = pixels.dtype
        unquantized = to_pixels(tokenizer.decode_latent(latent), dtype)
        by_scale: list[list[float]] = []
        shown: list[list[Pixels]] = []
        kept: list[Pixels] = []
        keep = self._perceptual is not None and self._perceptual.can_measure(*pixels.shape[1:3])
        for prefix in tokenizer.decode_prefixes(tokens) if self._scales else [tokenizer.decode(tokens)]:
            copies = to_pixels(prefix, dtype)  # after the loop, the images of all scales
            if self._scales:
                by_scale.append([psnr(one, copy) for one, copy in zip(pixels, copies, strict=True)])
                kept += [copies] * keep
            if self._gallery is not None:
                shown.append([shrink(copy) for copy in copies])
        distances = self._distances(pixels, copies)
        features = self._features(copies)
        trips = make_round_trips(tokenizer, pixels, copies, tokens, self._again)
        flat = tokens.flatten().cpu()
        return [
            Reconstruction(
                pixels=copies[b],
                tokens=TokenMaps.unflatten(flat[b : b + 1], tokens.schedule),
                unquantized_psnr=psnr(pixels[b], unquantized[b]),
                scale_psnr=tuple(scale[b] for scale in by_scale) or None,
                lpips=None if distances is None else distances[b],
                features=None if features is None else features[b],
                round_trips=trips[b],
                prefixes=tuple(scale[b] for scale in kept[:-1]),
                shown=tuple(scale[b] for scale in shown),
            )
            for b in range(len(pixels))
        ]

    def _distances(self, references: Pixels, copies: Pixels) -> list[float] | None:
        """Return B LPIPS distances of [B, H, W, C] pixels; None without LPIPS, or for too small pictures."""
        if self._lpips is None or min(references.shape[1:3]) < LPIPS_MIN_SIDE:
            return None
        with exact_float32(self._device):
            copy, reference = (
                to_tensor(to_rgb_bytes(part)).to(self._device) for part in (copies, references)
            )
            distances: list[float] = self._lpips(copy, reference).flatten().tolist()
        return distances

    def _features(self, pixels: Pixels) -> Tensor | None:
        """Return Inception features [B, D] of [B, H, W, C] pixels; None without rFID."""
        if self._inception is None:
            return None
        with exact_float32(self._device):
            images = torch.from_numpy(to_rgb_bytes(pixels)).permute(0, 3, 1, 2).to(self._device)
            features: Tensor = self._inception(images)
        return features

    def _compare(self, name: str, found: _Reconstructed) -> _Measured:
        """Measure the copies and the baselines of a picture."""
        reference = found.picture.pixels
        height, width = reference.shape[:2]

        def score(copy: Pixels, bits: float) -> Scores:
            return Scores(
                psnr=psnr(reference, copy),
                ssim=ssim(reference, copy),
                ms_ssim=ms_ssim(reference, copy),
                bits_per_pixel=bits / (height * width),
                size_bytes=math.ceil(bits / 8),
            )

        copies = [copy.pixels for copy in found.copies]
        scores = [
            replace(
                score(copy.pixels, count_bits(copy.tokens, tokenizer)),
                lpips=copy.lpips,
                unquantized_psnr=copy.unquantized_psnr,
                scale_psnr=copy.scale_psnr,
                round_trips=copy.round_trips,
            )
            for tokenizer, copy in zip(self._tokenizers, found.copies, strict=True)
        ]
        for format in self._formats:
            data = compress(to_bytes(reference), format, int(scores[0].size_bytes))
            copied = decompress(data, reference.shape[2]).astype(reference.dtype)
            copies.append(copied * (peak(reference.dtype) // 255))
            scores.append(score(copies[-1], 8 * len(data)))
        features: tuple[Tensor, ...] = ()
        if self._perceptual is not None and self._perceptual.can_measure(height, width):
            figures = self._perceptual.measure(reference, copies, [copy.prefixes for copy in found.copies])
            features = figures.features
            scores = [
                replace(one, st_lpips_alex=alex, st_lpips_vgg=vgg)
                for one, alex, vgg in zip(scores, figures.alex, figures.vgg, strict=True)
            ]
            if self._scales:
                for m, by_scale in enumerate(figures.by_scale):
                    scores[m] = replace(scores[m], scale_st_lpips=(*by_scale, figures.alex[m]))
        models, baselines = scores[: len(found.copies)], scores[len(found.copies) :]
        if self._gallery is not None:
            found_psnr = [one.scale_psnr or (one.psnr,) for one in models]
            self._gallery.add(name, reference, [copy.shown for copy in found.copies], found_psnr)
        picture = PictureScores(
            name=name,
            height=height,
            width=width,
            notes=found.picture.notes,
            models=tuple(models),
            baselines=tuple(baselines),
            damage=found.picture.damage,
        )
        return _Measured(found, picture, features, self._spectral_peaks(reference, found.copies))

    def _spectral_peaks(
        self, reference: Pixels, copies: Sequence[Reconstruction]
    ) -> tuple[Tensor | None, ...]:
        """Return the spectral peaks of every copy beyond the reference's; None for too small a picture."""

        def peaks(pixels: Pixels, patch: int) -> Tensor:
            return spectral_peaks(to_tensor(pixels[None]), patch).mean(0)

        patches = [tokenizer.config.downsample for tokenizer in self._tokenizers]
        large = {patch for patch in patches if patch > 1 and min(reference.shape[:2]) >= MIN_PERIODS * patch}
        own = {patch: peaks(reference, patch) for patch in large}
        return tuple(
            peaks(copy.pixels, patch) - own[patch] if patch in own else None
            for patch, copy in zip(patches, copies, strict=True)
        )
