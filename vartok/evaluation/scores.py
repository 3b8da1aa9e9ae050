"""The report of an evaluation: the dataclasses that hold the values of its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vartok.codebook import UsageReport
from vartok.errors import VartokError
from vartok.evaluation import agreement, round_trips
from vartok.evaluation.figures import SCALE_FIGURES, baselines, figures, reference
from vartok.images import Fit
from vartok.images.channels import CONVERTED
from vartok.metadata import ModelInfo
from vartok.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of one reconstruction of a picture, or their means over pictures; see `FIGURES`.

    The reconstruction is a checkpoint's, or the file of a baseline format (JPEG, WebP).

    Attributes:
        psnr: PSNR in dB, 0 to 100.
        ssim: structural similarity, -1 to 1.
        ms_ssim: multi-scale structural similarity, 0 to 1; None if no picture is large enough.
        bits_per_pixel: bits of the tokens or of the baseline's file, divided by the number of pixels. Over
            pictures, both are summed first.
        size_bytes: bytes per picture, of the tokens or the baseline's file.
        lpips: LPIPS distance, 0 or more; None for a baseline, if it was not measured, or if no picture is
            large enough.
        st_lpips_alex: shift-tolerant LPIPS on AlexNet, 0 or more; None if it was not measured, or if no
            picture has a size that is measured.
        st_lpips_vgg: likewise on VGG16.
        unquantized_psnr: PSNR without quantization, in dB, 0 to 100; None for a baseline.
        scale_psnr: PSNR after 1, 2, ... K scales, in dB; None for a baseline, if it was not measured, or over
            pictures of several K.
        scale_st_lpips: ST-LPIPS on AlexNet after 1, 2, ... K scales; None likewise.
        round_trips: figures after 1, 2, ... round trips; empty for a baseline, or if they were not measured.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    bits_per_pixel: float
    size_bytes: float
    lpips: float | None = None
    st_lpips_alex: float | None = None
    st_lpips_vgg: float | None = None
    unquantized_psnr: float | None = None
    scale_psnr: tuple[float, ...] | None = None
    scale_st_lpips: tuple[float, ...] | None = None
    round_trips: tuple[round_trips.RoundTrip, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelScores(Scores):
    """A checkpoint's mean scores over pictures, and figures of all pictures together, such as rFID.

    Attributes:
        model: name, fingerprint and vocabulary size of the checkpoint.
        schedule: (h, w) of every scale; None if pictures of several sizes have several schedules.
        rfid: Fréchet distance, 0 or more; None if it was not measured, or for a single picture.
        frechet_lite2: Fréchet distance of EfficientNet-Lite2's features; None likewise.
        blockiness: ratio, 1 if patch borders are not visible; None if pictures have no borders, or no
            differences inside patches.
        reference_blockiness: blockiness of the references at the same borders, or None likewise.
        fine_blockiness: blockiness at the borders of cells of `FINE_CELL` pixels, or None likewise.
        reference_fine_blockiness: that of the references, or None likewise.
        spectral_peak: highest peak beyond those of the references at multiples of one cycle per patch, in
            dB, see `vartok.metrics.spectral_peaks`; 0 for exact copies, and about 0 without a texture that
            repeats in every patch. None if no picture is large enough.
        spectral_peak_pictures: number of pictures that are large enough.
        codes_used: number of different codes in all tokens.
        usage: usage of the codebook, by all scales together and by each scale.
    """

    model: ModelInfo
    schedule: Schedule | None
    rfid: float | None
    frechet_lite2: float | None
    blockiness: float | None
    reference_blockiness: float | None
    fine_blockiness: float | None
    reference_fine_blockiness: float | None
    spectral_peak: float | None
    spectral_peak_pictures: int
    codes_used: int
    usage: UsageReport


@dataclass(frozen=True, kw_only=True)
class BaselineScores(Scores):
    """A baseline format's mean scores over pictures.

    The budget of a file is the size in bytes of the same picture's tokens by the first checkpoint.

    Attributes:
        format: a key of `BASELINES`.
        frechet_lite2: Fréchet distance of EfficientNet-Lite2's features, 0 or more; None if it was not
            measured, or for a single picture.
        over_budget: number of pictures whose file is over budget, even at the lowest quality.
        within_budget_psnr: mean PSNR of the files within budget, in dB; None if there are none.
        tokens_within_budget_psnr: mean PSNR of the first checkpoint on the pictures of the files within
            budget, in dB; None if there are none.
    """

    format: str
    frechet_lite2: float | None
    over_budget: int
    within_budget_psnr: float | None
    tokens_within_budget_psnr: float | None


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """The figures of one picture.

    Attributes:
        name: path or name of the picture.
        height: height of the encoded picture, in pixels.
        width: width of the encoded picture, in pixels.
        notes: remarks on how the picture was read, one sentence each.
        models: scores of every checkpoint, in the order given.
        baselines: scores of every format of `BASELINES`; empty if they were not measured.
        damage: how the picture's file is damaged; None if it is whole.
    """

    name: str
    height: int
    width: int
    notes: tuple[str, ...]
    models: tuple[Scores, ...]
    baselines: tuple[Scores, ...]
    damage: str | None = None


@dataclass(frozen=True)
class Failure:
    """A picture that was not measured.

    Attributes:
        name: path or name of the picture.
        error: the reason; its message is one line.
    """

    name: str
    error: VartokError


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The figures of an evaluation.

    Attributes:
        pictures: number of pictures that were measured.
        ms_ssim_pictures: number of measured pictures that are large enough for MS-SSIM.
        perceptual_pictures: number of measured pictures that have ST-LPIPS and count in `frechet_lite2`.
        models: figures of every checkpoint over pictures, in the order given; empty without pictures.
        baselines: figures of every format of `BASELINES` over pictures; empty if they were not measured.
        by_picture: scores of every measured picture, in order.
        failures: pictures that were not measured, in order.
        fit: the fit by which pictures were brought to the encoded size.
        device: type of the device that the first checkpoint ran on, such as "cpu".
        dtype: dtype of the first checkpoint's encoder and decoder.
        passed_over: number of files and of members of tars that were not read, by kind: by suffix, or as in
            `vartok.sources.passed_over`.
        agreements: agreement of the first checkpoint's tokens with those in float32 on the CPU, for each
            device and dtype that was asked for.
        code_counts: [K, V] int64 of every checkpoint, how often each scale used each code.
    """

    pictures: int
    ms_ssim_pictures: int
    perceptual_pictures: int
    models: tuple[ModelScores, ...]
    baselines: tuple[BaselineScores, ...]
    by_picture: tuple[PictureScores, ...]
    failures: tuple[Failure, ...]
    fit: Fit
    device: str
    dtype: str
    passed_over: dict[str, int] = field(default_factory=dict)
    agreements: tuple[agreement.Agreement, ...] = ()
    code_counts: tuple[NDArray[np.int64], ...] = field(default=(), repr=False, compare=False)

    @property
    def converted_to_grey(self) -> int:
        """Number of measured pictures whose colours were converted to grey levels."""
        return sum(CONVERTED in scores.notes for scores in self.by_picture)

    def damaged(self) -> list[PictureScores]:
        """Return the measured pictures whose files are damaged, in order."""
        return [scores for scores in self.by_picture if scores.damage is not None]

    def worst(self, count: int) -> list[PictureScores]:
        """Return at most `count` pictures, those of lowest PSNR by the first checkpoint, lowest first."""
        return sorted(self.by_picture, key=lambda scores: scores.models[0].psnr)[:count]

    def methods(self) -> dict[str, str]:
        """Return how this report was measured, as texts by name.

        The names are "reference", those of the figures, and those of the baseline formats, whose texts are
        the settings of the files. Optional figures that were not measured are left out.
        """
        channels = self.fit.channels
        columns = [*self.models, *self.baselines]
        usage = [model.usage.overall for model in self.models]
        methods = {"reference": reference(channels)}
        for figure in (*figures(channels), *SCALE_FIGURES):
            if not figure.optional or any(
                getattr(one, figure.name, None) is not None for one in [*columns, *usage]
            ):
                methods[figure.name] = figure.method
        settings = baselines(channels)
        methods |= {one.format: settings[one.format] for one in self.baselines}
        if any(model.round_trips for model in self.models):
            methods["round_trips"] = round_trips.method(channels)
        if self.agreements:
            methods["agreements"] = agreement.METHOD
        return methods
