"""The figures of an evaluation: their names and methods, and the dataclasses that hold their values."""

from __future__ import annotations

from dataclasses import dataclass

from vartok.codebook import UsageReport
from vartok.errors import VartokError
from vartok.images import Fit
from vartok.metadata import ModelInfo
from vartok.metrics import LPIPS_MIN_SIDE, MS_SSIM_MIN_SIDE, SSIM_WINDOW
from vartok.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a report.

    Attributes:
        name: attribute of `Scores` or of a class derived from it, and the key in JSON.
        title: label in tables, with the unit.
        digits: decimals in tables.
        method: description of its computation, for comparison with other programs.
        optional: if True, tables omit it if nothing was measured.
    """

    name: str
    title: str
    digits: int
    method: str
    optional: bool = False


FIGURES = (
    Figure(
        name="psnr",
        title="PSNR, dB",
        digits=2,
        method="over a picture's RGB levels, peak 255, an exact copy counting as 100; mean over pictures",
    ),
    Figure(
        name="unquantized_psnr",
        title="unquantized PSNR, dB",
        digits=2,
        method="PSNR of the latent decoded without quantization: the loss of the autoencoder alone",
    ),
    Figure(
        name="ssim",
        title="SSIM",
        digits=4,
        method=f"torchmetrics' defaults: Gaussian window of {SSIM_WINDOW} pixels, each RGB channel; "
        "mean over pictures",
    ),
    Figure(
        name="ms_ssim",
        title="MS-SSIM",
        digits=4,
        method=f"torchmetrics' defaults: five scales; mean over pictures with sides of {MS_SSIM_MIN_SIDE} "
        "pixels or more",
    ),
    Figure(
        name="lpips",
        title="LPIPS",
        digits=4,
        method=f"AlexNet, as in torchmetrics; mean over pictures with sides of {LPIPS_MIN_SIDE} pixels "
        "or more",
        optional=True,
    ),
    Figure(
        name="rfid",
        title="rFID",
        digits=2,
        method="Fréchet distance between these pictures and their reconstructions alone: 2048 features of "
        "torch-fidelity's Inception",
        optional=True,
    ),
    Figure(
        name="bits_per_pixel",
        title="bits per pixel",
        digits=4,
        method="tokens x log2(codes), without entropy coding, or bits of the files, / pixels; all pictures",
    ),
    Figure(
        name="size_bytes",
        title="bytes per picture",
        digits=0,
        method="bits of a picture's tokens / 8, rounded up, or size of its file; mean over pictures",
    ),
    Figure(
        name="over_budget",
        title="pictures over budget",
        digits=0,
        method="pictures whose smallest file is larger than the first checkpoint's tokens",
        optional=True,
    ),
    Figure(
        name="within_budget_psnr",
        title="PSNR within budget, dB",
        digits=2,
        method="PSNR of the files that are not over budget",
        optional=True,
    ),
    Figure(
        name="tokens_within_budget_psnr",
        title="tokens' PSNR there, dB",
        digits=2,
        method="PSNR of the first checkpoint on the pictures of these files",
        optional=True,
    ),
    Figure(
        name="blockiness",
        title="blockiness",
        digits=3,
        method="mean step across patch borders / mean step inside patches, down and across, all pictures",
    ),
    Figure(
        name="reference_blockiness",
        title="reference blockiness",
        digits=3,
        method="blockiness of the references, at the same borders",
    ),
    Figure(
        name="codes_used",
        title="codes used",
        digits=0,
        method="different codes in the tokens of all pictures",
    ),
)
"""The figures of all pictures together, in the order of the table's rows."""

SCALE_FIGURES = (
    Figure(
        name="scale_psnr",
        title="PSNR by scale, dB",
        digits=2,
        method="PSNR of the picture decoded from the scales up to this one",
        optional=True,
    ),
    Figure(name="used", title="used", digits=0, method="different codes in the tokens of the scale"),
    Figure(
        name="coverage",
        title="coverage",
        digits=3,
        method="codes used / the most codes that so many tokens can use",
    ),
    Figure(
        name="perplexity",
        title="perplexity",
        digits=0,
        method="2 ** entropy of the codes' distribution: the number of evenly used codes of this entropy",
    ),
)
"""The figures of each scale: `Scores.scale_psnr`, then attributes of `codebook.Usage`."""

REFERENCE = "the uint8 pixels that entered the encoder; decoded pictures are clamped and rounded to uint8"
"""The reference of all comparisons. Another one, such as the file before it was resized, gives other figures
for the same checkpoint."""

BASELINES = {
    "jpeg": "4:2:0, optimized; the highest quality within budget, the bytes of the first checkpoint's "
    "tokens, or the lowest",
    "webp": "lossy, method 6; the highest quality within the same budget, or the lowest",
}
"""Formats that are measured as baselines, and the settings of their files."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of one reconstruction of a picture, or their means over pictures; see `FIGURES`.

    Attributes:
        psnr: dB, 0 to 100.
        ssim: structural similarity, -1 to 1.
        ms_ssim: multi-scale structural similarity, 0 to 1; None if no picture is large enough.
        bits_per_pixel: bits per pixel, of the tokens or the file.
        size_bytes: bytes per picture, of the tokens or the file.
        lpips: LPIPS distance, 0 or more; None if it was not measured or no picture is large enough.
        unquantized_psnr: dB, 0 to 100; None for a file.
        scale_psnr: dB after 1, 2, ... K scales, K values; None for a file, or if scales were not measured.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    bits_per_pixel: float
    size_bytes: float
    lpips: float | None = None
    unquantized_psnr: float | None = None
    scale_psnr: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelScores(Scores):
    """A checkpoint's mean scores over pictures, and figures that need many pictures, such as rFID.

    Attributes:
        model: the checkpoint.
        schedule: (h, w) of every scale; None if pictures of several sizes have several schedules.
        rfid: Fréchet distance, 0 or more; None if it was not measured, or for a single picture.
        blockiness: ratio, 1 if patch borders are not visible; None if there are no borders or no inner steps.
        reference_blockiness: blockiness of the references.
        codes_used: number of different codes in all tokens.
        usage: usage of the codebook, by all scales and by each.
    """

    model: ModelInfo
    schedule: Schedule | None
    rfid: float | None
    blockiness: float | None
    reference_blockiness: float | None
    codes_used: int
    usage: UsageReport


@dataclass(frozen=True, kw_only=True)
class BaselineScores(Scores):
    """A picture format's mean scores over pictures, at the size in bytes of the first checkpoint's tokens.

    Attributes:
        format: a key of `BASELINES`.
        over_budget: number of pictures whose smallest file is larger than their tokens.
        within_budget_psnr: PSNR of the other pictures' files, in dB; None if there are none.
        tokens_within_budget_psnr: PSNR of the first checkpoint on these other pictures, in dB; None if there
            are none.
    """

    format: str
    over_budget: int
    within_budget_psnr: float | None
    tokens_within_budget_psnr: float | None


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """The figures of one picture.

    Attributes:
        name: path or name of the picture.
        height: height of the encoded pixels.
        width: width of the encoded pixels.
        notes: remarks on how the picture was read, one sentence each.
        models: scores of every checkpoint, in the order in which they were given.
        baselines: scores of every format of `BASELINES`; empty if they were not measured.
    """

    name: str
    height: int
    width: int
    notes: tuple[str, ...]
    models: tuple[Scores, ...]
    baselines: tuple[Scores, ...]


@dataclass(frozen=True)
class Failure:
    """A picture that was not measured.

    Attributes:
        name: path or name of the picture.
        error: reason, one line.
    """

    name: str
    error: VartokError


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The figures of all pictures.

    Attributes:
        pictures: number of pictures that were measured.
        ms_ssim_pictures: number of these that are large enough for MS-SSIM.
        models: means of every checkpoint, in the order in which they were given; empty without pictures.
        baselines: means of every format of `BASELINES`; empty if they were not measured.
        by_picture: scores of every picture, in order.
        failures: pictures that were not measured, in order.
        fit: how pictures became the pixels that were encoded.
        device: type of the device that the first checkpoint ran on, such as "cpu".
        dtype: dtype of its networks.
    """

    pictures: int
    ms_ssim_pictures: int
    models: tuple[ModelScores, ...]
    baselines: tuple[BaselineScores, ...]
    by_picture: tuple[PictureScores, ...]
    failures: tuple[Failure, ...]
    fit: Fit
    device: str
    dtype: str

    def worst(self, count: int) -> list[PictureScores]:
        """Return the pictures of lowest PSNR by the first checkpoint, at most `count`, lowest first."""
        return sorted(self.by_picture, key=lambda scores: scores.models[0].psnr)[:count]

    def methods(self) -> dict[str, str]:
        """Return the methods of this report, by name: the reference, its figures, its formats."""
        columns = [*self.models, *self.baselines]
        usage = [model.usage.overall for model in self.models]
        figures = [
            figure
            for figure in (*FIGURES, *SCALE_FIGURES)
            if not figure.optional
            or any(getattr(one, figure.name, None) is not None for one in [*columns, *usage])
        ]
        formats = {one.format: BASELINES[one.format] for one in self.baselines}
        return {"reference": REFERENCE, **{figure.name: figure.method for figure in figures}, **formats}
