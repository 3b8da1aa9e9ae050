"""The figures of an evaluation, and of its baselines: their names and how each is computed."""

from __future__ import annotations

from dataclasses import dataclass

from vartok.evaluation.perceptual import MAX_PIXELS, MIN_SIDE
from vartok.metrics import LPIPS_MIN_SIDE, MIN_PERIODS, MS_SSIM_MIN_SIDE, SSIM_WINDOW

FINE_CELL = 4
"""Side in pixels of the cells of fine blockiness: that of WebP's transforms, and of many networks' grids."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The description of one figure of a report.

    Attributes:
        name: key in JSON; attribute of `Scores`, of a class derived from it, or of `codebook.Usage`.
        title: label in tables, with the unit.
        digits: number of decimals in tables.
        method: how the figure is computed, for comparison with other programs.
        optional: True if tables omit the figure where it was not measured.
    """

    name: str
    title: str
    digits: int
    method: str
    optional: bool = False


def figures(channels: int) -> tuple[Figure, ...]:
    """Return the figures of all pictures together, in the order of the table's rows.

    Args:
        channels: number of channels of the pictures, on which some methods depend.
    """
    rgb = channels == 3
    levels = "RGB levels, peak 255" if rgb else "levels, peak 255, or 65535 of 16 bits"
    each = "each RGB channel" if rgb else "each channel"
    repeated = "" if rgb else ", which gets the grey level three times"
    measured = f"pictures with sides of {MIN_SIDE} pixels or more and at most {MAX_PIXELS:,} pixels"
    return (
        Figure(
            name="psnr",
            title="PSNR, dB",
            digits=2,
            method=f"over a picture's {levels}, at most 100 (an exact copy); mean over pictures",
        ),
        Figure(
            name="unquantized_psnr",
            title="unquantized PSNR, dB",
            digits=2,
            method="PSNR of the latent decoded without quantization; a decoder of tokens can do worse",
        ),
        Figure(
            name="ssim",
            title="SSIM",
            digits=4,
            method=f"torchmetrics' defaults: Gaussian window of {SSIM_WINDOW} pixels, {each}; "
            "mean over pictures",
        ),
        Figure(
            name="ms_ssim",
            title="MS-SSIM",
            digits=4,
            method="torchmetrics' defaults: five scales; mean over pictures with sides of "
            f"{MS_SSIM_MIN_SIDE} pixels or more",
        ),
        Figure(
            name="lpips",
            title="LPIPS",
            digits=4,
            method=f"AlexNet, as in torchmetrics{repeated}; mean over pictures with sides of "
            f"{LPIPS_MIN_SIDE} pixels or more",
            optional=True,
        ),
        Figure(
            name="rfid",
            title="rFID",
            digits=2,
            method="Fréchet distance between the pictures and their reconstructions, by 2048 features of "
            f"torch-fidelity's Inception{repeated}",
            optional=True,
        ),
        Figure(
            name="st_lpips_alex",
            title="ST-LPIPS, AlexNet",
            digits=4,
            method="shift-tolerant LPIPS (Ghildyal & Liu 2022), weights of stlpips-pytorch 0.0.2"
            f"{repeated}; mean over {measured}",
            optional=True,
        ),
        Figure(
            name="st_lpips_vgg",
            title="ST-LPIPS, VGG16",
            digits=4,
            method="as on AlexNet",
            optional=True,
        ),
        Figure(
            name="frechet_lite2",
            title="Fréchet distance (Lite2)",
            digits=2,
            method="between pictures and copies, by the last features of EfficientNet-Lite2 before its head, "
            "means over cells; not comparable with FID; the fewer pictures, the higher",
            optional=True,
        ),
        Figure(
            name="bits_per_pixel",
            title="bits per pixel",
            digits=4,
            method="bits / pixels of all pictures; a token has log2(codes) bits, without entropy coding",
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
            method="mean PSNR of the files that are not over budget",
            optional=True,
        ),
        Figure(
            name="tokens_within_budget_psnr",
            title="tokens' PSNR there, dB",
            digits=2,
            method="mean PSNR of the first checkpoint on the pictures that are not over budget",
            optional=True,
        ),
        Figure(
            name="blockiness",
            title="blockiness",
            digits=3,
            method="mean difference of neighbouring pixels across patch borders / inside patches, all "
            "pictures",
        ),
        Figure(
            name="reference_blockiness",
            title="reference blockiness",
            digits=3,
            method="blockiness of the references, at the same borders",
        ),
        Figure(
            name="fine_blockiness",
            title=f"blockiness, {FINE_CELL} pixels",
            digits=3,
            method=f"blockiness at the borders of cells of {FINE_CELL} pixels",
        ),
        Figure(
            name="reference_fine_blockiness",
            title=f"reference blockiness, {FINE_CELL} pixels",
            digits=3,
            method="that of the references",
        ),
        Figure(
            name="spectral_peak",
            title="spectral peak, dB",
            digits=2,
            method="power at multiples of one cycle per patch over that between, beyond the references', "
            "in rows and columns, under a Hann window; the largest of the means over pictures with sides of "
            f"{MIN_PERIODS} patches or more",
            optional=True,
        ),
        Figure(
            name="codes_used",
            title="codes used",
            digits=0,
            method="different codes in the tokens of all pictures",
        ),
    )


FIGURES = figures(channels=3)
"""The figures of all pictures together, for three channels."""

SCALE_FIGURES = (
    Figure(
        name="scale_psnr",
        title="PSNR by scale, dB",
        digits=2,
        method="PSNR of the picture decoded from the scales up to this one",
        optional=True,
    ),
    Figure(
        name="scale_st_lpips",
        title="ST-LPIPS by scale",
        digits=4,
        method="ST-LPIPS on AlexNet of the picture decoded from the scales up to this one",
        optional=True,
    ),
    Figure(name="used", title="used", digits=0, method="different codes in the tokens of the scale"),
    Figure(
        name="coverage",
        title="coverage",
        digits=3,
        method="codes used / min(codes, tokens), the most codes that so many tokens can use",
    ),
    Figure(
        name="perplexity",
        title="perplexity",
        digits=0,
        method="2 ** entropy of the codes' distribution: the number of evenly used codes of this entropy",
    ),
)
"""The figures of each scale: `Scores.scale_psnr`, `.scale_st_lpips`, then attributes of `codebook.Usage`."""


def reference(channels: int) -> str:
    """Return the reference of all comparisons, for pictures of so many channels.

    Another reference, such as the picture before it was resized, gives other figures for the same checkpoint.
    """
    dtype = "uint8" if channels == 3 else "uint8 or uint16"
    return f"the {dtype} pixels that entered the encoder; decoded pictures are clamped and rounded to {dtype}"


REFERENCE = reference(channels=3)
"""The reference of all comparisons, for three channels."""


def baselines(channels: int) -> dict[str, str]:
    """Return the formats that are measured as baselines, and the settings of their files.

    Args:
        channels: number of channels of the pictures.
    """
    subsampling = "4:2:0, " if channels == 3 else ""
    quality = (
        "the highest quality whose file is no larger than the first checkpoint's tokens, or quality 0 if "
        "there is none"
    )
    return {
        "jpeg": f"{subsampling}optimized; {quality}",
        "webp": f"lossy, method 6; {quality}",
    }


BASELINES = baselines(channels=3)
"""Formats that are measured as baselines, and the settings of their files, for three channels."""
